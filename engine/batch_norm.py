"""Batch normalisation over the clips of all ranks, for CPUs. GPUs take torch's SyncBatchNorm."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class GlobalBatchNorm(_BatchNorm):
    """A batch norm whose training statistics are those of the global batch.

    Written with differentiable all-reduces: autograd finds the gradient through the statistics of
    the other ranks. Same parameters, buffers and state dict as the norm it replaces. All ranks
    must hold inputs of one shape.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected (B, C, ...), got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, ...) -> the same shape."""
        if not self.training:
            return super().forward(input)
        axes = [axis for axis in range(input.dim()) if axis != 1]
        count = input.numel() // input.shape[1] * _world_size()
        mean = _global_sum(input, axes) / count
        centred = input - self._per_channel(mean, input)
        # The variance in a second pass: E[x^2] - E[x]^2 loses digits where the mean is large.
        variance = _global_sum(centred.square(), axes) / count
        self._track(mean.detach(), variance.detach() * (count / (count - 1)))
        scale = torch.rsqrt(variance + self.eps) * self.weight
        return torch.addcmul(
            self._per_channel(self.bias, input), centred, self._per_channel(scale, input)
        )

    @classmethod
    def convert(cls, module: nn.Module) -> nn.Module:
        """Replace every batch norm below `module`, in place; returns the module."""
        if isinstance(module, _BatchNorm):
            norm = cls(module.num_features, module.eps, module.momentum)
            norm.load_state_dict(module.state_dict())
            return norm.to(module.weight.device, module.weight.dtype).train(module.training)
        for name, child in module.named_children():
            setattr(module, name, cls.convert(child))
        return module

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        mean_before, variance_before, count = (
            self.running_mean, self.running_var, self.num_batches_tracked
        )  # fmt: skip
        assert mean_before is not None and variance_before is not None and count is not None
        assert self.momentum is not None, "cumulative averages are not used here"
        with torch.no_grad():
            count += 1
            mean_before.lerp_(mean, self.momentum)
            variance_before.lerp_(variance, self.momentum)

    @staticmethod
    def _per_channel(values: Tensor, like: Tensor) -> Tensor:
        return values.view(1, -1, *[1] * (like.dim() - 2))


def _world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _global_sum(values: Tensor, axes: list[int]) -> Tensor:
    """(C,) sums over `axes` and over all ranks, differentiable."""
    total = values.sum(axes)
    return _AllReduce.apply(total) if _world_size() > 1 else total


class _AllReduce(torch.autograd.Function):
    """The sum over all ranks. Every rank's loss depends on it, so its gradient is summed too."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:  # type: ignore[override]
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        total = gradient.clone()
        dist.all_reduce(total)
        return total
