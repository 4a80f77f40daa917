"""Verify a prepared data set: decode everything once, compare counts and checksums.

  python -m pipelines.check /data/ntu

Names every damaged file and changes nothing. Exit status 0 if all is sound, 1 if not.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipelines import manifest
from pipelines.cores import usable_cores
from pipelines.ffmpeg import DamagedSource, decode
from pipelines.manifest import Entry, checksum
from pipelines.pack_check import verify
from pipelines.pack_reader import Pack, find_shards
from pipelines.preparation import SUMMARY
from pipelines.verify import problem

MOST_SHOWN = 50
Problem = tuple[str, str]
"""A file and what is wrong with it."""


@dataclass(frozen=True)
class Report:
    """What was looked at and what was found."""

    clips: int
    """Folders of frames and videos, those of each modality for itself."""

    frames: int
    bytes: int
    damaged: dict[str, list[Problem]]
    """By output as in the manifest; split lists by their own path."""


def check(out: str, jobs: int, progress: bool = True) -> Report:
    """Looks at every file of the prepared folder. ValueError: it is none."""
    if _is_prepared_pack(out):
        return _check_pack(out, jobs)
    try:
        entries = manifest.read(out)
    except OSError as error:
        raise ValueError(
            f"{error.filename}: {error.strerror}; give a folder made by python -m pipelines.prepare"
        ) from None
    damaged = {path: [(path, what)] for path, what in _list_problems(out)}
    with ThreadPoolExecutor(jobs) as pool:
        try:
            found = pool.map(lambda item: list(_problems(out, *item)), entries.items())
            bar = tqdm(
                found, "checking", len(entries), unit="clip", disable=None if progress else True
            )
            for path, problems in zip(entries, bar, strict=True):
                if problems:
                    damaged[path] = problems
        finally:
            pool.shutdown(cancel_futures=True)
    every = entries.values()
    return Report(len(entries), sum(e.frames for e in every), sum(e.bytes for e in every), damaged)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 1 if anything is damaged or the folder is none."""
    options = command_line().parse_args(arguments)
    try:
        report = check(options.folder, options.jobs)
        if options.json:
            with open(options.json, "w", encoding="utf-8") as file:
                json.dump(asdict(report), file, indent=1)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(as_text(report, options.folder))
    return 1 if report.damaged else 0


def as_text(report: Report, folder: str) -> str:
    """The report for people."""
    lines = [
        f"{folder}: {report.clips} clips, {report.frames} frames, {report.bytes / 1e9:.3f} GB; "
        f"{len(report.damaged)} damaged"
    ]
    problems = [problem for found in report.damaged.values() for problem in found]
    lines += [f"  {file}: {what}" for file, what in problems[:MOST_SHOWN]]
    if len(problems) > MOST_SHOWN:
        lines.append(f"  and {len(problems) - MOST_SHOWN} more; --json FILE lists all")
    if problems:
        lines.append("  delete what is damaged and prepare again: only that is made anew")
    return "\n".join(lines)


def command_line() -> argparse.ArgumentParser:
    """DIR [--json FILE] [--jobs N]"""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.check",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("folder", metavar="DIR", help="--out of python -m pipelines.prepare")
    parser.add_argument("--json", metavar="FILE", help="write the report there too")
    parser.add_argument(
        "--jobs",
        type=int,
        default=usable_cores(),
        metavar="N",
        help="clips at a time (default: one per core, here %(default)s)",
    )
    return parser


def _is_prepared_pack(out: str) -> bool:
    """Whether it was made with --as packs, whose frames may be gone."""
    there = {name: os.path.exists(os.path.join(out, name)) for name in (manifest.FILE, SUMMARY)}
    return there == {manifest.FILE: False, SUMMARY: True} and bool(find_shards(Path(out)))


def _check_pack(out: str, jobs: int) -> Report:
    pack = Pack.open(out)
    damaged = {path: [(path, what)] for path, what in _list_problems(out)}
    for found in verify(pack, jobs):
        shard = found.shard.name
        what = found.problem.removeprefix(f"{found.shard}: ")
        damaged.setdefault(found.clip or shard, []).append((shard, what))
    if len(pack) < (clips := _summary(out).get("clips", 0)):
        damaged["shards"] = [("shards", f"hold {len(pack)} of the {clips} clips in {SUMMARY}")]
    tracks = [(clip, modality) for clip in pack.names for modality in pack.modalities(clip)]
    frames = sum(pack.info(*track).num_frames for track in tracks)
    return Report(len(tracks), frames, sum(pack.stored_bytes(*t) for t in tracks), damaged)


def _list_problems(out: str) -> Iterator[Problem]:
    summary = _summary(out)
    if "lists" not in summary:
        yield SUMMARY, "missing or damaged: the preparation has not ended; start it again"
        return
    for path, facts in summary["lists"].items():
        try:
            with open(os.path.join(out, path), "rb") as file:
                if checksum(file.read()) != facts["crc32"]:
                    yield path, "changed since it was written"
        except OSError as error:
            yield path, error.strerror or str(error)


def _summary(out: str) -> dict[str, Any]:
    """Of the preparation; empty where there is none, or no sound one."""
    try:
        with open(os.path.join(out, SUMMARY), encoding="utf-8") as file:
            summary = json.load(file)
    except (OSError, ValueError):
        return {}
    return summary if isinstance(summary, dict) else {}


def _problems(out: str, path: str, entry: Entry) -> Iterator[Problem]:
    """What is wrong with the files of one output, by their paths below `out`."""
    files = entry.files(path)
    sums = [entry.crc32[start : start + 8] for start in range(0, len(entry.crc32), 8)]
    for file, expected in zip(files, sums, strict=True):
        if what := _file_problem(os.path.join(out, file), expected, entry):
            yield file, what
    if entry.pattern:
        extra = os.path.join(path, entry.pattern.format(frame=entry.first + entry.frames))
        if os.path.exists(os.path.join(out, extra)):
            yield extra, f"one frame more than the {entry.frames} that were prepared"


def _file_problem(file: str, expected: str, entry: Entry) -> str | None:
    try:
        with open(file, "rb") as content:
            same = checksum(content.read()) == expected
    except OSError as error:
        return error.strerror or str(error)
    if entry.pattern:
        found = problem(file, entry.millimetres)
        what = found[0] if found else None
    else:
        what = _video_problem(file, entry.frames)
    return what if what or same else "can be decoded, but is not what was prepared"


def _video_problem(file: str, frames: int) -> str | None:
    try:
        count = sum(1 for _ in decode(file))
    except DamagedSource as error:
        return str(error).removeprefix(f"{file}: ")
    return None if count == frames else f"{count} frames, {frames} were prepared"


if __name__ == "__main__":
    sys.exit(main())
