"""torchvision's video networks with the interface of our own: clips in, one head out. Fetches no
weights: torchvision's files of them are taken by `train.init_from`, as any checkpoint.

torchvision is imported where one of them is built, as it takes a second and has to fit torch, which
the CVPR'22 networks need not wait for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.output import ModelOutput

INNER = "network."
"""Before torchvision's names of parameters."""

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Published:
    """The clips of a network's published weights."""

    num_frames: int
    size: int
    mean: Colour
    """Of R, G and B in 0..1: what pixels are normalised by, and `std`."""

    std: Colour


PUBLISHED = {
    "r3d_18": Published(16, 112, (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)),
    "mvit_v2_s": Published(16, 224, (0.45, 0.45, 0.45), (0.225, 0.225, 0.225)),
    "swin3d_t": Published(32, 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


class VideoNetwork(nn.Module):
    """One of torchvision's video networks: RGB or depth clip -> class scores.

    Pixels arrive as for every network here and are normalised as for its published weights, also
    where it is trained from scratch, so that a checkpoint needs no word about it.
    """

    head_names = ("logits",)
    """Names of `ModelOutput.heads`."""

    scale: Tensor
    shift: Tensor

    def __init__(self, name: str, network: nn.Module, num_frames: int, size: int):
        super().__init__()
        self.name = name
        self.network = network
        self.clip_shape = (3, num_frames, size, size)
        mean, std = (
            torch.tensor(values).view(1, 3, 1, 1, 1)
            for values in (PUBLISHED[name].mean, PUBLISHED[name].std)
        )
        # x = (v - 127.5) / 128  ->  (v / 255 - mean) / std
        self.register_buffer("scale", 128 / 255 / std, persistent=False)
        self.register_buffer("shift", (0.5 - mean) / std, persistent=False)

    def forward(
        self,
        clip: Tensor,
        motion: Tensor | None = None,
        branch_indices: Sequence[Tensor] | None = None,
        temperature: float = 1.0,
    ) -> ModelOutput:
        """Classify a batch of clips.

        clip (B, 3, T, size, size); motion and branch_indices are for other networks and not looked
        at. temperature: what the class scores are divided by. Raises ValueError for another shape.
        """
        if tuple(clip.shape[1:]) != self.clip_shape:
            wanted = ", ".join(map(str, self.clip_shape))
            raise ValueError(f"clip must be (B, {wanted}), not {tuple(clip.shape)}")
        # In the buffers' type: 16-bit pixels are exact, normalised ones are not.
        normalised = torch.addcmul(self.shift, clip.to(self.scale.dtype), self.scale)
        return ModelOutput(self.network(normalised) / temperature)


def r3d_18(num_classes: int, *, num_frames: int = 16, size: int = 112) -> VideoNetwork:
    """R3D-18 (CVPR 2018): a residual network of 3-D convolutions and batch norms."""
    _check(num_classes, size=(size, 32), num_frames=(num_frames, 1))
    return VideoNetwork("r3d_18", _torchvision("r3d_18", num_classes), num_frames, size)


def mvit_v2_s(num_classes: int, *, num_frames: int = 16, size: int = 224) -> VideoNetwork:
    """MViT-v2-S (CVPR 2022): attention at four resolutions, pooled in between."""
    _check(num_classes, size=(size, 32), num_frames=(num_frames, 2))
    if size % 32 or num_frames % 2:
        raise ValueError(
            f"size must be a multiple of 32 and num_frames even, not {size} and {num_frames}: the "
            "network halves its patches of 2 x 4 x 4 pixels three times"
        )
    network = _torchvision("mvit_v2_s", num_classes)
    # torchvision's own builder knows 16 x 224 x 224 only. No parameter's shape depends on it: the
    # tables of relative positions are interpolated to whatever the tokens need.
    network.pos_encoding.temporal_size = num_frames // 2
    network.pos_encoding.spatial_size = (size // 4, size // 4)
    return VideoNetwork("mvit_v2_s", network, num_frames, size)


def swin3d_t(num_classes: int, *, num_frames: int = 32, size: int = 224) -> VideoNetwork:
    """Video Swin-T (CVPR 2022): attention within shifted windows of 8 x 7 x 7 patches."""
    _check(num_classes, size=(size, 32), num_frames=(num_frames, 2))
    return VideoNetwork("swin3d_t", _torchvision("swin3d_t", num_classes), num_frames, size)


def is_torchvision(content: Any) -> bool:
    """Whether a file's content is a bare state dict, as torchvision's files of weights are."""
    return isinstance(content, Mapping) and bool(content) and all(
        isinstance(value, Tensor) for value in content.values()
    )  # fmt: skip


def from_torchvision(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of torchvision's network -> that of a `VideoNetwork`; tensors are shared."""
    return {INNER + key: tensor for key, tensor in weights.items()}


def _torchvision(name: str, num_classes: int) -> Any:
    """The network as torchvision initialises it."""
    from torchvision.models import video

    return getattr(video, name)(num_classes=num_classes)


def _check(num_classes: int, **least: tuple[int, int]) -> None:
    """Raises ValueError for an option below its least value."""
    for option, (value, bound) in {"num_classes": (num_classes, 1), **least}.items():
        if value < bound:
            raise ValueError(f"{option} must be at least {bound}, not {value}")
