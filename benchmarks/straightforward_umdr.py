"""UMDR's unimodal network written down as it is described, operation by operation: what the
benchmark of the training step compares the engine's form with. Not used for training.

As benchmarks/straightforward.py, whose convolutions, attention and heads it shares; names of
parameters and buffers are those of models/umdr.py.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.straightforward import HALF, PLANE, Head, SpatialTrunk, TemporalBranch, max_pool
from models.output import ModelOutput, Recoupled

HEAD_DIM = 16
NUM_STAGES = 3


class StageRecoupling(nn.Module):
    """Adds to each frame a mix of its channels by their C x C scores, weighted by frame."""

    def __init__(self, num_frames: int, dim: int):
        super().__init__()
        self.query = nn.Linear(num_frames, HEAD_DIM * num_frames, bias=False)
        self.key = nn.Linear(num_frames, HEAD_DIM * num_frames, bias=False)
        self.squeeze = nn.Linear(num_frames, 2 * num_frames, bias=False)
        self.excite = nn.Linear(2 * num_frames, num_frames, bias=False)
        self.norm = nn.LayerNorm(num_frames)
        self.student = nn.Linear(num_frames, dim)

    def forward(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, T, H, W) -> (B, C, T, H, W), student (B, D)"""
        batch, channels, frames, height, width = video.shape
        courses = video.mean((3, 4))  # (B, C, T)
        query, key = (
            layer(courses).reshape(batch, channels, frames, HEAD_DIM).transpose(1, 2)
            for layer in (self.query, self.key)
        )
        shares = (query @ key.transpose(-1, -2) / HEAD_DIM**0.5).softmax(-1)  # (B, T, C, C)
        pixels = video.transpose(1, 2).reshape(batch, frames, channels, height * width)
        mixed = (shares @ pixels).reshape(batch, frames, channels, height, width).transpose(1, 2)
        hidden = F.gelu(self.squeeze(mixed.mean((1, 3, 4))))
        score = self.norm(self.excite(hidden))  # (B, T)
        weight = torch.sigmoid(score)[:, None, :, None, None]
        return video + weight * mixed, self.student(score)


class SpatialNetwork(SpatialTrunk):
    """Clip -> one token per frame, and one student vector per stage."""

    def __init__(self, num_frames: int, width: int, dim: int, momentum: float):
        super().__init__(width, momentum)
        self.recouplings = nn.ModuleList(
            StageRecoupling(num_frames, dim) for _ in range(NUM_STAGES)
        )
        self.token_norm = nn.LayerNorm(self.out_channels // 2)
        self.token_linear = nn.Linear(self.out_channels // 2, dim)

    def forward(self, clip: Tensor) -> tuple[Tensor, list[Tensor]]:
        """clip (B, 3, T, H, W) -> (B, T, D), students of (B, D)"""
        video = self.stem(clip)
        students = []
        for stage, pool in enumerate((PLANE, HALF, None)):
            video = self.get_submodule(f"inception{stage + 3}b")(video)
            video = self.get_submodule(f"inception{stage + 3}c")(video)
            if pool is not None:
                video = max_pool(video, pool, HALF)
            else:  # of each two neighbouring channels
                video = video.unflatten(1, (-1, 2)).max(2).values
            video, student = self.recouplings[stage](video)
            students.append(student)
        tokens = video.mean((3, 4)).transpose(1, 2)
        return self.token_linear(self.token_norm(tokens)), students


class Branch(TemporalBranch):
    """Tokens of f frames, whose positions are added behind the inception module."""

    def class_tokens(self, tokens: Tensor) -> list[Tensor]:
        """(B, f, D) -> (B, D) behind each block"""
        class_token = self.class_token.repeat(len(tokens), 1, 1)
        tokens = torch.cat((class_token, self.mixed(tokens)), 1) + self.position
        found = []
        for block in self.blocks:
            tokens = block(tokens)
            found.append(tokens[:, 0])
        return found


class StraightforwardUmdrNetwork(nn.Module):
    """Options as models/umdr.py; parameters are left unset: load a state dict of it."""

    def __init__(
        self,
        num_classes: int,
        *,
        num_frames: int = 32,
        branch_frames: Sequence[int] = (16, 32, 48),
        num_blocks: int = 6,
        knn_ratio: float = 0.7,
        dropout: float = 0.1,
        width: int = 64,
        dim: int = 512,
        batch_norm_momentum: float = 0.01,
    ):
        super().__init__()
        momentum = batch_norm_momentum
        self.spatial = SpatialNetwork(num_frames, width, dim, momentum)
        self.branches = nn.ModuleList(
            Branch(frames, num_blocks, dim, knn_ratio, dropout, momentum, math.isqrt(frames))
            for frames in branch_frames
        )
        self.heads = nn.ModuleList(Head(dim, num_classes) for _ in branch_frames)

    def forward(
        self,
        clip: Tensor,
        motion: None,
        branch_indices: Sequence[Tensor],
        temperature: float = 1.0,
    ) -> ModelOutput:
        """As models/umdr.py; the frames of the branches are always given."""
        tokens, students = self.spatial(clip)
        by_branch = [
            branch.class_tokens(tokens.take_along_dim(indices[:, :, None], 1))  # type: ignore
            for branch, indices in zip(self.branches, branch_indices, strict=True)
        ]
        branch_logits = tuple(
            head(found[-1]) / temperature for head, found in zip(self.heads, by_branch, strict=True)
        )
        by_block = list(zip(*by_branch, strict=True))
        teachers = [torch.stack(of_block).sum(0) for of_block in by_block[-NUM_STAGES:]]
        recoupled = tuple(map(Recoupled, students, teachers))
        return ModelOutput(torch.stack(branch_logits).max(0).values, branch_logits, recoupled)
