"""CVPR'22's unimodal network written down as it is described, operation by operation: what the
benchmark of the training step compares the engine's form with. Not used for training.

Videos are contiguous (B, C, T, H, W); convolutions and pools are 3-D, with the zeros of "same"
padding written out; attention forms all scores and masks them. Names of parameters and buffers are
those of models/decoupled.py, so that either network loads the other's state dict.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks import BATCH_NORM_EPS, InceptionWidths, scaled
from models.output import ModelOutput, Recoupled
from models.spatial import INCEPTION_WIDTHS, PUBLISHED_WIDTH
from models.temporal import INCEPTION_WIDTHS as TEMPORAL_WIDTHS
from models.temporal import NUM_HEADS, PUBLISHED_DIM

Extent = tuple[int, int, int]
"""Of a kernel or a stride: (time, height, width)."""

POINT: Extent = (1, 1, 1)
PLANE: Extent = (1, 3, 3)
CUBE: Extent = (3, 3, 3)
LINE: Extent = (3, 1, 1)
HALF: Extent = (1, 2, 2)
RECOUPLING_HIDDEN = 256
KEY_DIM = 64


def pad_same(video: Tensor, kernel: Extent, stride: Extent) -> Tensor:
    """(B, C, T, H, W) with zeros around, the odd one at the end, as TensorFlow's "same"."""
    pads: list[int] = []  # of the last axis first
    for size, extent, step in zip(video.shape[:1:-1], kernel[::-1], stride[::-1], strict=True):
        total = max((-(-size // step) - 1) * step + extent - size, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(video, pads)


def max_pool(video: Tensor, kernel: Extent, stride: Extent) -> Tensor:
    """Zero-padded max pool of (B, C, T, H, W)."""
    return F.max_pool3d(pad_same(video, kernel, stride), kernel, stride)


class ConvUnit(nn.Module):
    """Zero-padded 3-D convolution without bias, batch normalisation, ReLU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: Extent,
        momentum: float,
        stride: Extent = POINT,
    ):
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.conv = nn.Conv3d(in_channels, out_channels, kernel, stride, bias=False)
        self.norm = nn.BatchNorm3d(out_channels, eps=BATCH_NORM_EPS, momentum=momentum)

    def forward(self, video: Tensor) -> Tensor:
        """(B, I, T, H, W) -> (B, O, T, H / stride, W / stride)"""
        return F.relu(self.norm(self.conv(pad_same(video, self.kernel, self.stride))))


class Inception(nn.Module):
    """Four parallel paths, concatenated."""

    def __init__(
        self,
        in_channels: int,
        widths: InceptionWidths,
        kernel: Extent,
        pool: Extent,
        momentum: float,
    ):
        super().__init__()
        self.pool = pool
        self.point = ConvUnit(in_channels, widths.point, POINT, momentum)
        self.reduce_a = ConvUnit(in_channels, widths.reduce_a, POINT, momentum)
        self.conv_a = ConvUnit(widths.reduce_a, widths.conv_a, kernel, momentum)
        self.reduce_b = ConvUnit(in_channels, widths.reduce_b, POINT, momentum)
        self.conv_b = ConvUnit(widths.reduce_b, widths.conv_b, kernel, momentum)
        self.pooled = ConvUnit(in_channels, widths.pooled, POINT, momentum)

    def forward(self, video: Tensor) -> Tensor:
        """(B, I, T, H, W) -> (B, widths.total, T, H, W)"""
        paths = (
            self.point(video),
            self.conv_a(self.reduce_a(video)),
            self.conv_b(self.reduce_b(video)),
            self.pooled(max_pool(video, self.pool, POINT)),
        )
        return torch.cat(paths, 1)


class MotionAttention(nn.Module):
    """F + (a F + b F (1 + G)) of features F and motion maps G pooled to their size."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, 2, 1))

    def forward(self, video: Tensor, motion: Tensor) -> Tensor:
        """video (B, C, T, h, w), motion (B, 1, T, H, W) -> (B, C, T, h, w)"""
        while motion.shape[4] > video.shape[4]:
            motion = F.max_pool3d(motion, HALF, HALF)
        a, b = self.weight.flatten()
        return video + (a * video + b * video * (1 + motion))


class SpatialTrunk(nn.Module):
    """The convolutions of the spatial network."""

    def __init__(self, width: int, momentum: float):
        super().__init__()
        factor = width / PUBLISHED_WIDTH
        stem = channels = scaled(192, factor)
        self.conv1 = ConvUnit(3, width, (1, 7, 7), momentum, HALF)
        self.conv2b = ConvUnit(width, width, POINT, momentum)
        self.conv2c = ConvUnit(width, stem, PLANE, momentum)
        for name, paths in INCEPTION_WIDTHS.items():
            widths = paths.scaled(factor)
            self.add_module(f"inception{name}", Inception(channels, widths, PLANE, CUBE, momentum))
            channels = widths.total
        self.out_channels = channels

    def stem(self, clip: Tensor) -> Tensor:
        """(B, 3, T, H, W) -> (B, C, T, H / 8, W / 8)"""
        video = max_pool(self.conv1(clip), PLANE, HALF)
        return max_pool(self.conv2c(self.conv2b(video)), PLANE, HALF)


class SpatialNetwork(SpatialTrunk):
    """Clip -> one token per frame."""

    def __init__(self, width: int, dim: int, motion_attention: bool, momentum: float):
        super().__init__(width, momentum)
        self.token_norm = nn.LayerNorm(self.out_channels)
        self.token_linear = nn.Linear(self.out_channels, dim)
        self.motion_attention = MotionAttention() if motion_attention else None

    def forward(self, clip: Tensor, motion: Tensor | None) -> Tensor:
        """clip (B, 3, T, H, W), motion (B, 1, T, H, W) -> (B, T, D)"""
        video = self.stem(clip)
        for first, second, pool in (("3b", "3c", PLANE), ("4b", "4c", HALF), ("5b", "5c", None)):
            video = self.get_submodule(f"inception{first}")(video)
            if self.motion_attention is not None and motion is not None:
                video = self.motion_attention(video, motion)
            video = self.get_submodule(f"inception{second}")(video)
            if pool is not None:
                video = max_pool(video, pool, HALF)
        tokens = video.mean((3, 4)).transpose(1, 2)
        return self.token_linear(self.token_norm(tokens))


class Recoupling(nn.Module):
    """Weights of frames and of channels, the latter from all D x D scores."""

    def __init__(self, num_frames: int, dim: int):
        super().__init__()
        self.query = nn.Linear(num_frames, KEY_DIM, bias=False)
        self.key = nn.Linear(num_frames, KEY_DIM, bias=False)
        self.squeeze = nn.Linear(num_frames, RECOUPLING_HIDDEN, bias=False)
        self.excite = nn.Linear(RECOUPLING_HIDDEN, num_frames, bias=False)
        self.norm = nn.LayerNorm(num_frames)
        self.student = nn.Linear(num_frames, dim)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, D) -> (B, T, D), student (B, D)"""
        channels = tokens.transpose(1, 2)  # (B, D, T)
        hidden = F.gelu(self.squeeze(channels.mean(1)))
        frame_weight = torch.sigmoid(self.norm(self.excite(hidden)))  # (B, T)
        scores = self.query(channels) @ self.key(channels).transpose(1, 2) / KEY_DIM**0.5
        channel_weight = torch.sigmoid(scores.mean(1))  # (B, D)
        weighted = channels * channel_weight[:, :, None] * frame_weight[:, None, :]
        return weighted.transpose(1, 2), self.student(frame_weight)


class Attention(nn.Module):
    """Multi-head attention; scores below the `kept` largest of a query are masked."""

    def __init__(self, dim: int, kept: int, dropout: float):
        super().__init__()
        self.kept = kept
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, n, D) -> (B, n, D)"""
        batch, count, dim = tokens.shape
        query, key, value = (
            part.reshape(batch, count, NUM_HEADS, -1).transpose(1, 2)
            for part in self.qkv(tokens).chunk(3, dim=-1)
        )
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        if self.kept < count:
            mask = torch.zeros_like(scores, dtype=torch.bool)
            mask.scatter_(-1, scores.topk(self.kept, dim=-1).indices, True)
            scores = torch.where(mask, scores, torch.full_like(scores, float("-inf")))
        mixed = scores.softmax(-1) @ value
        return self.dropout(self.out(mixed.transpose(1, 2).reshape(batch, count, dim)))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, dim: int, kept: int, dropout: float):
        super().__init__()
        hidden = dim * 3 // 2
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = Attention(dim, kept, dropout)
        self.feed_forward_norm = nn.LayerNorm(dim)
        self.feed_forward = nn.Sequential(
            nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(dropout),
            nn.Linear(hidden, dim), nn.Dropout(dropout),
        )  # fmt: skip

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, n, D) -> (B, n, D)"""
        tokens = tokens + self.attention(self.attention_norm(tokens))
        return tokens + self.feed_forward(self.feed_forward_norm(tokens))


class TemporalBranch(nn.Module):
    """Tokens of f frames -> class token. `kernel`: frames that its inception module spans."""

    def __init__(
        self,
        frames: int,
        num_blocks: int,
        dim: int,
        knn_ratio: float,
        dropout: float,
        momentum: float,
        kernel: int = 3,
    ):
        super().__init__()
        count = frames + 1
        kept = max(1, int(count * knn_ratio)) if knn_ratio else count
        self.position = nn.Parameter(torch.empty(1, count, dim))
        self.class_token = nn.Parameter(torch.empty(1, 1, dim))
        widths = TEMPORAL_WIDTHS.scaled(dim / PUBLISHED_DIM)
        line = (kernel, 1, 1)
        self.inception = Inception(dim, widths, line, line, momentum)
        self.blocks = nn.ModuleList(Block(dim, kept, dropout) for _ in range(num_blocks))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, f, D) -> (B, D)"""
        class_token = self.class_token.repeat(len(tokens), 1, 1)
        tokens = torch.cat((class_token, tokens), 1) + self.position
        tokens = torch.cat((tokens[:, :1], self.mixed(tokens[:, 1:])), 1)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens[:, 0]

    def mixed(self, tokens: Tensor) -> Tensor:
        """The inception module and a pool over three frames: (B, f, D) -> (B, f, D)"""
        video = tokens.transpose(1, 2)[:, :, :, None, None].contiguous()  # (B, D, f, 1, 1)
        video = max_pool(self.inception(video), LINE, POINT)
        return video[:, :, :, 0, 0].transpose(1, 2)


