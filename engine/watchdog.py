"""Ends a run in which a rank hangs, with a line that names it; torchrun starts the run again.

In a thread of every rank: it tells the others, by torchrun's store, that the process is alive and
how far it is, and reads what they tell. Training steps and evaluation batches are progress;
preparing the run (lists, videos' frame counts, weights, compiling), saving and drawing take as long
as they take, and only a process that is silent altogether is missed meanwhile.
"""

import itertools
import json
import os
import platform
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import TypeVar

from torch.distributed import Store

from engine.signals import StopRequest, exit_status

T = TypeVar("T")

WAIT, STEP, EVALUATION, EVALUATED = range(4)
"""What a rank does, in the order of a run: waits for the batch of a step, takes the step,
evaluates after it, has evaluated."""

START_TIMEOUT_S = 600.0
"""For what comes before the config is read."""

STOP_TIMEOUT_S = 10.0
"""Silence of a rank while the run is being stopped: torchrun stops the others where one has died,
and kills them after 30 s."""

ROOT = Path(__file__).resolve().parents[1]

SHOWN = 4
"""Ranks, and clips of a batch, that a message names."""


@dataclass(frozen=True)
class Report:
    """What a rank tells the others."""

    beat: int
    """Grows as long as the process runs."""

    position: tuple[int, int, int]
    """Step, counted from 0; what it does there; number of the evaluation batch."""

    paused: str
    """What it does that takes as long as it takes; empty: steps or evaluation batches."""

    host: str
    process: int
    launcher: int
    """The parent process."""

    place: str = ""
    """Line of our code in which its main thread is."""

    in_collective: bool = False
    """That line waits for other ranks."""

    stop: int = 0
    """The signal it got."""


UNHEARD = Report(0, (-1, WAIT, 0), "has told nothing yet", "host unknown", 0, 0)
"""Of a rank that is there, but stopped before its first report."""


class Vigil:
    """Who hangs, by the reports of all ranks, read again and again.

    It counts seconds of its own: a machine or a job that was suspended as a whole is not late.
    """

    def __init__(self) -> None:
        self.still = 0.0
        """Seconds since any rank made progress or was busy otherwise."""

        self.silent: dict[int, float] = {}
        """Of each rank, seconds since its beat changed."""

        self._before: dict[int, Report] = {}

    def see(self, reports: dict[int, Report], seconds: float) -> None:
        """Take note of what was read `seconds` after the time before."""
        before, self._before = self._before, reports
        moved = any(
            report.paused or rank not in before or before[rank].paused
            or report.position != before[rank].position
            for rank, report in reports.items()
        )  # fmt: skip
        self.still = 0.0 if moved else self.still + seconds
        self.silent = {
            rank: 0.0
            if rank not in before or report.beat != before[rank].beat
            else self.silent[rank] + seconds
            for rank, report in reports.items()
        }

    def gone(self, timeout: float) -> list[int]:
        """Ranks that have been silent for longer: stopped, dead, or cut off."""
        return [rank for rank, seconds in self.silent.items() if seconds >= timeout]

    def behind(self, timeout: float) -> list[int]:
        """Where no rank has moved for longer, those that the others wait for."""
        if self.still < timeout:
            return []
        first = min(report.position for report in self._before.values())
        ranks = [rank for rank, report in self._before.items() if report.position == first]
        return [rank for rank in ranks if not self._before[rank].in_collective] or ranks


