"""Write the sample data set: a small RGB-D gesture data set in the files and layout of NTU RGB+D.

    python -m pipelines.synthetic sample_data

    sample_data/train.txt, eval.txt                       NAME num_frames label
    sample_data/classes.txt                               one name per line
    sample_data/Images/NAME/000001.jpg                    RGB, NAME as S001C001P001R001A001_rgb
    sample_data/nturgb+d_depth_masked/NAME without _rgb/MDepth-00000001.png
                                                          16 bit: millimetres, 0 = background

A name counts setup (S), camera (C), performer (P), replication (R) and gesture (A, the label plus
1). Performers and setups of the evaluation list are in no training clip. A clip is a function of
the seed, its list and its place there. This module knows files; `synthetic_scene` draws lots and
`synthetic_drawing` pixels.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from pipelines import synthetic_drawing as drawing
from pipelines import synthetic_scene as scenes
from pipelines.cores import usable_cores
from pipelines.synthetic_drawing import Depth, Image, Size

RGB_FOLDER, DEPTH_FOLDER = "Images", "nturgb+d_depth_masked"
STAMP = "synthetic.json"
PART = ".part-"
"""Begins the names of files and folders that are not whole yet."""

VERSION = 1
"""Of the pixels: raise it with every change to what is drawn."""

JPEG_QUALITY = 80

TRAIN, EVAL, PERFORMER, SETUP = range(4)  # what a random generator is for
LENGTH, CONTENT = range(2)

PERFORMERS = {TRAIN: range(1, 41), EVAL: range(41, 51)}
SETUPS = {TRAIN: range(1, 17), EVAL: range(17, 21)}


@dataclass(frozen=True)
class Options:
    """All that the files depend on."""

    train_clips: int = 1280
    eval_clips: int = 200
    frames: tuple[int, int] = (18, 30)
    """Fewest and most frames of a clip."""

    size: Size = (160, 120)
    """Width and height of the RGB frames."""

    depth_size: Size = (128, 96)
    seed: int = 0
    complementary: bool = False
    """Push and pull happen in the dark, circles out of the depth sensor's reach: no modality alone
    can tell all gestures."""

    def __post_init__(self) -> None:
        if self.train_clips < 1 or self.eval_clips < 1:
            raise ValueError("sample data: both lists need at least one clip")
        if not 2 <= self.frames[0] <= self.frames[1]:
            raise ValueError(f"sample data: frames {self.frames} must be 2 <= fewest <= most")
        if min(*self.size, *self.depth_size) < 16:
            raise ValueError("sample data: frames must be at least 16 pixels wide and high")
        if self.seed < 0:
            raise ValueError(f"sample data: seed {self.seed} must not be negative")


@dataclass(frozen=True)
class ClipPlan:
    """One clip to write."""

    split: int
    """TRAIN or EVAL."""

    index: int
    """Its place in the list, from 0."""

    num_frames: int

    @property
    def label(self) -> int:
        return self.index % len(scenes.GESTURES)

    @property
    def take(self) -> int:
        """Which round of all gestures this is; it decides who performs where."""
        return self.index // len(scenes.GESTURES)

    @property
    def performer(self) -> int:
        return PERFORMERS[self.split][self.take % len(PERFORMERS[self.split])]

    @property
    def setup(self) -> int:
        return SETUPS[self.split][self.take % len(SETUPS[self.split])]

    @property
    def camera(self) -> int:
        return self.take % len(scenes.CAMERA_YAW)

    @property
    def name(self) -> str:
        """As in the lists, `S001C001P001R001A001_rgb`."""
        replication = 1 + self.take // len(PERFORMERS[self.split])
        return (
            f"S{self.setup:03d}C{self.camera + 1:03d}P{self.performer:03d}"
            f"R{replication:03d}A{self.label + 1:03d}_rgb"
        )

    def folders(self, out: Path) -> tuple[Path, Path]:
        return out / RGB_FOLDER / self.name, out / DEPTH_FOLDER / self.name.removesuffix("_rgb")


@dataclass(frozen=True)
class Summary:
    """What `write_dataset` leaves on disk."""

    root: Path
    train_list: Path
    eval_list: Path
    clips: int
    frames: int
    """Of each modality."""

    written: int
    """Clips this call wrote; the others were there."""


def write_dataset(
    out: str | Path, *, workers: int | None = None, progress: bool = True, **options: Any
) -> Summary:
    """Write what is missing of the data set in `out`: nothing the second time, the rest after a
    kill. One writer at a time.

    `options`: fields of `Options`. `workers`: processes, by default one per core this process may
    use; 1 writes in this process. Raises ValueError for impossible options and for a folder that
    holds anything else.
    """
    given = Options(**options)
    root = Path(out)
    _claim(root, given)
    train, evaluation = plan_clips(given, TRAIN), plan_clips(given, EVAL)
    clips = [*train, *evaluation]
    missing = [clip for clip in clips if not all(f.is_dir() for f in clip.folders(root))]
    _write_clips(root, given, missing, workers or usable_cores(), progress)
    lists = root / "train.txt", root / "eval.txt"
    for path, listed in zip(lists, (train, evaluation), strict=True):
        lines = [f"{clip.name} {clip.num_frames} {clip.label}\n" for clip in listed]
        _write_new(path, "".join(lines))
    _write_new(root / "classes.txt", "".join(f"{name}\n" for name in scenes.GESTURES))
    return Summary(root, *lists, len(clips), sum(c.num_frames for c in clips), len(missing))


def plan_clips(options: Options, split: int) -> list[ClipPlan]:
    """The clips of one list; a longer list begins with the shorter one."""
    low, high = options.frames
    count = options.train_clips if split == TRAIN else options.eval_clips
    lengths = [_rng(options, split, i, LENGTH).integers(low, high + 1) for i in range(count)]
    return [ClipPlan(split, index, int(length)) for index, length in enumerate(lengths)]


def draw_scene(options: Options, clip: ClipPlan, rng: np.random.Generator) -> scenes.Scene:
    """The clip's performer and setup by their numbers, all else from `rng`."""
    performer = scenes.draw_performer(_rng(options, PERFORMER, clip.performer))
    setup = _rng(options, SETUP, clip.setup)
    camera = scenes.draw_camera(setup, rng, scenes.CAMERA_YAW[clip.camera])
    return scenes.draw_scene(rng, clip.label, clip.num_frames, performer, camera)


