"""The network's forward and backward pass in training as two CUDA graphs: each one launch instead
of thousands.

Captured is the network alone, inside DistributedDataParallel and before the loss: gradients reach
its hooks as ever, the epoch stays outside, and the temperature goes in as a tensor. torch.compile's
own graphs (`reduce-overhead`) would need all of the network to compile, and SyncBatchNorm's
exchange between ranks need not. torch's `make_graphed_callables` does the same, but in torch 2.11
only while no other thread uses the GPU.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils import _pytree as pytree

from engine.compilation import as_tensors, try_forward
from engine.distributed import Ranks, unwrap
from models.output import ModelOutput

WARM_UPS = 3
"""Passes before the capture: libraries allocate, choose and compile in their first ones."""

Work = Callable[[], Sequence[Tensor | None]]
"""Computes tensors of what lies in fixed memory."""


def capture_training(model: nn.Module, ranks: Ranks, trial: Callable[[], Tensor]) -> str | None:
    """Capture the network inside `model` for training; None, or why it could not be.

    `trial` runs forward and backward pass with `model` and returns the loss. Where that fails the
    network is left as it was, on all ranks alike.
    """
    if ranks.device.type != "cuda":
        return "CUDA graphs are for GPUs, and this run is on the CPU"
    network = unwrap(model)
    return try_forward(network, GraphedForward(network), ranks, trial)


class GraphedForward:
    """Stands in for a network's forward pass: captured with the inputs that training gives first.

    Inputs of other shapes and evaluation run uncaptured. Modules, parameters and state dict stay
    what they are. An output is overwritten by the next pass. Dropout draws from the generator
    as it is at each replay.
    """

    def __init__(self, network: nn.Module):
        self.network = network
        self.plain: Callable[..., ModelOutput] = network.forward  # perhaps compiled
        self.captured: CapturedPasses | None = None
        self.shapes: list[torch.Size] = []

    def __call__(self, *inputs: Any, **options: Any) -> ModelOutput:
        """As the network's own forward."""
        if not (self.network.training and torch.is_grad_enabled()):
            return self.plain(*inputs, **options)
        leaves, form = pytree.tree_flatten((inputs, as_tensors(options, self.network)))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if self.captured is None:
            self.shapes = [tensor.shape for tensor in tensors]
            learnt = [value for value in self.network.parameters() if value.requires_grad]
            self.captured = CapturedPasses(Positional(self.plain, leaves, form), tensors, learnt)
        elif self.shapes != [tensor.shape for tensor in tensors]:
            return self.plain(*inputs, **options)
        return self.captured(tensors)


class Positional:
    """The network as a function of tensors to tensors, the only kind that can be captured."""

    def __init__(self, plain: Callable[..., ModelOutput], leaves: list[Any], form: pytree.TreeSpec):
        """`leaves` and `form`: the network's inputs as `tree_flatten` gave them."""
        self.plain = plain
        self.fixed = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self.is_tensor = [isinstance(leaf, Tensor) for leaf in leaves]
        self.form = form
        self.found: type[ModelOutput] = ModelOutput
        self.found_form: pytree.TreeSpec | None = None
        self.found_tensors: list[bool] = []

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Tensors of the inputs, in order -> those of the output."""
        given = iter(tensors)
        leaves = [
            next(given) if is_tensor else fixed
            for is_tensor, fixed in zip(self.is_tensor, self.fixed, strict=True)
        ]
        inputs, options = pytree.tree_unflatten(leaves, self.form)
        output = self.plain(*inputs, **options)
        values = [getattr(output, field.name) for field in dataclasses.fields(output)]
        found, self.found_form = pytree.tree_flatten(values)
        self.found, self.found_tensors = type(output), [isinstance(f, Tensor) for f in found]
        return tuple(leaf for leaf in found if isinstance(leaf, Tensor))

    def output(self, tensors: tuple[Tensor, ...]) -> ModelOutput:
        """The record that the network returned, of these tensors; what was none is None."""
        assert self.found_form is not None, "a call comes first"
        given = iter(tensors)
        leaves = [next(given) if is_tensor else None for is_tensor in self.found_tensors]
        return self.found(*pytree.tree_unflatten(leaves, self.found_form))


class Recording:
    """GPU work captured once. Every replay does it again, from and to the same memory."""

    def __init__(self, work: Work, pool: Any):
        self.graph = torch.cuda.CUDAGraph()
        # In the default mode the loader's threads, which use the GPU meanwhile, end a capture.
        with torch.cuda.graph(self.graph, pool=pool, capture_error_mode="thread_local"):
            self.outputs = work()

    def replay(self) -> None:
        """`outputs` hold the new values when the GPU has come so far."""
        self.graph.replay()


def record(*works: Work) -> list[Recording]:
    """One for each, to be replayed in their order: what a later one reads of an earlier one stays
    in memory that they share."""
    pool = torch.cuda.graph_pool_handle()
    return [Recording(work, pool) for work in works]


def warm_up(*works: Work) -> None:
    """As captures do, on a stream of its own."""
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        for work in works * WARM_UPS:
            work()
    torch.cuda.synchronize()


class CapturedPasses:
    """A program's forward and backward pass, each a replay."""

    def __init__(self, program: Positional, tensors: Sequence[Tensor], learnt: list[nn.Parameter]):
        """`tensors`: its inputs, of which none is learnt; `learnt`: what it reads besides."""
        self.program = program
        self.learnt = learnt
        # Copies: every replay's inputs are put where the captured ones lay, in the loader's memory.
        self.inputs = [tensor.clone() for tensor in tensors]
        self.live: tuple[Tensor, ...] = ()
        """The outputs of the last pass that was computed, with its graph of operations."""

        kind = self.inputs[0].device.type
        with torch.autocast(
            kind, torch.get_autocast_dtype(kind), enabled=torch.is_autocast_enabled(kind),
            cache_enabled=False,  # a cached cast would not be in the graph
        ):  # fmt: skip
            live = self._compute()
            self.has_gradient = [output.requires_grad for output in live]
            self.sent = [torch.zeros_like(output) for output in live if output.requires_grad]
            warm_up(self._compute, self._differentiate)
            self.forward, self.backward = record(self._compute, self._differentiate)
        self.live = ()

    def __call__(self, tensors: Sequence[Tensor]) -> ModelOutput:
        """As the network. What it returns is overwritten by the next call."""
        return self.program.output(_Replay.apply(self, *tensors, *self.learnt))

    def _compute(self) -> tuple[Tensor, ...]:
        self.live = self.program(*self.inputs)
        return self.live

    def _differentiate(self) -> tuple[Tensor | None, ...]:
        outputs = [output for output in self.live if output.requires_grad]
        return torch.autograd.grad(outputs, self.learnt, self.sent, allow_unused=True)


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, passes: CapturedPasses, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.passes = passes
        for fixed, tensor in zip(passes.inputs, tensors, strict=False):
            fixed.copy_(tensor)
        passes.forward.replay()
        outputs = tuple(output.detach() for output in passes.forward.outputs if output is not None)
        kept = zip(outputs, passes.has_gradient, strict=True)
        ctx.mark_non_differentiable(*(output for output, has_gradient in kept if not has_gradient))
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        passes = ctx.passes
        wanted = [g for g, has in zip(gradients, passes.has_gradient, strict=True) if has]
        for fixed, gradient in zip(passes.sent, wanted, strict=True):
            fixed.copy_(gradient)
        passes.backward.replay()
        found = [None if g is None else g.detach() for g in passes.backward.outputs]
        return (None, *(None for _ in passes.inputs), *found)
