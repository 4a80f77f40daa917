"""Spatial network of UMDR: three stages, each followed by a recoupling module of its own.

The loss that trains the student vectors is the training loop's.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.spatial import SpatialTrunk, halved

HEAD_DIM = 16


class StageRecoupling(nn.Module):
    """Adds to the features of each frame a mix of their channels, weighted by frame, and gives a
    student vector (UMDR, "RCM", as released).

    The channels of a clip attend to each other by how they go through time, with one head per
    frame. T is fixed at construction.
    """

    def __init__(self, num_frames: int, dim: int):
        super().__init__()
        self.num_frames = num_frames
        self.query = nn.Linear(num_frames, HEAD_DIM * num_frames, bias=False)
        self.key = nn.Linear(num_frames, HEAD_DIM * num_frames, bias=False)
        self.squeeze = nn.Linear(num_frames, 2 * num_frames, bias=False)
        self.excite = nn.Linear(2 * num_frames, num_frames, bias=False)
        self.norm = nn.LayerNorm(num_frames)
        self.student = nn.Linear(num_frames, dim)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """frames (B * T, C, H, W) -> the same shape, student (B, D)"""
        mixed = self.mixed(frames)
        score = self.score(mixed)
        weight = torch.sigmoid(score).flatten()[:, None, None, None]
        return frames + weight.to(frames.dtype) * mixed, self.student(score)

    def frame_weight(self, frames: Tensor) -> Tensor:
        """frames (B * T, C, H, W) -> (B, T) in (0, 1): how much of its mix each frame gets."""
        return torch.sigmoid(self.score(self.mixed(frames)))

    def score(self, mixed: Tensor) -> Tensor:
        """(B * T, C, H, W) -> (B, T)"""
        means = mixed.mean((1, 2, 3)).unflatten(0, (-1, self.num_frames))
        return self.norm(self.excite(F.gelu(self.squeeze(means))))

    def mixed(self, frames: Tensor) -> Tensor:
        """frames (B * T, C, H, W) -> the same shape, channels-last as they are."""
        # Shares stand on the left, so that their gradient arrives in the order that softmax needs.
        shares = self.shares(frames).flatten(0, 1).to(frames.dtype)  # (B * T, C, C)
        mixed = (shares @ frames.flatten(2)).unflatten(2, frames.shape[2:])
        return mixed.contiguous(memory_format=torch.channels_last)

    def shares(self, frames: Tensor) -> Tensor:
        """frames (B * T, C, H, W) -> (B, T, C, C): how much each channel, a row, takes of each."""
        courses = frames.mean((2, 3)).unflatten(0, (-1, self.num_frames)).mT  # (B, C, T)
        query, key = (
            layer(courses).unflatten(2, (self.num_frames, HEAD_DIM)).transpose(1, 2)
            for layer in (self.query, self.key)
        )
        # The scale is a power of two: on the small factor it changes no bit of the product.
        return (query * HEAD_DIM**-0.5 @ key.mT).softmax(-1)


class StagedSpatialNetwork(SpatialTrunk):
    """Frames -> tokens, and one student vector per stage (UMDR, "SMS" stages with "RCM")."""

    def __init__(self, *, num_frames: int, width: int, dim: int, momentum: float):
        # Shares, weights and what they mix are nowhere negative.
        super().__init__(width, momentum, nonnegative=True)
        channels = self.stage_widths[-1] // 2
        self.recouplings = nn.ModuleList(StageRecoupling(num_frames, dim) for _ in range(3))
        self.token_norm = nn.LayerNorm(channels)
        self.token_linear = nn.Linear(channels, dim)

    def forward(self, clip: Tensor) -> tuple[Tensor, list[Tensor]]:
        """clip (B, 3, T, H, W) -> tokens (B, T, D), students of (B, D)"""
        num_frames = clip.shape[2]
        students = []
        frames = self.stem(clip)
        frames = self.inception3c(self.inception3b(frames, num_frames), num_frames)
        frames, student = self.recouplings[0](halved(frames, 3))
        students.append(student)
        frames = self.inception4c(self.inception4b(frames, num_frames), num_frames)
        frames, student = self.recouplings[1](halved(frames, 2))
        students.append(student)
        frames = self.inception5c(self.inception5b(frames, num_frames), num_frames)
        frames, student = self.recouplings[2](neighbours_pooled(frames))
        students.append(student)
        tokens = frames.mean((2, 3)).unflatten(0, (-1, num_frames))
        return self.token_linear(self.token_norm(tokens)), students


def neighbours_pooled(frames: Tensor) -> Tensor:
    """The larger of each two neighbouring channels: (N, C, H, W) -> (N, C / 2, H, W)"""
    pairs = frames.permute(0, 2, 3, 1).unflatten(3, (-1, 2))  # channels-last, a view
    return pairs.amax(4).permute(0, 3, 1, 2)