def render_clip(options: Options, clip: ClipPlan) -> Iterator[tuple[Image, Depth]]:
    """Frame by frame: (H, W, 3) uint8 BGR and (H', W') uint16 millimetres."""
    rng = _rng(options, clip.split, clip.index, CONTENT)
    scene = draw_scene(options, clip, rng)
    background = drawing.draw_background(rng, options.size, scene.outfit.gloves)
    sensors = drawing.draw_sensors(rng, options.size, options.depth_size)
    if options.complementary:
        pair = scene.path.pair
        dark, far = pair == scenes.IN_THE_DARK, pair == scenes.OUT_OF_REACH
        sensors = drawing.blinded(sensors, rgb=dark, depth=far)
    for frame in range(clip.num_frames):
        parts = scenes.body_parts(scene, frame)
        rgb = drawing.draw_rgb(parts, scene.camera, background)
        depth = drawing.draw_depth(parts, scene.camera, options.depth_size)
        top, left = rng.integers(drawing.MARGIN + 1, size=2)
        yield (
            drawing.seen_rgb(rgb, sensors, (top, left)),
            drawing.seen_depth(depth, sensors, (top, left)),
        )


def write_clip(out: Path, options: Options, clip: ClipPlan) -> None:
    """Write both folders of a clip. They get their names when they are whole."""
    finals = clip.folders(out)
    rgb_part, depth_part = (folder.with_name(PART + folder.name) for folder in finals)
    for folder in (rgb_part, depth_part, *finals):
        shutil.rmtree(folder, ignore_errors=True)
    rgb_part.mkdir(parents=True)
    depth_part.mkdir(parents=True)
    for number, (rgb, depth) in enumerate(render_clip(options, clip), start=1):
        _write_image(rgb_part / f"{number:06d}.jpg", rgb, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        _write_image(depth_part / f"MDepth-{number:08d}.png", depth, [])
    rgb_part.rename(finals[0])
    depth_part.rename(finals[1])


def _write_clips(
    out: Path, options: Options, clips: Sequence[ClipPlan], workers: int, progress: bool
) -> None:
    write = partial(write_clip, out, options)
    hidden = None if progress else True  # None: shown on a terminal only
    bar = partial(tqdm, total=len(clips), desc=f"writing {out}", unit="clip", disable=hidden)
    if not clips:
        return
    if workers == 1:
        for clip in bar(clips):
            write(clip)
        return
    # spawn: a fork of a process with threads (torch, OpenCV) may hang
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(clips)), context, _start_worker) as pool:
        for _ in bar(pool.map(write, clips, chunksize=4)):
            pass


