"""The regions of interest of a whole depth data set: computed once, by several processes, and kept.
What a region of interest is: pipelines/depth.py."""

import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from io import BytesIO

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pipelines.cache import open_cache
from pipelines.config import DataConfig
from pipelines.cores import usable_cores
from pipelines.depth import DepthBoxes, box_centre, read_depth, wrap
from pipelines.index import ClipIndex
from pipelines.media import Media, PackedFrames, PackedVideo, VideoFile

FRAMES_PER_PROCESS = 4000
"""Some seconds of work: less does not pay for starting another process."""


Centres = tuple[list[int], list[int]]
"""Height and width of a clip's frames; cx, cy of frame after frame, -1, -1 where there is none."""


def depth_boxes(
    index: ClipIndex,
    config: DataConfig,
    log: Callable[[str], None] = print,
    processes: int | None = None,
) -> DepthBoxes:
    """The box of every frame of every clip of the list.

    Only clips whose folder changed since the last time (files added, removed or replaced, not
    rewritten in place) are computed, and a killed run goes on where it was. `processes`: by default
    as many as pay, up to one per core; 1 is this one. Raises ValueError for the first file that is
    no 16-bit depth.
    """
    cache = open_cache(config, "depth_boxes", log)
    media = index.media["depth"]
    clips = [(media[i], clip.num_frames) for i, clip in enumerate(index.clips)]
    keys = [os.path.relpath(files.name, index.root) for files in media]
    changed = [files.changed_ns() for files in media]
    pending = [
        i
        for i, key in enumerate(keys)
        # Time of the folder's last change, number of frames, and what was computed.
        if (cache.get(key) or [])[:2] != [changed[i], clips[i][1]]
    ]
    results = _compute([clips[i] for i in pending], processes)
    bar = tqdm(results, "depth boxes", len(pending), unit="clip", delay=1, disable=None)
    for i, centres in zip(pending, bar, strict=True):
        cache.put(keys[i], [changed[i], clips[i][1], *centres])
    return _fill_gaps([cache.get(key)[2:] for key in keys])


def boxes_of(clips: Sequence[tuple[Media, int]], processes: int | None = None) -> DepthBoxes:
    """The box of every frame of clips given as (media, number of frames); nothing is kept.

    Otherwise as `depth_boxes`.
    """
    return _fill_gaps(list(_compute(clips, processes)))


def _compute(clips: Sequence[tuple[Media, int]], processes: int | None) -> Iterator[Centres]:
    if processes is None:
        paying = sum(num_frames for _, num_frames in clips) // FRAMES_PER_PROCESS
        processes = min(usable_cores(), max(paying, 1))
    if processes == 1:
        yield from map(_clip_centres, clips)
        return
    # Spawned, not forked: the caller may hold threads and a CUDA context.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, _one_thread) as pool:
        yield from pool.map(_clip_centres, clips)


def _one_thread() -> None:
    cv2.setNumThreads(1)  # of a worker process: the pool already fills the cores


def _clip_centres(clip: tuple[Media, int]) -> Centres:
    frames, num_frames = clip
    size: tuple[int, ...] = ()
    centres: list[int] = []
    for number in range(num_frames):
        _, depth_mm = _read(frames, number)
        if size and depth_mm.shape != size:
            raise ValueError(_of_another_size(clip))
        size = depth_mm.shape
        centres += box_centre(wrap(depth_mm)) or (-1, -1)
    return list(size), centres


def _of_another_size(clip: tuple[Media, int]) -> str:
    """The complaint about the first frame that has not the size of most: any may be the odd one."""
    frames, num_frames = clip
    sizes = {name: mm.shape for name, mm in (_read(frames, n) for n in range(num_frames))}
    (height, width), _ = Counter(sizes.values()).most_common(1)[0]
    name = next(name for name, size in sizes.items() if size != (height, width))
    return (
        f"{name}: {sizes[name][1]}x{sizes[name][0]} pixels, the clip's other frames have "
        f"{width}x{height}; bring them to one size"
    )


def _read(media: Media, number: int) -> tuple[str, NDArray[np.uint16]]:
    """What to call the frame in messages, and its (H, W) millimetres."""
    assert not isinstance(media, (VideoFile, PackedVideo)), "no video holds 16-bit depth"
    if not isinstance(media, PackedFrames):
        path = media.path(number)
        return path, read_depth(path)
    name, frames = f"{media.name} frame {number}", np.array([number])
    if media.is_lz4:
        return name, media.decode(frames)[0, ..., 0]
    return name, read_depth(BytesIO(media.encoded(frames)[0].tobytes()), name)


def _fill_gaps(clips: Sequence[Centres]) -> DepthBoxes:
    """A frame without a centre takes the nearest frame's (the earlier of two), else the middle."""
    filled: list[NDArray[np.int16]] = []
    from_neighbour = from_centre = 0
    for (height, width), flat in clips:
        centres = np.array(flat, np.int16).reshape(-1, 2)
        known = np.flatnonzero(centres[:, 0] >= 0)
        if len(known):
            distance = np.abs(np.arange(len(centres))[:, None] - known)
            filled.append(centres[known[distance.argmin(axis=1)]])
            from_neighbour += len(centres) - len(known)
        else:
            filled.append(np.full_like(centres, (width // 2, height // 2)))
            from_centre += len(centres)
    sizes = tuple((height, width) for (height, width), _ in clips)
    return DepthBoxes(tuple(filled), sizes, from_neighbour, from_centre)
