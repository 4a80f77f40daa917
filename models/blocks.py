"""What the spatial and the temporal network are built of: convolutions, pools, inception modules.

Features are "planes" (N, C, H, W): N = B * T frames of H x W in the spatial network, N = B clips of
f frames x 1 in the temporal one. Nothing here knows whole networks.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BATCH_NORM_EPS = 1e-3


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros (before, after) so that the output has ceil(size / stride) entries.

    An odd total puts its extra zero at the end, as TensorFlow's "same" does.
    """
    num_outputs = -(-size // stride)
    total = max((num_outputs - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def scaled(channels: int, factor: float) -> int:
    """`channels` times `factor`, to the nearest multiple of 4 and at least 4."""
    return max(4, 4 * round(channels * factor / 4))


class FlatConv(nn.Conv3d):
    """Convolution over (time, height, width) with extent 1 in time, or in height and width.

    The weight keeps its 3-D shape (O, I, t, h, w), that of published checkpoints, and its standard
    initialisation; the arithmetic is a 2-D convolution of planes with "same" zero padding.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: tuple[int, int, int], stride: int = 1
    ):
        assert kernel[0] == 1 or kernel[1] == kernel[2] == 1, kernel
        super().__init__(in_channels, out_channels, kernel, stride, bias=False)
        self.flat_axis = 2 if kernel[0] == 1 else 4

    def forward(self, planes: Tensor) -> Tensor:
        """(N, I, H, W) -> (N, O, ceil(H / stride), ceil(W / stride))"""
        stride = self.stride[-1]
        weight = self.weight.squeeze(self.flat_axis)
        top, bottom = same_padding(planes.shape[2], weight.shape[2], stride)
        left, right = same_padding(planes.shape[3], weight.shape[3], stride)
        if (top, left) != (bottom, right):  # only before the first layer: a copy of 3 channels
            planes = F.pad(planes, (left, right, top, bottom))
            top = left = 0
        return F.conv2d(planes, weight, stride=stride, padding=(top, left))


class ConvUnit(nn.Module):
    """Convolution without bias, batch normalisation, ReLU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: tuple[int, int, int],
        *,
        stride: int = 1,
        momentum: float,
    ):
        super().__init__()
        self.conv = FlatConv(in_channels, out_channels, kernel, stride)
        self.norm = nn.BatchNorm2d(out_channels, eps=BATCH_NORM_EPS, momentum=momentum)

    def forward(self, planes: Tensor) -> Tensor:
        """(N, I, H, W) -> (N, O, ceil(H / stride), ceil(W / stride)), nowhere negative"""
        return F.relu(self.norm(self.conv(planes)), inplace=True)


def halved(planes: Tensor, kernel: int) -> Tensor:
    """Max pool of stride 2, kernel 2 or 3, with "same" zero padding, of planes nowhere negative.

    (N, C, H, W) -> (N, C, ceil(H / 2), ceil(W / 2)). On such planes zeros around the border never
    change a maximum, so no padded copy is made.
    """
    before = [same_padding(size, kernel, 2)[0] for size in planes.shape[2:]]
    return F.max_pool2d(planes, kernel, stride=2, padding=before, ceil_mode=True)


def max_pool_3x3x3(frames: Tensor, num_frames: int, nonnegative: bool) -> Tensor:
    """Zero-padded max pool of stride 1 over (time, height, width).

    frames (B * T, C, H, W) -> the same shape. `nonnegative` promises that no entry is negative and
    saves the padded copy. A 3-D pool of the channels-last view: on a CPU as fast as the fastest of
    three separable forms, and one set of indices instead of two for the backward pass.
    """
    if frames.shape[2:] == (1, 1):
        # Over time alone: how planes of 1 x 1 lie in memory has two readings, and torch's compiler
        # takes another one of a 3-D pool's gradient than the pool itself.
        tokens = frames.flatten(1).unflatten(0, (-1, num_frames)).transpose(1, 2)  # (B, C, T)
        pooled = F.max_pool1d(tokens, 3, stride=1, padding=1)
        if not nonnegative:  # every window holds zeros of the border, which come first
            pooled = F.relu(pooled)
        return pooled.transpose(1, 2).flatten(0, 1)[..., None, None]
    video = frames.unflatten(0, (-1, num_frames)).transpose(1, 2)  # (B, C, T, H, W), a view
    if nonnegative:
        pooled = F.max_pool3d(video, 3, stride=1, padding=1)
    else:
        pooled = F.max_pool3d(F.pad(video, (1, 1, 1, 1, 1, 1)), 3, stride=1)
    return pooled.transpose(1, 2).flatten(0, 1)


class InceptionWidths(NamedTuple):
    """Channels of the four paths of an inception module."""

    point: int
    reduce_a: int
    conv_a: int
    reduce_b: int
    conv_b: int
    pooled: int

    def scaled(self, factor: float) -> "InceptionWidths":
        """All widths times `factor` (see `scaled`)."""
        return InceptionWidths(*(scaled(width, factor) for width in self))

    @property
    def total(self) -> int:
        """Channels of the concatenated output."""
        return self.point + self.conv_a + self.conv_b + self.pooled


class Inception(nn.Module):
    """Four parallel paths, concatenated over the channels (CVPR'22, "SMS" and "TMS" modules).

    A 1x1x1 unit; twice a 1x1x1 unit followed by one with `kernel`; a max pool followed by a 1x1x1
    unit. The pool differs between space and time: subclasses do it and call `join`.
    """

    def __init__(
        self,
        in_channels: int,
        widths: InceptionWidths,
        kernel: tuple[int, int, int],
        momentum: float,
    ):
        super().__init__()

        def unit(channels: int, width: int, kernel: tuple[int, int, int] = (1, 1, 1)) -> ConvUnit:
            return ConvUnit(channels, width, kernel, momentum=momentum)

        self.point = unit(in_channels, widths.point)
        self.reduce_a = unit(in_channels, widths.reduce_a)
        self.conv_a = unit(widths.reduce_a, widths.conv_a, kernel)
        self.reduce_b = unit(in_channels, widths.reduce_b)
        self.conv_b = unit(widths.reduce_b, widths.conv_b, kernel)
        self.pooled = unit(in_channels, widths.pooled)

    def join(self, planes: Tensor, pooled_planes: Tensor) -> Tensor:
        """Twice (N, I, H, W) -> (N, widths.total, H, W), nowhere negative"""
        paths = (
            self.point(planes),
            self.conv_a(self.reduce_a(planes)),
            self.conv_b(self.reduce_b(planes)),
            self.pooled(pooled_planes),
        )
        return torch.cat(paths, 1)
