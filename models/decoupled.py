"""Unimodal network of CVPR'22: space, recoupling, time at several rates, one head each. No loss."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.output import ModelOutput, Recoupled
from models.recoupling import Recoupling
from models.spatial import MOTION_MULTIPLE, SpatialNetwork
from models.temporal import Head, TemporalBranch


class DecoupledNetwork(nn.Module):
    """RGB or depth clip -> class scores (CVPR'22, "Decoupling and Recoupling", unimodal).

    The defaults are the published network; `width` (channels of the first convolution) and `dim`
    (token width) scale it down. Layers start as torch initialises them, position embeddings and
    class tokens standard normal, motion attention as a doubling, to which `motion_gain` adds that
    many times the features under the motion maps (4 lets a small network learn many times as fast).
    With `num_classes` 0 it has no heads and serves as one half of the fusion network. Raises
    ValueError naming the option whose value is impossible.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        num_frames: int = 64,
        branch_frames: Sequence[int] = (16, 32, 48),
        num_blocks: int = 6,
        knn_ratio: float = 0.7,
        recoupling: bool = True,
        motion_attention: bool = True,
        motion_gain: float = 0.0,
        dropout: float = 0.1,
        width: int = 64,
        dim: int = 512,
        batch_norm_momentum: float = 0.01,
    ):
        super().__init__()
        momentum = batch_norm_momentum
        _check_frames(num_frames, branch_frames)
        check_sizes(num_classes, num_blocks, width, dim)
        check_rates(knn_ratio, dropout, momentum)
        self.num_frames = num_frames
        self.num_blocks = num_blocks
        self.branch_frames = tuple(branch_frames)
        self.spatial = SpatialNetwork(
            width=width,
            dim=dim,
            motion_attention=motion_attention,
            motion_gain=motion_gain,
            momentum=momentum,
        )
        self.recoupling = Recoupling(num_frames, dim) if recoupling else None
        self.branches = nn.ModuleList(
            TemporalBranch(
                num_frames=num_frames,
                branch_frames=frames,
                num_blocks=num_blocks,
                dim=dim,
                knn_ratio=knn_ratio,
                dropout=dropout,
                momentum=momentum,
            )
            for frames in branch_frames
        )
        num_heads = len(self.branches) if num_classes else 0
        self.heads = nn.ModuleList(Head(dim, num_classes) for _ in range(num_heads))

    @property
    def head_names(self) -> tuple[str, ...]:
        """Names of `ModelOutput.heads`."""
        return ("merged", "sum", *(f"{frames} frames" for frames in self.branch_frames))

    def forward(
        self,
        clip: Tensor,
        motion: Tensor | None = None,
        branch_indices: Sequence[Tensor] | None = None,
        temperature: float = 1.0,
    ) -> ModelOutput:
        """Classify a batch of clips.

        clip (B, 3, T, H, W).
        motion (B, 1, T, H, W): motion maps G for motion attention, for which no maps mean G = 0; a
        network without motion attention ignores them.
        branch_indices: one (B, f) int64 per branch, which of the T frames it sees; by default the
        middle frames of f equal segments.
        temperature: what the class scores are divided by.
        Raises ValueError if a shape does not fit, and for a network without heads.
        """
        if not self.heads:
            raise ValueError("a network of 0 classes gives tokens only: use its `class_tokens`")
        tokens = self.frame_tokens(clip, motion)
        class_tokens, recoupled = self.class_tokens(tokens, branch_indices)
        branch_logits = tuple(
            head(token) / temperature for head, token in zip(self.heads, class_tokens, strict=True)
        )
        return ModelOutput(torch.stack(branch_logits).amax(0), branch_logits, recoupled)

    def frame_tokens(self, clip: Tensor, motion: Tensor | None = None) -> Tensor:
        """clip (B, 3, T, H, W), motion (B, 1, T, H, W) or None -> (B, T, D).

        Raises ValueError if a shape does not fit.
        """
        self._check_clip(clip, motion)
        return self.spatial(clip, motion)

    def class_tokens(
        self, tokens: Tensor, branch_indices: Sequence[Tensor] | None = None
    ) -> tuple[list[Tensor], tuple[Recoupled, ...]]:
        """Frame tokens (B, T, D) -> one class token (B, D) per branch, and what the recoupling
        loss compares: nothing without a recoupling module.

        branch_indices: one (B, f) int64 per branch. Raises ValueError if a shape does not fit.
        """
        self._check_branches(tokens, branch_indices)
        student = None
        if self.recoupling is not None:
            tokens, student = self.recoupling(tokens)
        indices: Sequence[Tensor | None] = branch_indices or [None] * len(self.branches)
        class_tokens = [
            branch(tokens, seen) for branch, seen in zip(self.branches, indices, strict=True)
        ]
        if student is None:
            return class_tokens, ()
        return class_tokens, (Recoupled(student, torch.stack(class_tokens).detach().mean(0)),)

    def _check_clip(self, clip: Tensor, motion: Tensor | None) -> None:
        shape = tuple(clip.shape)
        fits = len(shape) == 5 and shape[1:3] == (3, self.num_frames)
        require(fits, "clip", shape, f"(B, 3, {self.num_frames}, H, W)")
        if self.spatial.motion_attention is not None:
            fits = not any(size % MOTION_MULTIPLE for size in shape[3:])
            rule = f"multiples of {MOTION_MULTIPLE} for motion attention"
            require(fits, "height and width of the clip", shape[3:], rule)
        if motion is not None:
            expected = (shape[0], 1, *shape[2:])
            require(motion.shape == expected, "motion", tuple(motion.shape), str(expected))

    def _check_branches(self, tokens: Tensor, branch_indices: Sequence[Tensor] | None) -> None:
        if branch_indices is not None:
            found = [tuple(indices.shape) for indices in branch_indices]
            wanted = [(len(tokens), frames) for frames in self.branch_frames]
            require(found == wanted, "branch_indices", found, str(wanted))


def _check_frames(num_frames: int, branch_frames: Sequence[int]) -> None:
    frames = tuple(branch_frames)
    require(num_frames >= 1, "num_frames", num_frames, "at least 1")
    require(len(frames) >= 1, "branch_frames", frames, "at least one number")
    require(list(frames) == sorted(frames), "branch_frames", frames, "in ascending order")
    fits = frames[0] >= 1 and frames[-1] <= num_frames
    require(fits, "branch_frames", frames, f"from 1 to num_frames = {num_frames}")


def check_sizes(num_classes: int, num_blocks: int, width: int, dim: int) -> None:
    require(num_classes >= 0, "num_classes", num_classes, "at least 0")
    require(num_blocks >= 1, "num_blocks", num_blocks, "at least 1")
    require(width >= 4 and width % 4 == 0, "width", width, "a multiple of 4")
    require(dim >= 64 and dim % 64 == 0, "dim", dim, "a multiple of 64")


def check_rates(knn_ratio: float, dropout: float, momentum: float) -> None:
    require(0 <= knn_ratio <= 1, "knn_ratio", knn_ratio, "from 0 to 1")
    require(0 <= dropout < 1, "dropout", dropout, "at least 0 and below 1")
    require(0 < momentum <= 1, "batch_norm_momentum", momentum, "above 0 and at most 1")


def require(fits: bool, name: str, value: object, rule: str) -> None:
    if not fits:
        raise ValueError(f"{name} must be {rule}, not {value}")
