"""Which frames make a clip and which clips make a batch. Index arithmetic: no files, no tensors."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

FRAMES, VIEW, BRANCHES, ORDER, DEPTH_VIEW = range(5)
"""What a random generator is for: one more draw for one purpose never shifts another."""


def clip_rng(seed: int, epoch: int, index: int, purpose: int) -> np.random.Generator:
    """The generator of one clip in one epoch: the same at any batch size, rank and restart."""
    return np.random.default_rng([seed, epoch, index, purpose])


def sample_frames(
    num_available: int, num_frames: int, rng: np.random.Generator | None
) -> NDArray[np.int64]:
    """One frame of each of `num_frames` equal segments of `num_available` frames -> (T,) sorted.

    A random frame of the segment, or floor(mean of its indices) where `rng` is None (evaluation).
    Clips shorter than T repeat frames (CVPR'22, published loader). Raises ValueError if either
    number is below 1.
    """
    if num_available < 1 or num_frames < 1:
        raise ValueError(f"cannot sample {num_frames} of {num_available} frames")
    start, stop = _segments(num_available, num_frames)
    return (start + stop - 1) // 2 if rng is None else rng.integers(start, stop)


@lru_cache(maxsize=4096)
def _segments(num_available: int, num_frames: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First frames of the segments, and the frames behind their last ones. Clips of a data set have
    few lengths, and a batch asks for four of these per clip."""
    segment = np.arange(num_frames, dtype=np.int64)
    start = num_available * segment // num_frames
    stop = np.maximum(start + 1, num_available * (segment + 1) // num_frames)
    for bounds in (start, stop):
        bounds.setflags(write=False)  # shared by all callers
    return start, stop


def branch_indices(
    num_frames: int, branch_frames: Sequence[int], rng: np.random.Generator | None
) -> tuple[NDArray[np.int64], ...]:
    """Which of a clip's T frames each temporal branch sees: one (f,) per branch, by that rule."""
    return tuple(sample_frames(num_frames, count, rng) for count in branch_frames)


@lru_cache(maxsize=4)  # each batch asks for its epoch's, and the next one's where that begins
def epoch_order(seed: int, epoch: int, num_clips: int) -> NDArray[np.int64]:
    """(num_clips,) permutation: the order in which an epoch visits the clips of the list."""
    order = clip_rng(seed, epoch, 0, ORDER).permutation(num_clips)
    order.setflags(write=False)  # shared by all callers
    return order


def stream_clips(seed: int, num_clips: int, start: int, stop: int) -> list[tuple[int, int]]:
    """(epoch, clip index) at positions start..stop-1 of the training stream.

    Training is one endless stream: the permutation of epoch 0, then that of epoch 1, and so on.
    """
    clips: list[tuple[int, int]] = []
    while start < stop:
        epoch, first = divmod(start, num_clips)
        chunk = epoch_order(seed, epoch, num_clips)[first : first + stop - start]
        clips += [(epoch, int(index)) for index in chunk]
        start += len(chunk)
    return clips


def epoch_of_step(step: int, global_batch: int, num_clips: int) -> int:
    """The epoch of the step's first clip: the one the step belongs to."""
    return step * global_batch // num_clips


def steps_before_epoch(epoch: int, global_batch: int, num_clips: int) -> int:
    """The first step that belongs to this epoch or a later one: ceil(epoch * num_clips / G)."""
    return -(-epoch * num_clips // global_batch)
