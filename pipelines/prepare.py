"""Turn a downloaded data set into what training reads: frame folders or videos, and split lists.

  python -m pipelines.prepare ntu60 --source /downloads/ntu --out /data/ntu

The same command again does only what is missing; docs/prepare.md says what to download.
"""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from pipelines.datasets import DATASETS
from pipelines.datasets.download import Wishes
from pipelines.frames_writer import ROI_SIZE, Form
from pipelines.pack import summary as pack_summary
from pipelines.pack_reader import Pack
from pipelines.preparation import SUMMARY, Summary, check_videos, claim, prepare
from pipelines.prepared_packs import pack_prepared


def whole(least: int, most: int, text: str) -> int:
    """A whole number between two others, for argparse."""
    if not text.isdigit() or not least <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"'{text}' is not in {least}..{most}")
    return int(text)


def width_and_height(text: str) -> tuple[int, int]:
    """Such as 320x240, for argparse."""
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"'{text}' is not WxH, such as 320x240")
    return int(match[1]), int(match[2])


MODALITY = {"jester": "rgb", "generic": "rgb"}
"""Where not both."""

TAKEN_BY = {
    "roi": ("ntu60", "ntu120"),
    "exclude": ("ntu60", "ntu120"),
    "labels": ("isogd",),
    "eval_every": ("generic",),
    "depth_range": ("thu_read",),
}
"""Options that mean something for some data sets only."""

OPTIONS: dict[str, dict[str, Any]] = {
    "--modality": {
        "choices": ("rgb", "depth", "rgbd"),
        "help": "what to prepare (default: both where the data set has both; generic: rgb)",
    },
    "--as": {
        "dest": "form",
        "choices": ("frames", "videos", "copies", "packs"),
        "default": "frames",
        "help": "folders of JPEG frames, or H.264 videos; 16-bit depth stays PNG;\n"
        "or copies of the download's videos, whole and not encoded anew, as .mp4\n"
        "that the GPU can decode;\n"
        "or packs of frames (docs/packs.md), made from OUT/frames, which may go then",
    },
    "--quality": {
        "type": partial(whole, 1, 100),
        "default": Form.quality,
        "metavar": "1..100",
        "help": "of JPEG frames (default: %(default)s)",
    },
    "--gop": {
        "type": partial(whole, 1, 300),
        "default": Form.gop,
        "metavar": "FRAMES",
        "help": "from key frame to key frame of videos (default: %(default)s)",
    },
    "--crf": {
        "type": partial(whole, 0, 51),
        "default": Form.crf,
        "metavar": "0..51",
        "help": "of videos: lower is better and larger (default: %(default)s)",
    },
    "--size": {
        "type": width_and_height,
        "metavar": "WxH",
        "help": "of stored frames (default: 320x240 for RGB of NTU, else as they come)",
    },
    "--keep-damaged": {
        "action": "store_true",
        "help": "take what can be decoded of videos that FFmpeg finds fault with",
    },
    "--jobs": {
        "type": partial(whole, 1, 1024),
        "default": os.cpu_count() or 1,
        "metavar": "N",
        "help": "clips at a time (default: one per core, here %(default)s)",
    },
    "--roi": {
        "action": argparse.BooleanOptionalAction,
        "help": "NTU: half of the RGB frame, around the person in the masked depth\n"
        "(default), or all of it",
    },
    "--exclude": {
        "metavar": "FILE",
        "help": "NTU: leave out the samples named in FILE, one a line",
    },
    "--labels": {
        "action": "append",
        "metavar": "SPLIT=FILE",
        "help": "IsoGD: the list of valid or test with its labels, where the one\n"
        "in the download has none",
    },
    "--eval-every": {
        "type": partial(whole, 2, 1000),
        "metavar": "N",
        "help": "generic: every N-th clip of a class is for evaluation (default: 5)",
    },
    "--depth-range": {
        "type": int,
        "nargs": 2,
        "metavar": ("NEAR", "FAR"),
        "help": "THU-READ: millimetres shown as white and black where depth is\n"
        "16 bit (default: 500 4500)",
    },
}

CHANGING = ("roi", "size", "keep_damaged", "depth_range")
"""Options that change pictures wherever they are given."""

