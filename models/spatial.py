"""Spatial network: every frame becomes one token; motion maps point it to what moves.

Time enters only through the 3x3x3 pools of the inception modules (CVPR'22, published code).
"""

from collections.abc import Callable
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks import ConvUnit, Inception, InceptionWidths, halved, max_pool_3x3x3, scaled
from models.gathered_pool import gathered_max_pool_3x3x3

PUBLISHED_WIDTH = 64
MOTION_MULTIPLE = 32
"""Height and width must be multiples of this for the motion maps to fit the features."""

INCEPTION_WIDTHS = {
    "3b": InceptionWidths(64, 96, 128, 16, 32, 32),
    "3c": InceptionWidths(128, 128, 192, 32, 96, 64),
    "4b": InceptionWidths(192, 96, 208, 16, 48, 64),
    "4c": InceptionWidths(160, 112, 224, 24, 64, 64),
    "5b": InceptionWidths(256, 160, 320, 32, 128, 128),
    "5c": InceptionWidths(384, 192, 384, 48, 128, 128),
}


class MotionAttention(nn.Module):
    """Scales features F by 1 + a + b (1 + G), where G is the motion map and a, b are learnt.

    That is the published F + (a F + b F (1 + G)); it starts at a = 1, b = `gain`, published as 0,
    where it doubles F and the maps have no say until b has moved.
    """

    def __init__(self, gain: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[[1.0], [gain]]]))
        """(1, 2, 1): a and b, shaped as the published 1x1 convolution over two channels."""

    def forward(self, frames: Tensor, motion: Tensor | None) -> Tensor:
        """frames (N, C, H, W), motion (N, 1, H, W) -> (N, C, H, W); no motion counts as G = 0."""
        a, b = self.weight.flatten()
        scale = 1 + a + (b if motion is None else b * (1 + motion))
        return frames * scale.to(frames.dtype)


class SpatialInception(Inception):
    """Inception module over height and width whose pool also looks one frame back and ahead."""

    def __init__(
        self, in_channels: int, widths: InceptionWidths, momentum: float, nonnegative_input: bool
    ):
        super().__init__(in_channels, widths, (1, 3, 3), momentum)
        self.nonnegative_input = nonnegative_input
        self.pool: Callable[[Tensor, int, bool], Tensor] = max_pool_3x3x3

    def forward(self, frames: Tensor, num_frames: int) -> Tensor:
        """(B * T, I, H, W) -> (B * T, widths.total, H, W)"""
        return self.join(frames, self.pool(frames, num_frames, self.nonnegative_input))


def gather_pools(network: nn.Module) -> None:
    """Give the inception modules of a network on a GPU the pool of models/gathered_pool.py.

    Raises ValueError on the CPU, and where Triton is not installed.
    """
    modules = [module for module in network.modules() if isinstance(module, SpatialInception)]
    if any(module.point.conv.weight.device.type == "cpu" for module in modules):
        raise ValueError("the gathering pool is for GPUs, and this network is on the CPU")
    if modules and find_spec("triton") is None:
        raise ValueError(
            "the gathering pool needs Triton, which torch's builds for CUDA bring along; "
            "pip install triton"
        )
    for module in modules:
        module.pool = gathered_max_pool_3x3x3


class SpatialTrunk(nn.Module):
    """The convolutions that the spatial networks of CVPR'22 and UMDR share, in three stages.

    `width` is the channel count of the first convolution; every other one scales with it.
    `nonnegative` promises that no inception module's input is ever negative.
    """

    def __init__(self, width: int, momentum: float, nonnegative: bool):
        super().__init__()
        factor = width / PUBLISHED_WIDTH
        widths = {name: paths.scaled(factor) for name, paths in INCEPTION_WIDTHS.items()}
        stem = scaled(192, factor)

        def inception(in_channels: int, name: str) -> SpatialInception:
            # the second module of each pair reads attended features, and a, b may turn negative
            safe = name.endswith("b") or nonnegative
            return SpatialInception(in_channels, widths[name], momentum, safe)

        self.conv1 = ConvUnit(3, width, (1, 7, 7), stride=2, momentum=momentum)
        self.conv2b = ConvUnit(width, width, (1, 1, 1), momentum=momentum)
        self.conv2c = ConvUnit(width, stem, (1, 3, 3), momentum=momentum)
        self.inception3b = inception(stem, "3b")
        self.inception3c = inception(widths["3b"].total, "3c")
        self.inception4b = inception(widths["3c"].total, "4b")
        self.inception4c = inception(widths["4b"].total, "4c")
        self.inception5b = inception(widths["4c"].total, "5b")
        self.inception5c = inception(widths["5b"].total, "5c")
        self.stage_widths = tuple(widths[name].total for name in ("3c", "4c", "5c"))

    def stem(self, clip: Tensor) -> Tensor:
        """(B, 3, T, H, W) -> (B * T, C, H / 8, W / 8)"""
        frames = halved(self.conv1(frames_of(clip)), 3)
        return halved(self.conv2c(self.conv2b(frames)), 3)


class SpatialNetwork(SpatialTrunk):
    """Frames -> tokens (CVPR'22, "decoupled spatial network")."""

    def __init__(
        self,
        *,
        width: int,
        dim: int,
        motion_attention: bool,
        momentum: float,
        motion_gain: float = 0.0,
    ):
        super().__init__(width, momentum, nonnegative=not motion_attention)
        self.token_norm = nn.LayerNorm(self.stage_widths[-1])
        self.token_linear = nn.Linear(self.stage_widths[-1], dim)
        self.motion_attention = MotionAttention(motion_gain) if motion_attention else None

    def forward(self, clip: Tensor, motion: Tensor | None = None) -> Tensor:
        """clip (B, 3, T, H, W), motion (B, 1, T, H, W) -> tokens (B, T, D)"""
        num_frames = clip.shape[2]
        eighth, sixteenth, thirty_second = self.motion_pyramid(motion)

        frames = self.stem(clip)
        frames = self.attend(self.inception3b(frames, num_frames), eighth)
        frames = halved(self.inception3c(frames, num_frames), 3)
        frames = self.attend(self.inception4b(frames, num_frames), sixteenth)
        frames = halved(self.inception4c(frames, num_frames), 2)
        frames = self.attend(self.inception5b(frames, num_frames), thirty_second)
        frames = self.inception5c(frames, num_frames)

        tokens = frames.mean((2, 3)).unflatten(0, (-1, num_frames))
        return self.token_linear(self.token_norm(tokens))

    def attend(self, frames: Tensor, motion: Tensor | None) -> Tensor:
        """frames (N, C, H, W), motion (N, 1, H, W) -> (N, C, H, W)"""
        return frames if self.motion_attention is None else self.motion_attention(frames, motion)

    def motion_pyramid(self, motion: Tensor | None) -> tuple[Tensor | None, ...]:
        """(B, 1, T, H, W) -> three of (B * T, 1, h, w), at 1/8, 1/16 and 1/32 of H and W"""
        if self.motion_attention is None or motion is None:
            return None, None, None
        eighth = F.max_pool2d(frames_of(motion), 8)
        sixteenth = F.max_pool2d(eighth, 2)
        return eighth, sixteenth, F.max_pool2d(sixteenth, 2)


def frames_of(video: Tensor) -> Tensor:
    """(B, C, T, H, W) -> (B * T, C, H, W) in the same memory layout; a view if channels-last."""
    return video.transpose(1, 2).flatten(0, 1)
