"""Batch normalisation over the clips of all ranks, for CPUs. GPUs take torch's SyncBatchNorm."""

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

WIDEST_ROW = 4096
"""Numbers in the rows that torch's kernels sum over: what they need of them stays in the cache."""

MOST_FOLDS = 64
"""A power of two: more partial sums per channel than that gain no digit worth their time."""


class GlobalBatchNorm(_BatchNorm):
    """A batch norm whose training statistics are those of the global batch.

    Same parameters, buffers and state dict as the norm it replaces. Ranks may hold different
    numbers of clips, but each some. Fastest where the channels are the innermost axis of the input
    in memory.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected (B, C, ...), got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, ...) -> the same shape."""
        self._check_input_dim(input)
        if not self.training:
            return super().forward(input)
        precise = input.to(self.weight.dtype)  # statistics of 16-bit features are no 16-bit numbers
        output, mean, variance = _Normalise.apply(precise, self.weight, self.bias, self.eps)
        self._track(mean, variance)
        return output.to(input.dtype)

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


class _Normalise(torch.autograd.Function):
    """x (B, C, ...), weight (C,), bias (C,), eps -> normalised x, and the mean (C,) and unbiased
    variance (C,) of all ranks, which are not differentiated.

    torch's kernels for channels-last input are fast, but add up one row of C numbers after the
    other, which in float32 costs up to 4e-4. Here they see longer and fewer rows and leave `fold`
    partial results per channel, joined without loss: their speed, with errors near 1e-6.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Any:
        rows, fold = _folded(x)
        parts = torch.batch_norm_update_stats(rows, None, None, 0.0)
        mean, variance = _pooled(parts[0].view(fold, -1), parts[1].view(fold, -1), 1 / fold)
        count = x.numel() // x.shape[1]
        if _world_size() > 1:
            counted = torch.stack((mean, variance, torch.full_like(mean, count)))
            means, variances, counts = _gather(counted).unbind(1)
            count = int(counts[:, 0].double().sum())
            mean, variance = _pooled(means, variances, counts / count)
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.eps, ctx.count = eps, count
        unbiased = variance * (count / (count - 1))
        ctx.mark_non_differentiable(mean, unbiased)
        ctx.set_materialize_grads(False)  # no zeros in place of their gradients
        return _normalised(x, mean, variance, weight, bias, eps), mean, unbiased

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> Any:
        x, weight, mean, variance = ctx.saved_tensors
        inverse_std = torch.rsqrt(variance + ctx.eps)
        rows, fold = _folded(x)
        gradient_rows = _folded(gradient)[0]
        _, by_weight, by_bias = torch.ops.aten.native_batch_norm_backward(
            gradient_rows, rows, None, None, None, _repeated(mean, fold),
            _repeated(inverse_std, fold), True, 0.0, [False, True, True],
        )  # fmt: skip
        # This rank's sums of gradient x normalised x and of the gradient: those of the parameters.
        sums = torch.stack((by_weight, by_bias)).view(2, fold, -1).sum(1)
        means = (_gather(sums).sum(0) if _world_size() > 1 else sums) / ctx.count
        # by x = scale (gradient - its mean - normalised x * mean of gradient x normalised x)
        scale = weight * inverse_std
        slope, offset = (-scale * means).unbind()
        by_x = _normalised(x, mean, variance, slope, offset, ctx.eps)
        by_x.addcmul_(gradient, scale.view(1, -1, *[1] * (x.dim() - 2)))
        return by_x, *sums.unbind(), None


def _normalised(
    x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias, per channel, in one pass."""
    return torch.batch_norm(x, weight, bias, mean, variance, False, 0.0, eps, False)


def _folded(x: Tensor) -> tuple[Tensor, int]:
    """(B, C, ...) -> the same numbers as (1, fold * C, rows, 1), and `fold`: a power of two.

    A view where the channels of x are innermost in memory.
    """
    rows = x.movedim(1, -1).reshape(-1, x.shape[1]).contiguous()
    count, channels = rows.shape
    fold = math.gcd(count, MOST_FOLDS)
    while fold > 1 and fold * channels > WIDEST_ROW:
        fold //= 2
    wide = fold * channels
    return rows.as_strided((1, wide, count // fold, 1), (count * channels, 1, wide, 1)), fold


def _repeated(values: Tensor, times: int) -> Tensor:
    """(C,) -> (times * C,), a third of the time of Tensor.repeat"""
    return values.expand(times, -1).flatten()


def _pooled(means: Tensor, variances: Tensor, shares: Tensor | float) -> tuple[Tensor, Tensor]:
    """Means and biased variances (P, C) of P parts, and their shares of all numbers (the same for
    all, or (P, C)) -> those (C,) of the whole."""
    mean = (means * shares).sum(0)
    return mean, ((variances + (means - mean).square()) * shares).sum(0)


def _world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _gather(values: Tensor) -> Tensor:
    """The tensors of all ranks, in rank order, along a new first axis."""
    parts = [torch.empty_like(values) for _ in range(_world_size())]
    dist.all_gather(parts, values)
    return torch.stack(parts)
