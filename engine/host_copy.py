"""Copies of a run's state in host memory, taken without waiting for the GPU. Writes no file."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Place = tuple[Any, ...]
"""The keys that lead to a tensor within the state."""


class HostCopy:
    """Host memory for one copy of a state, used again for the next one: fresh memory of this size
    costs page faults, and page-locked memory, which a GPU writes to by itself, far more."""

    def __init__(self) -> None:
        self._buffers: dict[Place, Tensor] = {}
        self._from_gpu = False

    def take(self, state: dict[str, Any]) -> Callable[[], dict[str, Any]]:
        """`state` as it is now, whatever is done to its tensors after the call.

        Returns a function that waits for the GPU to have handed it over, and gives it. The copy
        before this one is overwritten.
        """
        before, self._buffers, self._from_gpu = self._buffers, {}, False
        taken = self._copied(state, (), before)
        if not self._from_gpu:
            return lambda: taken
        event = torch.cuda.Event()
        event.record()

        def wait() -> dict[str, Any]:
            event.synchronize()
            return taken

        return wait

    def _copied(self, value: Any, place: Place, before: dict[Place, Tensor]) -> Any:
        if isinstance(value, Tensor):
            return self._into_buffer(value.detach(), place, before)
        if isinstance(value, dict):
            twin = copy.copy(value)  # with its class and attributes, as a network's state dict has
            for key, item in value.items():
                twin[key] = self._copied(item, (*place, key), before)
            return twin
        if isinstance(value, (list, tuple)):
            items = enumerate(value)
            return type(value)(self._copied(item, (*place, i), before) for i, item in items)
        return value

    def _into_buffer(self, tensor: Tensor, place: Place, before: dict[Place, Tensor]) -> Tensor:
        """A tensor of any shape and strides -> its copy, the same in both."""
        buffer = before.get(place)
        if buffer is None or not _alike(buffer, tensor):
            buffer = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
        self._from_gpu |= tensor.is_cuda
        # In the stream's order: behind the step that was last, before the one that comes.
        self._buffers[place] = buffer.copy_(tensor, non_blocking=True)
        return buffer


def _alike(buffer: Tensor, tensor: Tensor) -> bool:
    return (
        buffer.shape == tensor.shape
        and buffer.dtype == tensor.dtype
        and buffer.stride() == tensor.stride()
        and (buffer.is_pinned() or not tensor.is_cuda)
    )
