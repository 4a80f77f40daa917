"""The layout contract between the pipelines and the training loop."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """B clips of T frames on one device."""

    clip: Tensor
    """(B, 3, T, H, W) pixels as (v - 127.5) / 128, float32 or float16, channels_last_3d."""

    motion: Tensor | None
    """(B, 1, T, H, W) float32 rank-pooling motion maps, or None where the model takes none."""

    label: Tensor
    """(B,) int64 class of each clip."""

    branch_indices: tuple[Tensor, ...]
    """One (B, f) int64 per temporal branch: which of the T frames it sees."""

    index: Tensor
    """(B,) int64, on the CPU: the clips' places in their list."""
