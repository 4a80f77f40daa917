"""Steps whose gradients are not finite: left out without a wait, without a trace, and counted."""

from typing import Any

import torch
from torch import Tensor, nn

LARGEST_SCALE = 65536.0
"""Where float16's begins, as torch's does."""


class StepScaler(torch.amp.GradScaler):
    """torch's loss scaler, which also counts the steps that it leaves out.

    float16 needs it, with a scale that moves. `skip` asks for it in other precisions, where the
    scale is 1 and stays there: the arithmetic of the other steps is that of a run without it.
    """

    def __init__(self, device_type: str, *, moving: bool, skip: bool):
        self.moving = moving
        scale = LARGEST_SCALE if moving else 1.0
        super().__init__(device_type, init_scale=scale, enabled=moving or skip)
        self._counts: Tensor | None = None
        self._resumed = (0.0, 0.0)

    def was_bad(self, optimizer: torch.optim.Optimizer) -> Tensor:
        """1 where a gradient of this step is not finite, else 0; after `unscale_`."""
        found = self._per_optimizer_states[id(optimizer)]["found_inf_per_device"]
        return torch.stack(list(found.values())).amax()

    def finish(self, optimizer: torch.optim.Optimizer) -> None:
        """`update`, and count."""
        if not self.is_enabled():
            return
        bad = self.was_bad(optimizer)
        counts = self.counts(bad.device)
        row = (counts[1] + 1) * bad
        self._counts = torch.stack((counts[0] + bad, row, torch.maximum(counts[2], row)))
        self.update(None if self.moving else 1.0)

    def counts(self, device: torch.device) -> Tensor:
        """(3,) float64: steps left out so far, how many of them in a row until now, and the longest
        such row of this process."""
        if self._counts is None:
            total, row = self._resumed
            self._counts = torch.tensor([total, row, row], dtype=torch.float64).to(device)
        return self._counts

    def state_dict(self) -> dict[str, Any]:
        """As torch's, with the counts; empty where no scaler is needed."""
        state = super().state_dict()
        if not state:
            return state
        counts = self._resumed if self._counts is None else self._counts.tolist()
        return {**state, "skipped": list(counts[:2])}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken, perhaps by a run without a scaler."""
        if not (state and self.is_enabled()):
            return
        state = dict(state)
        self._counts, self._resumed = None, tuple(state.pop("skipped", (0.0, 0.0)))
        if self.moving:
            super().load_state_dict(state)


class Statistics:
    """The running statistics of a network's batch norms: numbers that are not finite would stay in
    them for ever, and a step that is left out has no say in them."""

    def __init__(self, network: nn.Module):
        self.buffers = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
        self._before: Tensor | None = None

    def keep(self) -> None:
        """Before the forward pass."""
        if self.buffers:
            self._before = self._flat()

    def put_back(self, bad: Tensor) -> None:
        """As they were kept, where `bad` is not 0."""
        if self._before is None:
            return
        flat = torch.where(bad != 0, self._before, self._flat())
        parts = flat.split([buffer.numel() for buffer in self.buffers])
        views = [part.view_as(buffer) for part, buffer in zip(parts, self.buffers, strict=True)]
        torch._foreach_copy_(self.buffers, views)
        self._before = None

    def _flat(self) -> Tensor:
        return torch.cat([buffer.flatten() for buffer in self.buffers])


def begin_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Momentum of zero, from which the first step gets what it gets without any.

    torch's fused SGD leaves it unwritten if it is the first step that is left out.
    """
    for group in optimizer.param_groups:
        if group.get("momentum") and isinstance(optimizer, torch.optim.SGD):
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def trouble(tensors: list[Tensor]) -> Tensor:
    """0, or NaN where a number in any of them is not finite."""
    return torch.stack(torch._foreach_norm(tensors, float("inf"))).sum() * 0.0
