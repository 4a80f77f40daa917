"""torch.compile of the network in training: where it pays, and why where it is not used."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from engine.distributed import Ranks, unwrap
from models.output import ModelOutput

BACKEND = "inductor"
"""What turns the traced network into code."""


def is_wanted(choice: str, device: torch.device) -> bool:
    """`auto` compiles for GPUs. On CPUs it was measured to be slower (benchmarks/README.md)."""
    return choice == "on" or (choice == "auto" and device.type == "cuda")


def compile_training(model: nn.Module, ranks: Ranks, trial: Callable[[], Tensor]) -> str | None:
    """Compile the network inside `model` for training; None, or why it could not be.

    `trial` runs forward and backward pass with `model` and returns the loss: what the compiler
    cannot do shows there. The network is then left as it was, on all ranks alike.
    """
    network = unwrap(model)
    problem = _first(ranks.gather(_problem_with(_compile_a_line(ranks.device))))
    if problem is None:
        network.forward = CompiledForward(network)  # type: ignore[method-assign]
        problem = _first(ranks.gather(_problem_with(trial)))
        if problem is not None:
            del network.forward
    return problem


class CompiledForward:
    """Stands in for a network's forward pass: compiled for the shapes that training gives it first.

    Other shapes and evaluation run uncompiled, so nothing is ever compiled twice. The network's
    modules, parameters and state dict stay what they are.
    """

    def __init__(self, network: nn.Module):
        self.network = network
        self.plain: Callable[..., ModelOutput] = network.forward
        # fullgraph: pieces between what cannot be compiled are compiled anew for every layer, up
        # to a limit beyond which they silently are not; better to be told.
        self.compiled = torch.compile(self.plain, fullgraph=True, dynamic=False, backend=BACKEND)
        self.shapes: list[torch.Size] | None = None

    def __call__(self, *inputs: Any, **options: Any) -> ModelOutput:
        """As the network's own forward."""
        if not (self.network.training and torch.is_grad_enabled()):
            return self.plain(*inputs, **options)
        tensors = list(_tensors([*inputs, *options.values()]))
        shapes = [tensor.shape for tensor in tensors]
        self.shapes = self.shapes or shapes
        if shapes != self.shapes:
            return self.plain(*inputs, **options)
        # A number is a constant of the program, and the temperature changes with the epoch.
        for name, value in options.items():
            if isinstance(value, float):
                dtype = torch.promote_types(next(self.network.parameters()).dtype, torch.float32)
                options[name] = torch.full((), value, dtype=dtype, device=tensors[0].device)
        return self.compiled(*inputs, **options)


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)


def _compile_a_line(device: torch.device) -> Callable[[], Tensor]:
    """The compiler itself, without ranks that wait for each other."""
    return lambda: torch.compile(_line, backend=BACKEND)(torch.ones(8, device=device))


def _line(x: Tensor) -> Tensor:
    return (x * 2).sum()


def _problem_with(trial: Callable[[], Tensor]) -> str | None:
    try:
        value = trial().item()
    # Whatever the compiler stumbles over: the step works without it, and fails again if it is
    # something else.
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        return f"{type(error).__name__}: {lines[0]}"
    return None if math.isfinite(value) else f"the loss of the trial is {value}"


def _first(problems: list[str | None]) -> str | None:
    return next((problem for problem in problems if problem is not None), None)
