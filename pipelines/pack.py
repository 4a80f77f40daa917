"""Write, look at and check clip packs: WebDataset tar shards with both modalities of each clip.

    python -m pipelines.pack write --config configs/X.yaml --out PACK [data.key=value ...]
    python -m pipelines.pack list PACK
    python -m pipelines.pack check PACK

`write` packs the clips of the config's two lists (all modalities of data.modality: rgbd for both)
and copies the lists, so that data.root=PACK is all that training needs. Images and videos go in as
they are: data.source says which where both are there. What a pack is made of: docs/packs.md.
"""

import argparse
import os
import shutil
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from pipelines.config import DataConfig
from pipelines.cores import usable_cores
from pipelines.data_section import read_data_section
from pipelines.depth import read_depth
from pipelines.folders import Frames
from pipelines.index import ClipIndex, scan
from pipelines.media import VideoFile
from pipelines.pack_check import verify
from pipelines.pack_format import (
    LZ4,
    PackedClip,
    Track,
    depth_track,
    image_track,
    video_track,
)
from pipelines.pack_reader import Pack
from pipelines.pack_writer import SHARD_BYTES, PackWriter
from pipelines.verify import JPEG_END, PNG_END, problem
from pipelines.video import file_state

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass
class SourceClip:
    """A clip as files, from one line of a list or several."""

    name: str
    listed_frames: int
    """The most that a line asks for; a video is packed whole."""

    media: dict[str, Frames | VideoFile]
    """By modality."""

    listed: list[tuple[str, int]] = field(default_factory=list)
    """Split and label of each line."""

    def num_frames(self) -> dict[str, int]:
        """That are packed of each modality."""
        return {
            modality: self.listed_frames if isinstance(media, Frames) else media.info.num_frames
            for modality, media in self.media.items()
        }


def write(
    config: DataConfig,
    folder: str | Path,
    threads: int = 1,
    shard_bytes: int = SHARD_BYTES,
    log: Callable[[str], None] = print,
) -> int:
    """Packs the clips of both lists, copies the lists; how many clips were written now.

    After a kill the next call writes the rest. Raises ValueError naming the first unusable file.
    """
    indices = {split: scan(config, split, log) for split in ("train", "eval")}
    clips = _source_clips(indices)
    with PackWriter(folder, shard_bytes) as writer, ThreadPoolExecutor(threads) as pool:
        todo = [c for c in clips if not writer.holds(c.name, c.num_frames())]
        packed = in_order(pool, partial(read_clip, config), todo, ahead=2 * threads)
        for clip in tqdm(packed, "packing", len(todo), unit="clip", disable=None):
            writer.add(clip)
    _copy_lists(config, indices, Path(folder), log)
    return len(todo)


def _source_clips(indices: dict[str, ClipIndex]) -> list[SourceClip]:
    """Each clip once, in the order of the lists."""
    clips: dict[str, SourceClip] = {}
    for split, index in indices.items():
        for number, listed in enumerate(index.clips):
            media: dict[str, Frames | VideoFile] = {}
            for modality, of_clips in index.media.items():
                files = of_clips[number]
                if not isinstance(files, (Frames, VideoFile)):
                    raise ValueError(
                        f"{files.name}: packs are made of frame folders and videos; set "
                        "data.source=frames or data.source=videos"
                    )
                media[modality] = files
            clip = clips.setdefault(listed.name, SourceClip(listed.name, 0, media))
            clip.listed_frames = max(clip.listed_frames, listed.num_frames)
            clip.listed.append((split, listed.label))
    return list(clips.values())


def read_clip(config: DataConfig, clip: SourceClip) -> PackedClip:
    """Image files and videos as they are, 16-bit depth compressed."""
    tracks = {}
    for modality, frames in clip.media.items():
        if isinstance(frames, VideoFile):
            tracks[modality] = _video(frames, clip.name)
            continue
        paths = [frames.path(number) for number in range(clip.listed_frames)]
        try:
            tracks[modality] = _depth(paths) if config.in_mm(modality) else _images(paths)
        except ValueError as error:
            where = "" if str(error).startswith(frames.folder) else f"{frames.folder}: "
            raise ValueError(f"{where}{error} (clip '{clip.name}')") from None
    return PackedClip(clip.name, tracks, clip.listed)


def _video(video: VideoFile, clip: str) -> Track:
    data, info = Path(video.path).read_bytes(), video.info
    if file_state(video.path) != info.state:
        raise ValueError(f"{video.path}: was replaced while in use; start again (clip '{clip}')")
    container = Path(video.path).suffix[1:].lower()
    return video_track(data, container, info.num_frames, info.height, info.width)


def _images(paths: Sequence[str]) -> Track:
    files = []
    for path in paths:
        files.append(Path(path).read_bytes())
        # Most damaged files lack their end; bytes after it are legal, and told by a slow look.
        if not files[-1].endswith((JPEG_END, PNG_END)) and (found := problem(path, False)):
            raise ValueError("{}: {}; {}".format(path, *found))
    return image_track(files)


def _depth(paths: Sequence[str]) -> Track:
    frames = [read_depth(path) for path in paths]
    for path, frame in zip(paths, frames, strict=True):
        if frame.shape != frames[0].shape:
            raise ValueError(f"{path}: of another size than {paths[0]}; bring them to one size")
    return depth_track(np.stack(frames))