MOST_SHOWN = 20


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 1 after one line that says what to mend."""
    options = command_line().parse_args(arguments)
    try:
        form, wishes = _form(options), _wishes(options)
        out = os.path.join(options.out, "frames") if options.form == "packs" else options.out
        claim(options.source, out)
        download = DATASETS[options.dataset](options.source, wishes)
        if form.copies:
            check_videos(download)
        summary, made = prepare(options.dataset, download, out, form, options.jobs)
        if options.form == "packs" and summary.clips:
            pack_prepared(download, out, options.out, options.jobs)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(as_text(summary, made, out))
    if options.form == "packs" and summary.clips:
        print(pack_summary(Pack.open(options.out)))
    if not summary.clips:
        print(f"error: {options.source}: no usable clip; see above", file=sys.stderr)
    return 0 if summary.clips else 1


def as_text(summary: Summary, made: int, out: str) -> str:
    """The summary for people."""
    frames = " and ".join(f"{count} {modality}" for modality, count in summary.frames.items())
    lines = [
        f"{out}: {summary.clips} clips, {frames or 'no'} frames, {summary.bytes / 1e9:.3f} GB; "
        f"{made} clips made now"
    ]
    lines += [f"  {path}: {facts['clips']} clips" for path, facts in summary.lists.items()]
    if summary.boxes_from_neighbour or summary.boxes_from_middle:
        lines.append(
            f"  region of interest: {summary.boxes_from_neighbour} frames took the nearest one's, "
            f"{summary.boxes_from_middle} of clips that show nobody took the middle"
        )
    lines += [f"  note: {note}" for note in summary.notes]
    lines.append(f"  rejected: {len(summary.rejected)} clips")
    shown = list(summary.rejected.items())[:MOST_SHOWN]
    lines += [f"    {clip}: {why}" for clip, why in shown]
    if len(summary.rejected) > MOST_SHOWN:
        lines.append(f"    and {len(summary.rejected) - MOST_SHOWN} more in {SUMMARY}")
    return "\n".join(lines)


def command_line() -> argparse.ArgumentParser:
    """DATASET --source DIR --out DIR [options]"""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.prepare",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    add = parser.add_argument
    add("dataset", choices=DATASETS, help="what was downloaded")
    add("--source", required=True, metavar="DIR", help="folder of the download, unpacked")
    add(
        "--out", required=True, metavar="DIR", help="folder to fill: new, empty or of a call before"
    )
    for flags, settings in OPTIONS.items():
        add(flags, **settings)
    return parser


def _form(options: argparse.Namespace) -> Form:
    if options.form == "copies":
        _check_unchanged(options)
        return Form(copies=True)
    size = options.size or (ROI_SIZE if options.dataset in TAKEN_BY["roi"] else None)
    near, far = options.depth_range or Form.depth_range_mm
    if not 0 <= near < far <= 65535:
        raise ValueError(f"--depth-range {near} {far}: must be 0 <= NEAR < FAR <= 65535")
    return Form(
        options.form == "videos", False, options.quality, options.gop, options.crf, size,
        (near, far), options.keep_damaged,
    )  # fmt: skip


def _check_unchanged(options: argparse.Namespace) -> None:
    """ValueError for an option that would change the pictures of copies."""
    settings = {"quality": Form.quality, "gop": Form.gop, "crf": Form.crf}
    given = {name: getattr(options, name) != value for name, value in settings.items()}
    given |= {name: getattr(options, name) for name in CHANGING}
    for name in given:
        if given[name]:
            raise ValueError(
                f"--{name.replace('_', '-')}: --as copies takes the videos as they are; leave it "
                "out, or choose --as frames, videos or packs"
            )


def _wishes(options: argparse.Namespace) -> Wishes:
    for name, datasets in TAKEN_BY.items():
        if getattr(options, name) is not None and options.dataset not in datasets:
            flag = f"--{name.replace('_', '-')}"
            raise ValueError(f"{flag} is for {' and '.join(datasets)}, not for {options.dataset}")
    modality = options.modality or MODALITY.get(options.dataset, "rgbd")
    if options.dataset == "jester" and modality != "rgb":
        raise ValueError(f"--modality {modality}: jester has RGB only")
    labels = {}
    for given in options.labels or ():
        split, equals, path = given.partition("=")
        if not equals:
            raise ValueError(f"--labels {given}: must be SPLIT=FILE, such as valid=labels.txt")
        labels[split] = path
    roi = options.roi is not False and modality != "depth" and options.form != "copies"
    return Wishes(modality, roi, options.exclude, labels, options.eval_every or Wishes.eval_every)


if __name__ == "__main__":
    sys.exit(main())
