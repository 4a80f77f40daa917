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
    if torch.are_deterministic_algorithms_enabled() and not _is_repeatable():
        return "this torch's compiler chooses by the clock, and train.deterministic is on"
    network = unwrap(model)
    problem = _first(ranks.gather(_problem_with(_compile_a_line(ranks.device))))
    return problem or try_forward(network, CompiledForward(network), ranks, trial)


def try_forward(
    network: nn.Module,
    forward: Callable[..., ModelOutput],
    ranks: Ranks,
    trial: Callable[[], Tensor],
) -> str | None:
    """Let `forward` stand in for the network's own, where `trial` succeeds with it on all ranks;
    else the network is left as it was, and the first problem returned."""
    before = vars(network).get("forward")
    network.forward = forward  # type: ignore[method-assign]
    problem = _first(ranks.gather(_problem_with(trial)))
    if problem is not None:
        del network.forward
        if before is not None:
            network.forward = before  # type: ignore[method-assign]
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
        options = as_tensors(options, self.network)
        shapes = [tensor.shape for tensor in _tensors([*inputs, *options.values()])]
        self.shapes = self.shapes or shapes
        if shapes != self.shapes:
            return self.plain(*inputs, **options)
        return self.compiled(*inputs, **options)


def as_tensors(options: dict[str, Any], network: nn.Module) -> dict[str, Any]:
    """The options with tensors for numbers: a number is a constant of a traced program, and the
    temperature changes with the epoch."""
    weight = next(network.parameters())
    dtype = torch.promote_types(weight.dtype, torch.float32)
    return {
        name: torch.full((), value, dtype=dtype, device=weight.device)
        if isinstance(value, float)
        else value
        for name, value in options.items()
    }


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)


def _is_repeatable() -> bool:
    """Whether the compiler has a mode in which no choice that changes a sum hangs on a measurement;
    torch turns it on by `use_deterministic_algorithms`."""
    from torch._inductor import config  # two seconds

    return hasattr(config, "deterministic")


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
