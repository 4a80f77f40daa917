"""What a training step consists of: every operation, its arithmetic and the bytes it moves.

Counted on shapes alone, without memory or arithmetic. The bytes are what an operation reads and
writes as if no cache held anything over from one to the next. Measures nothing.
"""

import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks.forms import EPOCH, LOSS, OPTIM, TEMPERATURE
from engine.loop import Precision, TrainStep
from engine.optim import build_optimizer
from engine.skipping import begin_momentum
from pipelines.batch import Batch

CPU = torch.device("cpu")

KINDS = {
    "convolution": ("convolution",),
    "matrix product": ("mm", "addmm", "bmm", "baddbmm"),
    "norm": ("native_batch_norm", "native_layer_norm"),
    "pool": ("max_pool", "gathered_max_pool", "adaptive_avg_pool", "_adaptive_avg_pool"),
    "optimizer": ("_fused_", "_foreach_"),
}
"""By how the names of the operations begin."""

ELEMENTWISE = "element-wise"
"""All others: a compiler can make them part of the operation before or behind, and a perfect one
moves nothing for them."""

READ_TWICE = {
    "convolution_backward": (0,),  # for the gradient of the input, and of the weights
    "native_batch_norm": (0,),  # for the statistics, and to normalise
    "native_batch_norm_backward": (0, 1),
}
"""Positions of the arguments that do not fit into a cache between two uses."""

NOT_READ = {
    "max_pool2d_with_indices_backward": (1,), "max_pool3d_with_indices_backward": (1,),
    "copy_": (0,), "zero_": (0,), "fill_": (0,), "bernoulli_": (0,), "zeros_like": (0,),
    "ones_like": (0,), "full_like": (0,), "new_zeros": (0,), "new_full": (0,), "new_ones": (0,),
    "_fused_sgd_": (1,),  # read, but not written as its declaration has it: there is no loss scale
}  # fmt: skip
"""Positions of the arguments of which only the shape counts."""

MOVE_NOTHING = ("_unsafe_view", "detach", "empty", "new_empty", "_reshape_alias")
"""How the names of operations begin that are no views by their declaration and touch no number."""


@dataclass(frozen=True)
class Operation:
    """One call of an operation."""

    name: str
    num_bytes: int
    flop: int
    """Of convolutions and matrix products, two per multiply-add."""

    @property
    def kind(self) -> str:
        """A key of KINDS, or ELEMENTWISE."""
        for kind, beginnings in KINDS.items():
            if self.name.startswith(beginnings):
                return kind
        return ELEMENTWISE

    def least_seconds(self, bytes_per_s: float, flop_per_s: float) -> float:
        """On a device of these rates, which does arithmetic while it moves bytes."""
        return max(self.num_bytes / bytes_per_s, self.flop / flop_per_s)


class _Recorder(TorchDispatchMode):
    """Keeps an `Operation` of everything that runs within."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        idle = func.is_view or name.startswith(MOVE_NOTHING)
        if idle or func.namespace in ("prim", "profiler"):
            return result
        flop = 0
        if func.overloadpacket in flop_registry:
            flop = flop_registry[func.overloadpacket](*args, **kwargs, out_val=result)
        self.operations.append(Operation(name, _moved(func, args, kwargs, result), flop))
        return result


def _moved(func: Any, args: tuple, kwargs: dict, result: Any) -> int:
    """Bytes read and written by one call."""
    name, total = func.overloadpacket.__name__, 0
    for position, argument in enumerate(func._schema.arguments):
        value = args[position] if position < len(args) else kwargs.get(argument.name)
        times = 1 + (position in READ_TWICE.get(name, ())) - (position in NOT_READ.get(name, ()))
        times += bool(argument.alias_info and argument.alias_info.is_write)
        total += times * _size(value)
    declared = func._schema.returns
    returned = result if len(declared) > 1 else [result] * len(declared)
    fresh = (value for one, value in zip(declared, returned, strict=True) if one.alias_info is None)
    return total + sum(map(_size, fresh))


def _size(value: Any) -> int:
    """Bytes of all tensors in it; a number that is there once for many counts once."""
    return sum(
        tensor.element_size()
        * math.prod(
            1 if step == 0 else n for n, step in zip(tensor.shape, tensor.stride(), strict=True)
        )
        for tensor in tree_leaves(value)
        if isinstance(tensor, Tensor)
    )


class _CastAsOnGpus(TorchFunctionMode):
    """Autocast of CPUs makes the input of a 3-D pool fp32; that of GPUs leaves it as it is."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        is_pool = func is F.max_pool3d
        with torch.autocast("cpu", enabled=False) if is_pool else nullcontext():
            return func(*args, **(kwargs or {}))


def recorded(action: Callable[[], object]) -> list[Operation]:
    """Of what `action` does, which makes all its tensors itself, with shapes and no numbers."""
    recorder = _Recorder()
    with FakeTensorMode(allow_non_fake_inputs=True), recorder:
        action()
    return recorder.operations


def step_operations(
    make_model: Callable[[], nn.Module], make_batch: Callable[[], Batch], precision: str
) -> list[Operation]:
    """Of a whole training step: forward, loss, backward, clipping, fused SGD. No memory is taken.

    `precision` is one of train.precision's, not `auto`.
    """
    recorder, chosen = _Recorder(), Precision.choose(precision, CPU)
    with FakeTensorMode(), _CastAsOnGpus():
        with mock.patch.object(
            nn.init, "trunc_normal_"
        ):  # draws until the numbers are small enough
            model = make_model().train()
        optimizer = build_optimizer(model, replace(OPTIM, fused="torch"))
        step, batch = TrainStep(model, optimizer, LOSS, OPTIM.clip_norm, chosen), make_batch()
        begin_momentum(optimizer)  # which a run has from its second step on
        with recorder:
            step(batch, EPOCH, TEMPERATURE)
    return recorder.operations


def merged(operations: Iterable[Operation]) -> list[Operation]:
    """Those that remain where element-wise ones are made part of others."""
    return [operation for operation in operations if operation.kind != ELEMENTWISE]


def least_seconds(operations: Iterable[Operation], bytes_per_s: float, flop_per_s: float) -> float:
    """Of all, one after the other."""
    return sum(operation.least_seconds(bytes_per_s, flop_per_s) for operation in operations)
