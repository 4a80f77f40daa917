"""Probes in processes of their own: what crashes or hangs ends a probe, never the doctor. Knows
nothing of what they look at (engine/doctor_probes.py)."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

POLL_S = 0.02
KILL_WAIT_S = 2.0
"""A process that waits inside of a driver cannot be killed: nobody waits for it any longer."""

NO_ANSWER = "no answer"
MOST_OUTPUT = 16384
"""Bytes kept of what a probe prints."""


@dataclass(frozen=True)
class Probe:
    """A function of engine/doctor_probes.py with its arguments, or any other program."""

    name: str
    arguments: tuple[str, ...] = ()
    program: tuple[str, ...] = ()
    """Stands in for engine/doctor_probes.py."""

    def command(self, facts: int) -> list[str]:
        """With the number of the pipe that takes its JSON lines."""
        script = str(Path(__file__).with_name("doctor_probes.py"))
        start = self.program or (sys.executable, script, self.name.split()[0])
        return [*start, str(facts), *self.arguments]


@dataclass(frozen=True)
class Outcome:
    """What a probe said, and why it did not come to its end if it did not."""

    said: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""
    unchecked: str = ""
    """Why it was not started, or could not begin."""

    def get(self, key: str, default: Any = None) -> Any:
        """What was said under `key`."""
        return self.said.get(key, default)

    def mend(self, command: str) -> str:
        """The command, unless the probe was only given too little time."""
        slow = self.problem.startswith(NO_ANSWER)
        return "python -m engine.doctor --timeout 600" if slow else command

    @property
    def trouble(self) -> str:
        """Whatever kept it from its end; empty if nothing did."""
        return self.problem or self.unchecked


Progress = Callable[[int, int, Sequence[str]], None]
"""How many are done, of how many, and the names of those at work."""


def run_probes(
    probes: Sequence[Probe], timeout_s: float, jobs: int, progress: Progress
) -> dict[str, Outcome]:
    """The outcomes by name; `jobs` probes at a time, each for at most `timeout_s`.

    Leaves no process behind, whatever ends it.
    """
    waiting, running = list(probes), list[_Child]()
    outcomes: dict[str, Outcome] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(_Child(waiting.pop(0), timeout_s))
            for child in list(running):
                if (outcome := child.outcome()) is not None:
                    outcomes[child.probe.name] = outcome
                    running.remove(child)
            progress(len(outcomes), len(probes), [child.probe.name for child in running])
            if running:
                time.sleep(POLL_S)
    finally:
        for child in running:
            child.kill()
    return outcomes


class _Child:
    """A running probe."""

    def __init__(self, probe: Probe, timeout_s: float):
        self.probe = probe
        self.timeout_s = timeout_s
        self.deadline = time.monotonic() + timeout_s
        self.facts, self.output = bytearray(), bytearray()
        # Pipes, not files: a full disk is one of the things to be found out.
        with _pipe() as (self.facts_from, facts_to), _pipe() as (self.output_from, output_to):
            self.process = subprocess.Popen(
                probe.command(facts_to), stdin=subprocess.DEVNULL, stdout=output_to,
                stderr=output_to, pass_fds=[facts_to], start_new_session=True,
            )  # fmt: skip

    def outcome(self) -> Outcome | None:
        """None while it runs."""
        status = self.process.poll()
        self._drain()
        if status is None:
            if time.monotonic() < self.deadline:
                return None
            self.kill()
            self._drain()
        else:
            self.kill()  # what it has started
        self._close()
        said: dict[str, Any] = {}
        for line in self.facts.decode(errors="replace").splitlines():
            with contextlib.suppress(ValueError):  # torn by its end
                said.update(json.loads(line))
        if missing := said.get("missing"):  # another row's fault: that of the packages
            return Outcome(said, unchecked=f"not checked: {missing}")
        return Outcome(said, self._problem(status, said))

    def kill(self) -> None:
        """With all processes that it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(KILL_WAIT_S)

    def _problem(self, status: int | None, said: Mapping[str, Any]) -> str:
        doing = f" while {said['doing']}" if said.get("doing") else ""
        if status is None:
            return f"{NO_ANSWER} within {self.timeout_s:g} s{doing}"
        if error := said.get("error"):
            return f"{error}{doing}"
        lines = self.output.decode(errors="replace").strip().splitlines()
        last = f": {lines[-1][:200]}" if lines else ""
        if status < 0:
            return f"ended by {_signal(-status)}{doing}{last}"
        if status or not said.get("done"):
            return f"ended with status {status}{doing}{last}"
        return ""

    def _drain(self) -> None:
        for source, kept in ((self.facts_from, self.facts), (self.output_from, self.output)):
            with contextlib.suppress(BlockingIOError):
                while data := os.read(source, 65536):
                    kept += data
        del self.output[:-MOST_OUTPUT]

    def _close(self) -> None:
        os.close(self.facts_from)
        os.close(self.output_from)


@contextlib.contextmanager
def _pipe() -> Iterator[tuple[int, int]]:
    """Both ends; the second is closed afterwards, the first never waits."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    try:
        yield reader, writer
    finally:
        os.close(writer)


def _signal(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
    return f"{name} (out of memory?)" if name == "SIGKILL" else name
