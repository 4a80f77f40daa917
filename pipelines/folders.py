"""Clips as folders with one file per frame: where the files are, and how many there are."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from pipelines.cache import JsonLines

THREADS = 16
"""Listing folders waits for the disk, not for the processor."""


@dataclass(frozen=True)
class Frames:
    """The files of one clip: a path that lacks only its `{frame...}`, and the first number."""

    pattern: str
    """For str.format: braces of folder names are doubled."""

    first: int

    @property
    def folder(self) -> str:
        return os.path.dirname(self.pattern).format()

    @property
    def name(self) -> str:
        """What tells these frames from any others on this disk."""
        return self.pattern

    def changed_ns(self) -> int:
        """When files were last added, removed or replaced."""
        return os.stat(self.folder).st_mtime_ns

    def path(self, number: int) -> str:
        """File of the 0-based frame `number`."""
        return self.pattern.format(frame=self.first + number)

    def path_bytes(self, numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
        """(T,) 0-based frames -> (T, L) bytes of their paths, shorter ones ending in zeros."""
        before, _, after = self.pattern.partition("{frame:0")
        width, _, ending = after.partition("d}")
        largest = int(numbers.max()) + self.first
        if not width.isdigit() or "{frame" in ending or largest >= 10 ** int(width):
            return padded([self.path(number) for number in numbers.tolist()])
        # Of such a path only the digits differ: all of them at once in a tenth of the time.
        head, tail = (os.fsencode(part.format()) for part in (before, ending))
        powers = 10 ** np.arange(int(width) - 1, -1, -1)
        row = np.frombuffer(head + bytes(int(width)) + tail, np.uint8)
        rows = np.tile(row, (len(numbers), 1))
        digits = (numbers[:, None] + self.first) // powers % 10 + ord("0")
        rows[:, len(head) : len(head) + int(width)] = digits
        return rows

    def size(self) -> tuple[int, int]:
        """Width and height of the frames: those of the first. Raises OSError."""
        return _size(self.path(0))


@dataclass(frozen=True)
class FrameList:
    """The files of one clip, in time, whatever their names."""

    paths: tuple[str, ...]

    def path(self, number: int) -> str:
        """File of the 0-based frame `number`."""
        return self.paths[number]

    def path_bytes(self, numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
        """(T,) 0-based frames -> (T, L) bytes of their paths, shorter ones ending in zeros."""
        return padded([self.paths[number] for number in numbers.tolist()])

    @property
    def name(self) -> str:
        """What tells these frames from any others on this disk."""
        return os.path.dirname(self.paths[0])

    def changed_ns(self) -> int:
        """When files were last added, removed or replaced."""
        return os.stat(self.name).st_mtime_ns

    def size(self) -> tuple[int, int]:
        """Width and height of the frames: those of the first. Raises OSError."""
        return _size(self.paths[0])


def padded(paths: Sequence[str]) -> NDArray[np.uint8]:
    """N paths -> (N, L) bytes, shorter ones ending in zeros, as DALI's reader takes them."""
    encoded = np.array([os.fsencode(path) for path in paths])
    return encoded.view(np.uint8).reshape(len(paths), encoded.itemsize)


@dataclass(frozen=True)
class Count:
    """Frames present from the first one on without a hole, or why there are none."""

    num_frames: int
    changed_ns: int = 0
    """When the folder last changed: the count holds until it changes again."""

    error: str | None = None


def count_frames(wanted: Sequence[Frames], root: str, cache: JsonLines) -> dict[Frames, Count]:
    """Counts each clip's frames; only folders changed since the cache was written are listed."""
    counts: dict[Frames, Count] = {}
    keys = [f"{os.path.relpath(frames.pattern, root)} from {frames.first}" for frames in wanted]
    with ThreadPoolExecutor(THREADS) as pool:
        jobs = pool.map(_count, wanted, map(cache.get, keys))
        bar = tqdm(jobs, "counting frames", len(keys), unit="clip", delay=1, disable=None)
        for frames, key, count in zip(wanted, keys, bar, strict=True):
            counts[frames] = count
            entry = [count.changed_ns, count.num_frames]
            if count.error is None and cache.get(key) != entry:
                cache.put(key, entry)
    return counts


def _count(frames: Frames, known: list[int] | None) -> Count:
    try:
        # Before the listing: a file that arrives in between changes the time seen next time.
        changed_ns = frames.changed_ns()
        if known and known[0] == changed_ns:
            return Count(known[1], changed_ns)
        present = set(os.listdir(frames.folder))
    except OSError as error:
        return Count(0, error=error.strerror)
    num_frames = 0
    while os.path.basename(frames.path(num_frames)) in present:
        num_frames += 1
    return Count(num_frames, changed_ns)


@lru_cache(maxsize=2**20)
def _size(path: str) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size