def _start_worker() -> None:
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent tells its pool nothing: without this, workers would write on beside the next
    call's and then wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _claim(root: Path, options: Options) -> None:
    """Make `root` the place of this data set, or raise ValueError if it holds something else."""
    stamp = json.dumps({"version": VERSION, **asdict(options)}, indent=1) + "\n"
    path = root / STAMP
    if path.is_file():
        if path.read_text() != stamp:
            raise ValueError(
                f"{path}: made with other options; delete {root} or take another folder"
            )
        return
    if root.is_dir() and any(not entry.name.startswith(PART) for entry in root.iterdir()):
        raise ValueError(f"{root}: holds files but no {STAMP}; take a new or an empty folder")
    root.mkdir(parents=True, exist_ok=True)
    _write_new(path, stamp)


def _write_new(path: Path, text: str) -> None:
    """Write atomically, and not at all where the file already reads so."""
    if path.is_file() and path.read_text() == text:
        return
    part = path.with_name(PART + path.name)
    part.write_text(text)
    part.replace(path)


def _write_image(path: Path, image: np.ndarray, parameters: list[int]) -> None:
    ok, data = cv2.imencode(path.suffix, image, parameters)
    assert ok, path
    try:
        path.write_bytes(data.tobytes())
    except OSError as error:  # a full disk: the system's message has no file name
        raise OSError(error.errno, error.strerror, str(path)) from error


def _rng(options: Options, stream: int, number: int, purpose: int = 0) -> np.random.Generator:
    return np.random.default_rng([options.seed, stream, number, purpose])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.synthetic",
        description="Write the sample RGB-D gesture data set. A second call writes nothing; after "
        "a kill, the next call writes the rest.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add, pair = parser.add_argument, partial(parser.add_argument, nargs=2, type=int)
    add("out", metavar="OUT", help="folder: new, empty, or of an earlier call")
    add("--clips", type=int, default=Options.train_clips, help="clips in train.txt")
    add("--eval-clips", type=int, default=Options.eval_clips, help="clips in eval.txt")
    pair("--frames", metavar=("LO", "HI"), default=Options.frames, help="fewest and most per clip")
    pair("--size", metavar=("W", "H"), default=Options.size, help="RGB frames, pixels")
    pair(
        "--depth-size", metavar=("W", "H"), default=Options.depth_size, help="depth frames, pixels"
    )
    add("--seed", type=int, default=Options.seed, help="another seed, another data set")
    add(
        "--complementary", action="store_true", help="push and pull happen in the dark (seen by "
        "depth only), circles out of the depth sensor's reach (seen by RGB only)",
    )  # fmt: skip
    add("--workers", type=int, default=usable_cores(), help="processes")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    given = _parser().parse_args(arguments)
    try:
        summary = write_dataset(
            given.out,
            workers=given.workers,
            train_clips=given.clips,
            eval_clips=given.eval_clips,
            frames=tuple(given.frames),
            size=tuple(given.size),
            depth_size=tuple(given.depth_size),
            seed=given.seed,
            complementary=given.complementary,
        )
    except (ValueError, OSError) as error:
        sys.exit(f"pipelines.synthetic: {error}")
    print(
        f"{summary.root}: {summary.clips} clips, {summary.frames} RGB and as many depth frames; "
        f"{summary.written} clips written now"
    )


if __name__ == "__main__":
    main()
