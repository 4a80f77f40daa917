"""What was tried for speed and not kept: each changes one thing of a placed network, and no result.

benchmarks/README.md has what they gained and lost; `python -m benchmarks.step --forms` runs them.
They raise ValueError for a network that has nothing of what they change.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from engine.batch_norm import GlobalBatchNorm
from models.blocks import ConvUnit, FlatConv, Inception, same_padding
from models.spatial import SpatialInception, SpatialTrunk, gather_pools
from models.staged import StageRecoupling
from models.temporal import NUM_HEADS, KnnAttention


def conv3d(network: nn.Module) -> None:
    """3-D convolutions of one long video instead of 2-D ones of its frames."""

    def forward(conv: FlatConv, planes: Tensor) -> Tensor:
        # (N, C, H, W) -> (1, C, N, H, W), or where the kernel is over time (N, C, f, 1, 1)
        over_time = conv.flat_axis == 4
        video = planes[..., None] if over_time else planes.transpose(0, 1)[None]
        stride = (1, *conv.stride[1:])
        sizes = zip(video.shape[2:], conv.kernel_size, stride, strict=True)
        zeros = [same_padding(*size) for size in sizes]
        padding = [before for before, _ in zeros]
        if any(before != after for before, after in zeros):
            video = F.pad(video, [count for pair in reversed(zeros) for count in pair])
            padding = [0, 0, 0]
        out = F.conv3d(video, conv.weight, stride=stride, padding=padding)
        return out.squeeze(4) if over_time else out[0].transpose(0, 1)

    _replace_forward(network, FlatConv, forward)


def split_pool(network: nn.Module) -> None:
    """The 3x3x3 pools as one over height and width and one over time."""

    def forward(module: SpatialInception, frames: Tensor, num_frames: int) -> Tensor:
        pooled = F.max_pool2d(F.pad(frames, (1, 1, 1, 1)), 3, stride=1)
        video = pooled.unflatten(0, (-1, num_frames)).transpose(1, 2)
        video = F.max_pool3d(F.pad(video, (0, 0, 0, 0, 1, 1)), (3, 1, 1), stride=1)
        return module.join(frames, video.transpose(1, 2).flatten(0, 1))

    _replace_forward(network, SpatialInception, forward)


def gathered_pool(network: nn.Module) -> None:
    """On GPUs: the 3x3x3 pools by kernels of our own, as `train.deterministic` has them."""
    _of_type(network, SpatialInception)
    gather_pools(network)


def joined_points(network: nn.Module) -> None:
    """The three 1x1x1 convolutions that read the same input as one, with one norm and one ReLU."""
    for module in _of_type(network, Inception):
        units = (module.point, module.reduce_a, module.reduce_b)
        first, weight = units[0].norm, units[0].conv.weight
        norm = type(first)(
            sum(unit.norm.num_features for unit in units), first.eps, first.momentum,
            device=weight.device, dtype=weight.dtype,
        )  # fmt: skip
        norm.weight = norm.bias = None  # given at every call
        module.join = _Joined(module, units, norm)  # type: ignore[assignment, method-assign]


def gathered_joined(network: nn.Module) -> None:
    """Both, on GPUs."""
    gathered_pool(network)
    joined_points(network)


class _Joined:
    """Inception.join with one convolution for `units`."""

    def __init__(self, module: Inception, units: tuple[ConvUnit, ...], norm: nn.Module):
        self.module, self.units, self.norm = module, units, norm

    def __call__(self, planes: Tensor, pooled_planes: Tensor) -> Tensor:
        weight = torch.cat([unit.conv.weight for unit in self.units]).squeeze(4)
        given = {
            key: torch.cat([getattr(unit.norm, key) for unit in self.units])
            for key in ("weight", "bias")
        }
        joint = F.relu(functional_call(self.norm, given, F.conv2d(planes, weight)), inplace=True)
        widths = [unit.norm.num_features for unit in self.units]
        point, reduce_a, reduce_b = joint.split(widths, 1)
        module = self.module
        paths = (
            point, module.conv_a(reduce_a), module.conv_b(reduce_b), module.pooled(pooled_planes)
        )  # fmt: skip
        return torch.cat(paths, 1)


def attention_call(network: nn.Module) -> None:
    """torch's attention in one call, which needs the mask of the best keys, and so the scores."""

    def forward(module: KnnAttention, tokens: Tensor) -> Tensor:
        heads = module.qkv(tokens).unflatten(2, (3, NUM_HEADS, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4).unbind(0)
        with torch.no_grad():
            scores = query @ key.transpose(-1, -2)
            best = scores.topk(module.kept, sorted=False).indices
            mask = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, best, True)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return module.dropout(module.out(mixed.transpose(1, 2).flatten(2)))

    _replace_forward(network, KnnAttention, forward)


def pixels_mixed(network: nn.Module) -> None:
    """UMDR's recoupling with the pixels on the left of the product, as they lie in memory: no copy
    of what comes out, and one of the shares' gradient."""

    def mixed(module: StageRecoupling, frames: Tensor) -> Tensor:
        shares = module.shares(frames).flatten(0, 1)
        pixels = frames.flatten(2).transpose(1, 2)
        return (pixels @ shares.mT).transpose(1, 2).unflatten(2, frames.shape[2:])

    for module in _of_type(network, StageRecoupling):
        module.mixed = mixed.__get__(module)


def torch_batch_norm(network: nn.Module) -> None:
    """On the CPU: torch's channels-last kernel, whose sums are off by up to 4e-4."""
    for parent in list(network.modules()):
        for name, norm in list(parent.named_children()):
            if isinstance(norm, GlobalBatchNorm):
                plain = nn.BatchNorm2d(norm.num_features, norm.eps, norm.momentum)
                setattr(parent, name, plain.to(norm.weight))
                plain.weight, plain.bias = norm.weight, norm.bias


def contiguous(network: nn.Module) -> None:
    """Every channel of a frame on its own in memory instead of the channels innermost; with torch's
    norm, which is exact there."""
    torch_batch_norm(network)
    for parameter in network.parameters():
        parameter.data = parameter.data.contiguous()
    for module in _of_type(network, SpatialTrunk):
        module.register_forward_pre_hook(lambda _, inputs: (_frames_apart(inputs[0]), *inputs[1:]))


def _frames_apart(clip: Tensor) -> Tensor:
    """(B, 3, T, H, W), in memory (B, T, 3, H, W): its frames are contiguous planes"""
    return clip.transpose(1, 2).contiguous().transpose(1, 2)


def _replace_forward(network: nn.Module, kind: type, forward: Callable[..., Tensor]) -> None:
    for module in _of_type(network, kind):
        module.forward = forward.__get__(module)  # type: ignore[method-assign]


def _of_type(network: nn.Module, kind: type) -> list[Any]:
    """Raises ValueError where there is none: the network as it was would be measured."""
    found = [module for module in network.modules() if isinstance(module, kind)]
    if not found:
        raise ValueError(f"this form is for a network with a {kind.__name__}")
    return found


ALTERNATIVES: dict[str, Callable[[nn.Module], None]] = {
    change.__name__: change
    for change in (
        conv3d, split_pool, joined_points, attention_call, pixels_mixed, torch_batch_norm,
        contiguous,
    )
}  # fmt: skip
