"""The layout contract between the pipelines and the training loop."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Streams = Tensor | tuple[Tensor, ...]
"""Of a single modality, or of each: RGB, then depth."""


def one_or_each(tensors: Sequence[Tensor]) -> Streams:
    """One tensor per modality -> as a batch holds them."""
    return tensors[0] if len(tensors) == 1 else tuple(tensors)


@dataclass(frozen=True)
class Batch:
    """B clips of T frames on one device."""

    clip: Streams
    """(B, 3, T, H, W) pixels as (v - 127.5) / 128, float32 or float16, channels_last_3d."""

    motion: Streams | None
    """(B, 1, T, H, W) float32 rank-pooling motion maps, or None where the model takes none."""

    label: Tensor
    """(B,) int64 class of each clip."""

    branch_indices: tuple[Tensor, ...]
    """One (B, f) int64 per temporal branch: which of the T frames it sees."""

    index: Tensor
    """(B,) int64, on the CPU: the clips' places in their list."""

    target: tuple[Tensor, ...] | None = None
    """(B, K) share of each class in what mixing has made of each clip, of each modality; None
    where nothing was mixed."""

    pseudo: Tensor | None = None
    """(B,) int64 class of each clip by a teacher of the other modality (engine/teacher.py)."""

    @property
    def streams(self) -> tuple[tuple[Tensor, Tensor | None], ...]:
        """`clip` and `motion` of each modality."""
        clips = self.clip if isinstance(self.clip, tuple) else (self.clip,)
        maps = self.motion if isinstance(self.motion, tuple) else (self.motion,) * len(clips)
        return tuple(zip(clips, maps, strict=True))

    def stream(self, number: int) -> "Batch":
        """That of a single modality."""
        clip, motion = self.streams[number]
        target = self.target and (self.target[number],)
        return dataclasses.replace(self, clip=clip, motion=motion, target=target)

    def part(self, first: int, end: int) -> "Batch":
        """Its clips `first` to `end - 1`, in views of its memory."""

        def cut(value: Any) -> Any:
            if value is None:
                return None
            return tuple(map(cut, value)) if isinstance(value, tuple) else value[first:end]

        return Batch(*(cut(getattr(self, field.name)) for field in dataclasses.fields(self)))

    def tensors(self) -> Iterator[Tensor]:
        """All that it holds."""
        for part in (getattr(self, field.name) for field in dataclasses.fields(self)):
            if isinstance(part, Tensor):
                yield part
            elif part is not None:
                yield from part
