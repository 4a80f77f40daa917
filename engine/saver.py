"""Writes a run's checkpoints in the background and finds the one to go on from. What they hold and
when they are due, others decide."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from engine import checkpoint
from engine.host_copy import HostCopy
from engine.run import RunDirectory, step_of
from engine.warn import warn

State = dict[str, Any]


def start_point(run: RunDirectory) -> Path | None:
    """The checkpoint from which the run goes on: last.pt, or, with a warning, the newest sound one
    before it. None where nothing was saved.

    Raises ValueError naming all of them where none is sound.
    """
    found = run.checkpoints()
    damaged: list[str] = []
    for path in found:
        try:
            checkpoint.load(path)
        except checkpoint.Damaged as error:
            damaged.append(str(error))
            continue
        for problem in damaged:
            warn(problem)
        if path != run.last:
            why = "damaged" if run.last.exists() else "missing"
            warn(f"{run.last} is {why}: the run goes on from {path}, saved before it")
        _look_at_best(run)
        return path
    if damaged:
        advice = (
            f"{run.path}: no checkpoint is left to go on from; put a good copy in the place of "
            f"{run.last.name}, or delete the directory to start anew"
        )
        raise ValueError("\n".join([*damaged, advice]))
    return None


def _look_at_best(run: RunDirectory) -> None:
    """Say at the start, rather than when it is needed, that best.pt is damaged."""
    if not run.best.exists() or (run.last.exists() and run.best.samefile(run.last)):
        return
    try:
        checkpoint.load(run.best)
    except ValueError as error:
        warn(f"{error}; the run goes on, and its next better epoch replaces it")


class Saver:
    """The checkpoints of one run: step_*.pt, the newest `keep`, with last.pt and best.pt as second
    names of one of them.

    At most one save is under way. The next one waits for it: each that is asked for is made, in
    order, with one copy of the state in memory. On a disk slower than the saves training slows
    down, which the time of a step shows; leaving saves out would show only after a crash.

    What the disk does stops no training: a save that fails is told, and the next one tries again.
    """

    def __init__(self, run: RunDirectory, keep: int, step: int = 0):
        self.run = run
        self.keep = keep
        self._abandoned = {path for path in run.step_files() if step_of(path) > step}
        """Of a past that the run, which goes on from `step`, does not share; or damaged."""

        self._host = HostCopy()
        self._thread = ThreadPoolExecutor(1, "saver")  # finished before the process ends
        self._writing: Future[None] | None = None
        self._problem = ""
        """Why the latest save failed; empty where it did not."""

        self._owed: State | None = None
        """The best network, as long as best.pt could not be written."""

    def save(self, state: State, step: int, is_best: bool = False) -> None:
        """Save `state` as it is now, the state behind `step`; returns once it is copied.

        Raises what, other than the disk, broke the save before.
        """
        self.flush()
        if self._owed is not None:  # its memory is taken
            self._host = HostCopy()
        taken = self._host.take(state)
        self._writing = self._thread.submit(self._write, taken, step, is_best)

    def flush(self) -> None:
        """Wait until nothing is being written. Raises what, other than the disk, broke the save."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def finish(self) -> None:
        """As `flush`, when training stops. Raises OSError where the latest save failed."""
        self.flush()
        if self._problem:
            raise OSError(self._problem)

    def _write(self, taken: Callable[[], State], step: int, is_best: bool) -> None:
        state = taken()
        try:
            self._store(state, step, is_best)
        except OSError as error:
            self._problem = str(error)
            warn(
                f"THE CHECKPOINT OF STEP {step} IS NOT SAVED: {error}; training goes on, and the "
                "next save tries again"
            )
            return
        if self._problem:
            warn(f"checkpoints are saved again: {self.run.step_file(step)}")
            self._problem = ""

    def _store(self, state: State, step: int, is_best: bool) -> None:
        """All files of one save. best.pt comes before last.pt: after a crash between the two the
        evaluation is repeated, and never does last.pt tell of a best network that is not there."""
        if is_best:
            self._owed = state
        self.run.restore()
        if self._owed is not None and not is_best:
            checkpoint.save(self.run.best, self._owed)
            self._owed = None
        path = self.run.step_file(step)
        checkpoint.save(path, state)
        self._prune(path)  # last.pt still has the state before, whatever its other name was
        if is_best:
            checkpoint.link(path, self.run.best)
            self._owed = None
        checkpoint.link(path, self.run.last)

    def _prune(self, newest: Path) -> None:
        """Remove step files but the newest `keep`, once one more is safely there."""
        files = [path for path in self.run.step_files() if path not in self._abandoned - {newest}]
        gone = files[: max(len(files) - self.keep, 0)]
        try:
            for path in (*gone, *(self._abandoned - {newest})):
                path.unlink(missing_ok=True)
            self._abandoned = set()
        except OSError as error:
            warn(f"{error.filename}: an old checkpoint cannot be deleted ({error.strerror})")
