"""Signals that ask a run to stop: heard at once, obeyed by all ranks behind the same step.

SIGTERM and SIGUSR1 (what Slurm warns with), SIGHUP (the terminal is gone), SIGINT (Ctrl-C).
"""

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread

import torch
import torch.distributed as dist

STOPPED = os.EX_TEMPFAIL
"""Exit status 75, "try again later": the same command goes on where the run was stopped."""

INTERRUPTED = 128 + signal.SIGINT
"""Exit status 130, as of every program that Ctrl-C ended: nobody starts it again unasked."""

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)

TWICE_S = 1.0
"""A second Ctrl-C means now; sooner after the first it is the same one, which a terminal and a
launcher both passed on."""


def exit_status(number: int) -> int:
    """Of a process that a signal stopped."""
    return INTERRUPTED if number == signal.SIGINT else STOPPED


class Stopped(Exception):
    """The run has been stopped by a signal, on all ranks alike, and is saved."""

    def __init__(self, number: int, text: str):
        super().__init__(f"stopped by {signal.Signals(number).name} {text}")
        self.status = exit_status(number)


class StopRequest:
    """What has been asked of this process. Until `defer`, a signal ends it at once: there is
    nothing to save yet, and what prepares a run may take hours."""

    def __init__(self, end: Callable[[int], None] = os._exit):
        self.asked = 0
        """The signal's number; 0: none came."""

        self._deferred = False
        self._heard: float | None = None
        self._end = end

    def defer(self) -> None:
        """From here on somebody looks at `asked` between steps."""
        self._deferred = True

    def hear(self, number: int) -> None:
        """A signal came."""
        now = time.monotonic()
        again = number == signal.SIGINT and self._heard is not None and now - self._heard > TWICE_S
        self.asked = self.asked or number
        self._heard = self._heard or now
        if not self._deferred or again:
            name = signal.Signals(number).name
            sys.stdout.flush()
            print(f"stopped by {name}, nothing saved", file=sys.stderr, flush=True)
            self._end(exit_status(number))

    def learn(self, number: int) -> None:
        """A signal came to another rank."""
        if self._deferred:
            self.asked = self.asked or number


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Listen for the signals, in a thread: the main one may be deep in a wait for another rank,
    where Python's own handlers do not run."""
    request = StopRequest()
    ours, interpreters = socket.socketpair()
    interpreters.setblocking(False)
    wakeup = signal.set_wakeup_fd(interpreters.fileno(), warn_on_full_buffer=False)
    before = {}
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP
            before[number] = signal.signal(number, _leave_it_to_the_thread)

    def listen() -> None:
        while numbers := ours.recv(64):
            for number in numbers:
                if number in before:
                    request.hear(number)

    thread = Thread(target=listen, name="signals", daemon=True)
    thread.start()
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        interpreters.close()
        thread.join()
        ours.close()


def _leave_it_to_the_thread(number: int, frame: object) -> None:
    pass


class StopAgreement:
    """Whether any rank was asked to stop: the same answer on all ranks behind the same step."""

    def __init__(self, request: StopRequest):
        self.request = request
        self._pending: tuple[dist.Work, torch.Tensor] | None = None

    def after_step(self) -> int:
        """The signal that a rank had got by the end of the step before, 0 for none: what is known
        everywhere by now, so that no rank waits for the others."""
        if not dist.is_initialized():
            return self.request.asked
        asked = self._answer()
        self._ask()
        return asked

    def now(self) -> int:
        """As `after_step`, of this moment: waits for all ranks."""
        if not dist.is_initialized():
            return self.request.asked
        before = self._answer()
        self._ask()
        return max(before, self._answer())

    def _ask(self) -> None:
        asked = torch.tensor(self.request.asked)  # on the CPU: carried by gloo
        work = dist.all_reduce(asked, dist.ReduceOp.MAX, async_op=True)
        assert work is not None
        self._pending = work, asked

    def _answer(self) -> int:
        if self._pending is None:
            return 0
        work, asked = self._pending
        work.wait()
        self._pending = None
        return int(asked)
