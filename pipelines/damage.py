"""Which clips do not decode: each looked at once from end to end, and remembered. For quarantine,
which must know before an epoch begins what all ranks leave out of it."""

import multiprocessing
import os
from collections.abc import Hashable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from pipelines.cache import JsonLines
from pipelines.cores import usable_cores
from pipelines.folders import FrameList, Frames
from pipelines.media import Media, PackedFrames, PackedVideo, VideoFile
from pipelines.verify import dali_refuses, first_refused, image_problem, problem

Key = TypeVar("Key", bound=Hashable)
Looked = tuple[Media, int, bool]
"""A clip's media, its number of frames, and whether these promise 16-bit millimetres."""

CLIPS_PER_PROCESS = 20
"""Some seconds of work: less does not pay for starting another process."""


def find_damage(
    wanted: Mapping[Key, Looked], root: str, cache: JsonLines, processes: int | None = None
) -> dict[Key, str]:
    """What is wrong with each clip of which anything is, in one line.

    Clips whose files are as old, as large and as many as when they were last looked at are not
    looked at again. Videos were decoded when their frames were counted (pipelines/video_index.py);
    of those in packs the bytes are held to their CRC32, by which they are known to have been.
    """
    pending, stamps, results = [], {}, {}
    for key, (media, num_frames, in_mm) in wanted.items():
        if isinstance(media, VideoFile):
            continue
        stamps[key] = [*_stamp(media), num_frames, in_mm]
        known = cache.get(_name(media, root))
        if known and known[0] == stamps[key]:
            results[key] = known[1]
        else:
            pending.append(key)
    if processes is None:
        processes = min(usable_cores(), max(len(pending) // CLIPS_PER_PROCESS, 1))
    looked = _look_at([wanted[key] for key in pending], processes)
    bar = tqdm(looked, "verifying clips", len(pending), unit="clip", delay=1, disable=None)
    for key, found in zip(pending, bar, strict=True):
        results[key] = found
        cache.put(_name(wanted[key][0], root), [stamps[key], found])
    return {key: what for key in wanted if (what := results.get(key))}


def _look_at(clips: list[Looked], processes: int) -> Iterator[str | None]:
    if processes == 1:
        yield from map(_damage, clips)
        return
    # Spawned, not forked: the caller may hold threads and a CUDA context.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context) as pool:
        yield from pool.map(_damage, clips)


def _damage(clip: Looked) -> str | None:
    """The first bad frame of a clip and what is wrong with it."""
    media, num_frames, in_mm = clip
    if isinstance(media, PackedVideo):
        try:
            media.data()
        except (ValueError, OSError) as error:
            return str(error)
        return None
    if isinstance(media, PackedFrames):
        return _packed_damage(media, num_frames, in_mm)
    assert isinstance(media, (Frames, FrameList))
    paths = list(map(media.path, range(num_frames)))
    for path in paths:
        if found := problem(path, in_mm):
            return f"{path}: {found[0]}"
    images = [Path(path).read_bytes() for path in paths]
    refused = first_refused(images, in_mm)
    return None if refused is None else f"{paths[refused]}: {dali_refuses(images[refused])}"


def _packed_damage(media: PackedFrames, num_frames: int, in_mm: bool) -> str | None:
    images: list[bytes] = []
    for number in range(num_frames):
        try:
            if media.is_lz4:
                media.decode([number])
                continue
            (data,) = media.encoded([number])
        except (ValueError, OSError) as error:
            return str(error)
        if found := image_problem(data.tobytes(), in_mm):
            return f"{media.name} frame {number}: {found[0]}"
        images.append(data.tobytes())
    refused = first_refused(images, in_mm)
    if refused is None:
        return None
    return f"{media.name} frame {refused}: {dali_refuses(images[refused])}"


def _stamp(media: Media) -> list[int]:
    """Changes when any of the clip's files does: their number, bytes and newest change."""
    if isinstance(media, (PackedFrames, PackedVideo)):
        return [1, 0, media.changed_ns()]
    assert isinstance(media, Frames)
    try:
        with os.scandir(media.folder) as entries:
            states = [entry.stat() for entry in entries]
    except OSError:  # vanished since it was listed: looked at, and found missing
        return [0, 0, 0]
    newest = max((state.st_mtime_ns for state in states), default=0)
    return [len(states), sum(state.st_size for state in states), newest]


def _name(media: Media, root: str) -> str:
    return os.path.relpath(media.name, root)
