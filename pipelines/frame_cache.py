"""Decoded frames of whole clips, kept while they fit a number of bytes. Decodes nothing itself:
pipelines/kept.py does."""

import math
from collections.abc import Sequence
from threading import Lock
from typing import Any

GIGABYTE = 10**9


class FrameCache:
    """What fits stays: clips are admitted in the order in which they come, and none is ever put
    out for another, since in each epoch every clip comes once. For several threads."""

    def __init__(self, budget: int) -> None:
        """`budget` in bytes."""
        self.budget = budget
        self.reserved = 0
        self.hits = self.misses = 0
        self._frames: dict[str, Any] = {}
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._frames)

    def get(self, name: str) -> Any | None:
        """(n, h, w, C) all frames of a clip, or None; counted as a hit or a miss."""
        with self._lock:
            frames = self._frames.get(name)
            self.hits += frames is not None
            self.misses += frames is None
            return frames

    def admit(self, shape: Sequence[int], itemsize: int) -> bool:
        """Whether there is room for frames of this shape, which is then set aside for `put`."""
        num_bytes = math.prod(shape) * itemsize
        with self._lock:
            if self.reserved + num_bytes > self.budget:
                return False
            self.reserved += num_bytes
            return True

    def put(self, name: str, frames: Any) -> None:
        """Keep what was admitted."""
        with self._lock:
            self._frames[name] = frames

    @property
    def hit_rate(self) -> float:
        """Share of the clips asked for so far that were there; 0 before the first."""
        asked = self.hits + self.misses
        return self.hits / asked if asked else 0.0
