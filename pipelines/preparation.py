"""A download -> a prepared folder: clips in parallel, then split lists and a summary. What a clip
becomes is for pipelines/frames_writer.py, what is in a download for pipelines/datasets/."""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from tqdm import tqdm

from pipelines import manifest
from pipelines.datasets.download import Download, Images, SourceClip, Video
from pipelines.ffmpeg import DamagedSource
from pipelines.frames_writer import ClipWriter, Form, Written
from pipelines.layouts import is_stored_in_mm
from pipelines.manifest import Entry, Manifest, checksum

SUMMARY = "prepare.json"


@dataclass(frozen=True)
class Summary:
    """What a prepared folder holds; in SUMMARY as JSON."""

    dataset: str
    form: dict[str, Any]
    clips: int
    frames: dict[str, int]
    """By modality."""

    bytes: int
    boxes_from_neighbour: int
    """RGB frames cut around the person of the nearest depth frame, having none of their own."""

    boxes_from_middle: int
    """RGB frames cut around their middle: no depth frame of the clip shows anyone."""

    rejected: dict[str, str]
    """Why a clip is in no list, by its name."""

    lists: dict[str, dict[str, Any]]
    """Clips and checksum of each split list, by path."""

    notes: tuple[str, ...]


def claim(source: str, out: str) -> None:
    """Make `out` a folder to prepare into. ValueError if it holds something else, or the source."""
    if not os.path.isdir(source):
        raise ValueError(f"{source}: no such folder; give the downloaded data set as --source")
    real_source, real_out = (os.path.join(os.path.realpath(p), "") for p in (source, out))
    if real_source.startswith(real_out) or real_out.startswith(real_source):
        raise ValueError(f"{out}: --out and --source ({source}) overlap; take a folder beside it")
    if os.path.isdir(out) and os.listdir(out) and manifest.FILE not in os.listdir(out):
        raise ValueError(f"{out}: holds files but no {manifest.FILE}; take a new or empty folder")
    os.makedirs(out, exist_ok=True)


def check_videos(download: Download) -> None:
    """ValueError where a clip is no video as a whole, so that no copy of one would be the clip."""
    for clip in download.clips:
        for stream in clip.streams:
            source = stream.source
            if isinstance(source, Video) and source.window:
                what = f"only its frames {source.window[0]} to {source.window[1] - 1} are the clip"
            elif isinstance(source, Images) and not is_stored_in_mm(
                download.layout, stream.modality
            ):
                what = "a folder of frames"
            else:
                continue
            raise ValueError(
                f"{source.path}: {what}, and --as copies takes whole videos; choose --as frames, "
                "videos or packs"
            )


def prepare(
    dataset: str, download: Download, out: str, form: Form, jobs: int, progress: bool = True
) -> tuple[Summary, int]:
    """Everything of the download into the folder `out`, as claimed: the summary, and how many clips
    were made just now. Clips that are there already are not made again."""
    book = Manifest(out)
    results: dict[str, Written] = {}
    rejected = dict(download.rejected)
    try:
        writer = ClipWriter(out, download.layout, form, book)
        for clip, result in _each(writer, download.clips, jobs, progress):
            if isinstance(result, str):
                rejected[clip.name] = result
            else:
                results[clip.name] = result
    finally:
        book.close()
    entries = {clip: written.outputs for clip, written in results.items()}
    lists = _write_lists(download, entries, out)
    summary = _summary(dataset, download, form, entries, rejected, lists)
    _write(os.path.join(out, SUMMARY), json.dumps(asdict(summary), indent=1) + "\n")
    return summary, sum(written.is_new for written in results.values())


def _each(
    writer: ClipWriter, clips: tuple[SourceClip, ...], jobs: int, progress: bool
) -> Iterator[tuple[SourceClip, Written | str]]:
    """Each clip with its outputs, or with why it has none. FFmpeg and OpenCV work outside Python's
    lock: threads are enough."""

    def work(clip: SourceClip) -> Written | str:
        try:
            return writer.write(clip)
        except DamagedSource as error:
            return str(error)

    with ThreadPoolExecutor(jobs) as pool:
        try:
            done = pool.map(work, clips)
            bar = tqdm(
                done, "preparing", len(clips), unit="clip", disable=None if progress else True
            )
            yield from zip(clips, bar, strict=True)
        finally:  # after an error or Ctrl-C: finish only what is begun
            pool.shutdown(cancel_futures=True)


def _write_lists(
    download: Download, results: dict[str, dict[str, Entry]], out: str
) -> dict[str, dict[str, Any]]:
    """The split lists, without the rejected clips; clips and checksum of each by path."""
    lists = {}
    for path, lines in download.lists.items():
        text = "".join(
            f"{line.name} {results[line.clip][line.modality].frames} {line.label}\n"
            for line in lines
            if line.clip in results
        )
        os.makedirs(os.path.dirname(os.path.join(out, path)), exist_ok=True)
        _write(os.path.join(out, path), text)
        lists[path] = {"clips": text.count("\n"), "crc32": checksum(text.encode())}
    if download.classes:
        _write(os.path.join(out, "classes.txt"), "".join(f"{c}\n" for c in download.classes))
    return lists


def _summary(
    dataset: str,
    download: Download,
    form: Form,
    results: dict[str, dict[str, Entry]],
    rejected: dict[str, str],
    lists: dict[str, dict[str, Any]],
) -> Summary:
    entries = [(m, entry) for clip in results.values() for m, entry in clip.items()]
    frames: dict[str, int] = {}
    for modality, entry in entries:
        frames[modality] = frames.get(modality, 0) + entry.frames
    return Summary(
        dataset=dataset,
        form=asdict(form),
        clips=len(results),
        frames=frames,
        bytes=sum(entry.bytes for _, entry in entries),
        boxes_from_neighbour=sum(entry.boxes[0] for _, entry in entries),
        boxes_from_middle=sum(entry.boxes[1] for _, entry in entries),
        rejected=dict(sorted(rejected.items())),
        lists=lists,
        notes=download.notes,
    )


def _write(path: str, text: str) -> None:
    part = f"{path}.partial"
    with open(part, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
    os.replace(part, path)