def in_order(
    pool: Executor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
    """As `pool.map`, holding at most `ahead` results that nobody has asked for yet."""
    pending: deque[Future[Result]] = deque()
    for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) > ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _copy_lists(
    config: DataConfig, indices: dict[str, ClipIndex], folder: Path, log: Callable[[str], None]
) -> None:
    """The lists, at the same place below the pack, and the names of the classes."""
    copies = {Path(indices["train"].root, "classes.txt"): folder / "classes.txt"}
    for split, index in indices.items():
        listed = os.path.normpath(getattr(config, f"{split}_list"))
        outside = os.path.isabs(listed) or listed.startswith(("..", "~"))
        target = folder / (f"{split}.txt" if outside else listed)
        copies[Path(index.list_path)] = target
        if outside:
            log(f"{index.list_path}: is outside data.root; with data.root={folder} set "
                f"data.{split}_list={target.name}")  # fmt: skip
    for source, target in copies.items():
        if source.exists() and not (target.exists() and target.samefile(source)):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)


def summary(pack: Pack) -> str:
    """What a pack holds, for people."""
    size = sum(path.stat().st_size for path in pack.shards)
    lines = [f"{pack.folder}: {len(pack)} clips in {len(pack.shards)} shards, {size / 1e6:.1f} MB"]
    totals: dict[tuple[str, str], list[int]] = {}
    for clip in pack.names:
        for modality in pack.modalities(clip):
            info = pack.info(clip, modality)
            stored = pack.stored_bytes(clip, modality)
            raw = info.num_frames * info.height * info.width * (2 if info.encoding == LZ4 else 3)
            total = totals.setdefault((modality, info.encoding), [0, 0, 0, 0])
            for place, number in enumerate((1, info.num_frames, stored, raw)):
                total[place] += number
    for (modality, encoding), (clips, frames, stored, raw) in totals.items():
        lines.append(
            f"  {modality} {encoding}: {clips} clips, {frames} frames, {stored / 1e6:.1f} MB, "
            f"{raw / stored:.1f} times smaller than its pixels"
        )
    return "\n".join(lines)


def clip_lines(pack: Pack) -> Iterator[str]:
    """One line per clip: shard, name, and frames, size and encoding of each modality."""
    for clip in pack.names:
        parts = [pack.shard_of(clip).name, clip]
        for modality in pack.modalities(clip):
            info = pack.info(clip, modality)
            parts.append(
                f"{modality} {info.num_frames} x {info.width}x{info.height} {info.encoding}"
            )
        yield "\t".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 1 after what is damaged or one line that says what to mend."""
    given = command_line().parse_args(arguments)
    try:
        return given.action(given)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _write(given: argparse.Namespace) -> int:
    config = read_data_section(given.config, given.overrides)
    written = write(config, given.pack, given.threads, int(given.shard_mb * 2**20))
    print(summary(Pack.open(given.pack)))
    print(f"{written} clips written now; train from it with data.root={given.pack}")
    return 0


def _list(given: argparse.Namespace) -> int:
    pack = Pack.open(given.pack)
    if given.clips:
        for line in clip_lines(pack):
            # A name that is not UTF-8 is shown by its bytes.
            print(line.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"))
    print(summary(pack))
    return 0


def _check(given: argparse.Namespace) -> int:
    pack = Pack.open(given.pack)
    damage = verify(pack, given.threads)
    for found in damage:
        print(found.problem.encode("utf-8", "backslashreplace").decode())
    clips = len({found.clip for found in damage if found.clip})
    print(f"{given.pack}: {len(pack)} clips checked, {clips} damaged, {len(damage)} problems")
    return 1 if damage else 0


def command_line() -> argparse.ArgumentParser:
    """write | list | check, each with its own --help."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.pack",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, action: Callable[[argparse.Namespace], int], help: str):  # type: ignore[no-untyped-def]
        sub = commands.add_parser(
            name, help=help, description=help,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )  # fmt: skip
        sub.set_defaults(action=action)
        return sub.add_argument

    def reading(name: str, action: Callable[[argparse.Namespace], int], help: str):  # type: ignore[no-untyped-def]
        add = command(name, action, help)
        add("pack", metavar="PACK", help="folder of the pack")
        return add

    add = command(
        "write", _write, "pack the clips of a config's lists; again: only what is missing"
    )
    add("--config", required=True, metavar="FILE", help="YAML file; its data section is read")
    add("--out", required=True, dest="pack", metavar="PACK", help="folder: new, or of a pack")
    add("--shard-mb", type=float, default=SHARD_BYTES / 2**20, metavar="N", help="size of a shard")
    add("--threads", type=int, default=usable_cores(), help="clips read and compressed at a time")
    add("overrides", nargs="*", metavar="data.key=value", help="replaces one value of the file")
    add = reading("list", _list, "what a pack holds, and how much smaller than its pixels it is")
    add("--clips", action="store_true", help="a line for each clip, too")
    add = reading("check", _check, "decode every frame; name what is damaged, exit status 1 if any")
    add("--threads", type=int, default=usable_cores(), help="clips checked at a time")
    return parser


if __name__ == "__main__":
    sys.exit(main())
