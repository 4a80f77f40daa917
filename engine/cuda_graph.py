"""The network's forward and backward pass in training as two CUDA graphs: each one launch instead
of thousands.

Captured is the network alone, inside DistributedDataParallel and before the loss: gradients reach
its hooks as ever, the epoch stays outside, and the temperature goes in as a tensor. That is
torch.cuda.make_graphed_callables; torch.compile's own graphs (`reduce-overhead`) would need all of
the network to compile, and SyncBatchNorm's exchange between ranks need not.
"""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from engine.compilation import as_tensors, try_forward
from engine.distributed import Ranks, unwrap
from models.output import ModelOutput

THIS_THREAD_ONLY: dict[str, Any] = {"capture_error_mode": "thread_local"}
"""The loader's threads use the GPU meanwhile, which would end a capture in the default mode."""


def capture_training(model: nn.Module, ranks: Ranks, trial: Callable[[], Tensor]) -> str | None:
    """Capture the network inside `model` for training; None, or why it could not be.

    `trial` runs forward and backward pass with `model` and returns the loss. Where that fails the
    network is left as it was, on all ranks alike.
    """
    if ranks.device.type != "cuda":
        return "CUDA graphs are for GPUs, and this run is on the CPU"
    known = inspect.signature(torch.cuda.make_graphed_callables).parameters
    if not THIS_THREAD_ONLY.keys() <= known.keys():
        return "this torch captures only while no other thread uses the GPU; take a newer one"
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
        self.graphed: Positional | None = None
        self.shapes: list[torch.Size] = []

    def __call__(self, *inputs: Any, **options: Any) -> ModelOutput:
        """As the network's own forward."""
        if not (self.network.training and torch.is_grad_enabled()):
            return self.plain(*inputs, **options)
        leaves, form = pytree.tree_flatten((inputs, as_tensors(options, self.network)))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if self.graphed is None:
            self.shapes = [tensor.shape for tensor in tensors]
            self.graphed = capture(Positional(self.network, self.plain, leaves, form), tensors)
        elif self.shapes != [tensor.shape for tensor in tensors]:
            return self.plain(*inputs, **options)
        return self.graphed.output(self.graphed(*tensors))


class Positional(nn.Module):
    """The network as a function of tensors to tensors, the only kind that can be captured."""

    def __init__(
        self,
        network: nn.Module,
        plain: Callable[..., ModelOutput],
        leaves: list[Any],
        form: pytree.TreeSpec,
    ):
        """`leaves` and `form`: the network's inputs as `tree_flatten` gave them."""
        super().__init__()
        self.network = network
        self.plain = plain
        self.fixed = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self.is_tensor = [isinstance(leaf, Tensor) for leaf in leaves]
        self.form = form
        self.found: type[ModelOutput] = ModelOutput
        self.found_form: pytree.TreeSpec | None = None
        self.found_tensors: list[bool] = []

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
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
        assert self.found_form is not None, "forward comes first"
        given = iter(tensors)
        leaves = [next(given) if is_tensor else None for is_tensor in self.found_tensors]
        return self.found(*pytree.tree_unflatten(leaves, self.found_form))


def capture(module: Positional, tensors: list[Tensor]) -> Positional:
    """The module, whose forward and backward pass are now replays."""
    # Copies: every replay's inputs are put where the captured ones lay, in the loader's memory.
    static = tuple(tensor.clone() for tensor in tensors)
    kind = tensors[0].device.type
    with torch.autocast(
        kind, torch.get_autocast_dtype(kind), enabled=torch.is_autocast_enabled(kind),
        cache_enabled=False,  # a cached cast would not be in the graph
    ):  # fmt: skip
        torch.cuda.make_graphed_callables(
            module, static, allow_unused_input=True, **THIS_THREAD_ONLY
        )
    return module
