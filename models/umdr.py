"""Unimodal network of UMDR: space in recoupled stages, time at several rates, one head each."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.decoupled import check_rates, check_sizes, require
from models.output import ModelOutput, Recoupled
from models.staged import StagedSpatialNetwork
from models.temporal import Head, TemporalBranch

NUM_STAGES = 3


def umdr_branch_frames(num_frames: int) -> tuple[int, ...]:
    """Frames of the three branches as published: 8, 16, 24 of 16; 16, 32, 48 of 32 or of 64. Where
    a branch has more than there are, some are seen twice."""
    unit = num_frames // (4 if num_frames > 32 else 2)
    return (unit, 2 * unit, 3 * unit)


class UmdrNetwork(nn.Module):
    """RGB or depth clip -> class scores (UMDR, "A Unified Multimodal De- and Re-coupling
    Framework", unimodal, as released: DSNV2 and DTNV2).

    `branch_frames` of None are the published ones (`umdr_branch_frames`). `width` (channels of the
    first convolution) and `dim` (token width) scale the network down. Layers start as torch
    initialises them, position embeddings and class tokens standard normal. Raises ValueError naming
    the option whose value is impossible.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        num_frames: int = 32,
        branch_frames: Sequence[int] | None = None,
        num_blocks: int = 6,
        knn_ratio: float = 0.7,
        dropout: float = 0.1,
        width: int = 64,
        dim: int = 512,
        batch_norm_momentum: float = 0.01,
    ):
        super().__init__()
        frames = tuple(branch_frames or umdr_branch_frames(num_frames))
        require(num_frames >= 2, "num_frames", num_frames, "at least 2")
        require(list(frames) == sorted(frames), "branch_frames", frames, "in ascending order")
        require(frames[0] >= 1, "branch_frames", frames, "at least 1")
        check_sizes(num_classes, num_blocks, width, dim)
        require(num_classes >= 1, "num_classes", num_classes, "at least 1")
        require(num_blocks >= NUM_STAGES, "num_blocks", num_blocks, f"at least {NUM_STAGES}")
        check_rates(knn_ratio, dropout, batch_norm_momentum)
        self.num_frames = num_frames
        self.num_blocks = num_blocks
        self.branch_frames = frames
        self.spatial = StagedSpatialNetwork(
            num_frames=num_frames, width=width, dim=dim, momentum=batch_norm_momentum
        )
        self.branches = nn.ModuleList(
            TemporalBranch(
                num_frames=num_frames,
                branch_frames=count,
                num_blocks=num_blocks,
                dim=dim,
                knn_ratio=knn_ratio,
                dropout=dropout,
                momentum=batch_norm_momentum,
                kernel=math.isqrt(count),
                position_last=True,
            )
            for count in frames
        )
        self.heads = nn.ModuleList(Head(dim, num_classes) for _ in frames)

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
        motion: ignored, the network has no motion attention.
        branch_indices: one (B, f) int64 per branch, which of the T frames it sees; by default the
        middle frames of f equal segments.
        temperature: what the class scores are divided by.
        Raises ValueError if a shape does not fit.
        """
        self._check_clip(clip)
        tokens, students = self.spatial(clip)
        by_block = list(zip(*self.class_tokens(tokens, branch_indices), strict=True))
        logits = self.scores(by_block[-1], temperature)
        # The three stages are paired with the last three blocks, in order.
        teachers = [torch.stack(of_block).sum(0) for of_block in by_block[-NUM_STAGES:]]
        recoupled = tuple(map(Recoupled, students, teachers))
        return ModelOutput(torch.stack(logits).amax(0), logits, recoupled)

    def tokens(self, clip: Tensor) -> tuple[Tensor, list[Tensor]]:
        """clip (B, 3, T, H, W) -> frame tokens (B, T, D), the class token (B, D) of each branch."""
        self._check_clip(clip)
        tokens, _ = self.spatial(clip)
        return tokens, [branch(tokens) for branch in self.branches]

    def scores(self, class_tokens: Sequence[Tensor], temperature: float) -> tuple[Tensor, ...]:
        """Each branch's class token (B, D) -> its class scores (B, K)."""
        return tuple(
            head(token) / temperature for head, token in zip(self.heads, class_tokens, strict=True)
        )

    def class_tokens(
        self, tokens: Tensor, branch_indices: Sequence[Tensor] | None = None
    ) -> list[list[Tensor]]:
        """Frame tokens (B, T, D) -> of each branch the class tokens (B, D) behind each block."""
        indices: Sequence[Tensor | None] = branch_indices or [None] * len(self.branches)
        if branch_indices is not None:
            found = [tuple(seen.shape) for seen in branch_indices]
            wanted = [(len(tokens), frames) for frames in self.branch_frames]
            require(found == wanted, "branch_indices", found, str(wanted))
        by_branch = []
        for branch, seen in zip(self.branches, indices, strict=True):
            assert isinstance(branch, TemporalBranch)
            by_branch.append(branch.class_tokens(tokens, seen))
        return by_branch

    def _check_clip(self, clip: Tensor) -> None:
        shape = tuple(clip.shape)
        fits = len(shape) == 5 and shape[1:3] == (3, self.num_frames)
        require(fits, "clip", shape, f"(B, 3, {self.num_frames}, H, W)")