class Head(nn.Module):
    """Class token -> class scores."""

    def __init__(self, dim: int, num_classes: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.linear = nn.Linear(dim, num_classes)

    def forward(self, token: Tensor) -> Tensor:
        """(B, D) -> (B, K)"""
        return self.linear(self.norm(token))


class StraightforwardNetwork(nn.Module):
    """Options as models/decoupled.py; parameters are left unset: load a state dict of it."""

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
        dropout: float = 0.1,
        width: int = 64,
        dim: int = 512,
        batch_norm_momentum: float = 0.01,
    ):
        super().__init__()
        self.spatial = SpatialNetwork(width, dim, motion_attention, batch_norm_momentum)
        self.recoupling = Recoupling(num_frames, dim) if recoupling else None
        self.branches = nn.ModuleList(
            TemporalBranch(frames, num_blocks, dim, knn_ratio, dropout, batch_norm_momentum)
            for frames in branch_frames
        )
        self.heads = nn.ModuleList(Head(dim, num_classes) for _ in branch_frames)

    def forward(
        self,
        clip: Tensor,
        motion: Tensor | None,
        branch_indices: Sequence[Tensor],
        temperature: float = 1.0,
    ) -> ModelOutput:
        """As models/decoupled.py; the frames of the branches are always given."""
        tokens = self.spatial(clip, motion)
        student = None
        if self.recoupling is not None:
            tokens, student = self.recoupling(tokens)
        class_tokens = [
            branch(tokens.take_along_dim(indices[:, :, None], 1))
            for branch, indices in zip(self.branches, branch_indices, strict=True)
        ]
        branch_logits = tuple(
            head(token) / temperature for head, token in zip(self.heads, class_tokens, strict=True)
        )
        recoupled: tuple[Recoupled, ...] = ()
        if student is not None:
            recoupled = (Recoupled(student, torch.stack(class_tokens).detach().mean(0)),)
        return ModelOutput(torch.stack(branch_logits).max(0).values, branch_logits, recoupled)
