"""Where the time of training steps goes, on the time line of the device. Never waits for it."""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pipelines.spans import span

T = TypeVar("T")

PARTS = ("data", "forward", "backward", "sync", "optimizer", "other")
"""Of a step. `data`: the device waits for a batch. `sync`: the gradients are computed, and their
sums over all ranks are not yet there. `other`: between steps, such as log lines and saves."""

MOST_MARKS = 2048
"""That are kept; those of a GPU's past are added up then, read or not."""


class StepClock:
    """Marks where one part of a step ends and the next begins.

    The marks of a GPU are events in its stream: Python, which runs ahead, is not what is measured,
    and `data` is how long the GPU stood idle for want of a batch. Read them behind a wait for the
    device, such as a log line's. As each part begins where the one before ends, the parts of a step
    add up to the step.
    """

    def __init__(self, device: torch.device):
        self.line = _DeviceLine(device) if device.type == "cuda" else _HostLine()
        self._seconds: dict[str, float] = {}
        self._marks: deque[tuple[str | None, Any]] = deque()
        self._since: Any = None
        self._local_end = False
        """Whether this backward pass has computed its last gradient."""

    def watch(self, items: Iterator[T]) -> Iterator[T]:
        """The same items: waiting for one is `data`, what no part takes between two is `other`."""
        self._mark(None)
        end = object()
        while True:
            self._mark("other")
            with self.part("data"):
                item = next(items, end)
            if item is end:
                return
            yield item  # type: ignore[misc]
            del item  # its memory is free while the next one is waited for

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What runs within is `name`; what a backward pass waits for at its end, `sync`."""
        self._local_end = False
        with span(name):
            yield
        self._mark("sync" if self._local_end else name)

    def gradients_done(self) -> None:
        """To be called within `part("backward")`: the rest of it is waiting for other ranks."""
        self._mark("backward")
        self._local_end = True

    def read(self) -> dict[str, float]:
        """Seconds of each part since the last reading, so far as the device has come."""
        self._add_up()
        seconds, self._seconds = self._seconds, {}
        return seconds

    def _mark(self, part: str | None) -> None:
        """Since the last mark it was `part`; None: what was before does not count."""
        moment = self.line.now()
        if moment is not None:
            self._marks.append((part, moment))
        if len(self._marks) > MOST_MARKS:
            self._add_up()

    def _add_up(self) -> None:
        """Oldest first, up to where the device is."""
        while self._marks and self.line.has_passed(self._marks[0][1]):
            part, moment = self._marks.popleft()
            if part is not None and self._since is not None:
                passed = self.line.seconds(self._since, moment)
                self._seconds[part] = self._seconds.get(part, 0.0) + passed
            self.line.give_back(self._since)
            self._since = moment


class _HostLine:
    """The CPU's time line."""

    def now(self) -> float:
        return time.perf_counter()

    def has_passed(self, moment: float) -> bool:
        return True

    def seconds(self, start: float, end: float) -> float:
        return end - start

    def give_back(self, moment: float | None) -> None:
        pass


class _DeviceLine:
    """A GPU's: what is queued in its stream before a moment is done at that moment."""

    def __init__(self, device: torch.device):
        self.device = device
        self.spare: list[torch.cuda.Event] = []

    def now(self) -> torch.cuda.Event | None:
        """None within the capture of a graph, whose events tell no time."""
        if torch.cuda.is_current_stream_capturing():
            return None
        event = self.spare.pop() if self.spare else torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def has_passed(self, moment: torch.cuda.Event) -> bool:
        return moment.query()

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        return start.elapsed_time(end) / 1000

    def give_back(self, moment: torch.cuda.Event | None) -> None:
        if moment is not None:
            self.spare.append(moment)


class LastGradient:
    """Tells `clock`, in every backward pass, when this rank's last gradient is computed.

    Which one comes last is the same in every pass: the first one is watched gradient by gradient
    to learn it, and from then on it costs one call. The gradients are only looked at: what a
    communication hook would do to their sums, other roundings, is not to be had by measuring.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], clock: StepClock):
        self.clock = clock
        self._last: Tensor | None = None
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(self._remember)
            for parameter in parameters
            if parameter.requires_grad
        ]
        self._learning = True

    def _remember(self, parameter: Tensor) -> None:
        self._last = parameter

    def learned(self) -> None:
        """After each backward pass."""
        if not self._learning or self._last is None:
            return
        for hook in self._hooks:
            hook.remove()
        self._last.register_post_accumulate_grad_hook(lambda _: self.clock.gradients_done())
        self._learning = False