class Watchdog:
    """One rank's; without `store` it watches its own process only. Idle until `start`."""

    def __init__(
        self, rank: int = 0, world_size: int = 1, store: Store | None = None,
        stop: StopRequest | None = None, end: Callable[[int], None] = os._exit,
    ):  # fmt: skip
        self.rank = rank
        self.world_size = world_size
        self.timeout = START_TIMEOUT_S
        """Seconds without progress that end the run (train.timeout_s); 0: none do."""

        self.clips_of: Callable[[int, tuple[int, int, int]], list[str]] = lambda *_: []
        """Names of the clips that a rank has, or waits for, at a position."""

        self._store = store
        self._stop = stop or StopRequest()
        self._end_process = end
        self._launcher = os.getppid()
        self._position = (-1, WAIT, 0)
        self._paused = "preparing the run"
        self._ended = threading.Event()
        self._main = threading.main_thread().ident
        # Many ranks read the reports of many ranks: less often, the more there are.
        self._interval = max(1.0, world_size / 64)

    def start(self) -> None:
        """Watch from here on, until the process ends or `close`."""
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def close(self) -> None:
        """The others may end, each in its time."""
        self._ended.set()

    def at(self, step: int, doing: int, batch: int = 0) -> None:
        """Progress."""
        self._position, self._paused = (step, doing, batch), ""

    def pause(self, what: str) -> None:
        """No progress is to be expected until the next `at`."""
        self._paused = what

    def steps(self, batches: Iterator[T], first: int) -> Iterator[T]:
        """The same batches, those of training steps `first`, `first + 1`, ...: each is progress."""
        for step in itertools.count(first):
            self.at(step, WAIT)
            batch = next(batches, None)
            if batch is None:
                return
            self.at(step, STEP)
            yield batch

    def evaluation(self, batches: Iterator[T], step: int) -> Iterator[T]:
        """The same batches, those of the evaluation after `step`: each is progress."""
        self.at(step, EVALUATION)
        for number, batch in enumerate(batches):
            self.at(step, EVALUATION, number)
            yield batch
            self.at(step, EVALUATION, number + 1)
        self.at(step, EVALUATED)

    def report(self, beat: int) -> Report:
        """Of this moment."""
        place, in_collective = _place(sys._current_frames().get(self._main or 0))
        return Report(
            beat, self._position, self._paused, platform.node(), os.getpid(), os.getppid(),
            place, in_collective, self._stop.asked,
        )  # fmt: skip

    def say_once(self, text: str) -> None:
        """Print a line that several ranks may know, by the first of them."""
        try:
            first = self._store is None or self._store.add("said", 1) == 1
        except RuntimeError:  # the store is gone
            first = True
        if first:
            print(text, file=sys.stderr, flush=True)

    def _watch(self) -> None:
        vigil = Vigil()
        for beat in itertools.count():
            self._look(vigil, beat)
            if self._ended.wait(self._interval):
                return

    def _look(self, vigil: Vigil, beat: int) -> None:
        """Tell, read, judge."""
        if self._store is not None and os.getppid() != self._launcher:
            self._store = None  # most likely it was the launcher's
            print(f"rank {self.rank}: torchrun has ended: the run stops", file=sys.stderr)
            self._stop.hear(signal.SIGTERM)
        reports = self._exchange(self.report(beat))
        vigil.see(reports, self._interval if beat else 0.0)
        for report in reports.values():
            self._stop.learn(report.stop)
        limit = self.timeout or float("inf")
        silence = min(limit, STOP_TIMEOUT_S) if self._stop.asked else limit
        if gone := vigil.gone(silence):
            self._end(reports, gone, f"silent for {silence:.0f} s")
        elif behind := vigil.behind(limit):  # progress ends before the process falls silent
            self._end(
                reports, vigil.gone(limit / 2) or behind, f"without progress for {limit:.0f} s"
            )

    def _exchange(self, own: Report) -> dict[int, Report]:
        """Tell it to the others -> what all ranks have told; only `own` where the store is gone."""
        if self._store is None:
            return {self.rank: own}
        keys = [f"report/{rank}" for rank in range(self.world_size)]
        try:
            self._store.set(keys[self.rank], json.dumps(asdict(own)))
            if self._store.check(keys):
                return dict(enumerate(map(_parse, self._store.multi_get(keys))))
            told = [self._store.check([key]) and self._store.get(key) for key in keys]
        except RuntimeError:  # the launcher that kept it has ended: others see to that
            self._store = None
            return {self.rank: own}
        return {rank: _parse(text) if text else UNHEARD for rank, text in enumerate(told)}

    def _end(self, reports: dict[int, Report], ranks: list[int], what: str) -> None:
        """Say who is to blame, and end this process; the others do the same."""
        limit = "" if self._stop.asked else " (train.timeout_s)"
        lines = [
            f"error: rank {rank} ({reports[rank].host}, process {reports[rank].process}) is {what}"
            f"{limit}: {self.doing(rank, reports[rank])}"
            for rank in ranks[:SHOWN]
        ]
        if len(ranks) > SHOWN:
            lines.append(f"error: and {len(ranks) - SHOWN} more ranks")
        self.say_once("\n".join(lines))
        for rank in ranks:
            _kill_sibling(reports[rank])
        self._end_process(exit_status(self._stop.asked) if self._stop.asked else 1)

    def doing(self, rank: int, report: Report) -> str:
        """What a rank last told, for people."""
        step, doing, batch = report.position
        text = {
            WAIT: f"waits for the batch of step {step + 1}",
            STEP: f"in step {step + 1}",
            EVALUATION: f"evaluates batch {batch + 1} after step {step + 1}",
            EVALUATED: f"has evaluated after step {step + 1}",
        }[doing]
        where = f", at {report.place}" if report.place else ""
        if report.paused and step < 0:  # it has not come to a step yet
            return f"{report.paused}{where}"
        clips = self.clips_of(rank, report.position)
        more = f" and {len(clips) - SHOWN} more" if len(clips) > SHOWN else ""
        names = f", clips {', '.join(clips[:SHOWN])}{more}" if clips else ""
        pause = f"{report.paused}, before that: " if report.paused else ""
        return f"{pause}{text}{names}{where}"


def _parse(text: bytes) -> Report:
    values = json.loads(text)
    return Report(**{**values, "position": tuple(values["position"])})


def _place(frame: FrameType | None) -> tuple[str, bool]:
    """Where a thread is in our code, and whether it waits for other ranks there."""
    in_collective = frame is not None and "/torch/distributed/" in frame.f_code.co_filename
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.parent.parent == ROOT and path.parent.name in ("engine", "models", "pipelines"):
            return f"{path.relative_to(ROOT)}:{frame.f_lineno}", in_collective
        frame = frame.f_back
    return "", in_collective


def _kill_sibling(report: Report) -> None:
    """End a process that hangs, if it is of the same launcher: which would ask it to end, and wait
    for half a minute."""
    try:
        launcher = int(Path(f"/proc/{report.process}/stat").read_text().rsplit(")")[-1].split()[1])
    except (OSError, ValueError):
        return
    ours = report.host == platform.node() and launcher == report.launcher == os.getppid() != 1
    if ours and report.process != os.getpid():
        os.kill(report.process, signal.SIGKILL)
