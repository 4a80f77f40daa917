"""Faults for training runs: each strikes one run at a random moment and says what has to follow."""

import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import yaml

import runs
from forked import Forked

STEPS = 16
OPTIONS = ("train.epochs=4", "train.save_every=1")
LIMIT_S = 180
"""A run that has not ended by then hangs."""
START_S = 8.0
"""About what a run takes to its first step: a fault in step 0 strikes somewhere in it."""


class Late(Exception):
    """The run was over before the fault could strike."""


@dataclass
class Trial:
    """A run of 16 steps, one fault, and the runs that go on from there."""

    config: Path
    ranks: int
    """0: a plain process; else of torchrun."""

    draw: random.Random
    notes: list[str] = field(default_factory=list)
    """What happened, in words."""

    process: subprocess.Popen | Forked | None = None

    @property
    def run(self) -> Path:
        return self.config.parent / "run"

    def start(self, *overrides: str, **options: object) -> None:
        options = {"ranks": self.ranks, "torchrun": self.ranks > 0, **options}
        self.process = runs.launch(self.config, *OPTIONS, *overrides, **options)

    def moment(self, first: int = 0, last: int = STEPS - 2) -> None:
        """Waits until a random moment behind a random step; of step 0, of the start-up."""
        step = self.draw.randint(first, last)
        self.wait_for_step(step)
        time.sleep(self.draw.uniform(0, 0.1 if step else START_S))
        self.notes.append(f"behind step {step}")

    def wait_for_step(self, step: int) -> None:
        while self.alive() and runs.steps_logged(self.run) < step:
            time.sleep(0.005)

    def alive(self) -> bool:
        """Raises Late when the run has ended."""
        assert self.process is not None
        if self.process.poll() is not None:
            raise Late(self.process.communicate()[1])
        return True

    def victim(self) -> int:
        """The process of a random rank, or of the run itself."""
        if not self.ranks:
            return self.process.pid
        rank = self.draw.randrange(self.ranks)
        while (found := runs.rank_process(self.process, rank)) is None and self.alive():
            time.sleep(0.01)
        return found

    def end(self, *statuses: int) -> str:
        """What the run wrote to stderr, once it has ended with one of these."""
        _, said = self.process.communicate(timeout=LIMIT_S)
        status = self.process.returncode
        assert status in statuses, f"ended with {status}, not with {statuses}:\n{said}"
        return said

    def again(self) -> str:
        """The same command, to its end."""
        self.start()
        return self.end(0)

    def everyone(self) -> list[int]:
        """The processes of all ranks and of the launcher."""
        ranks = [runs.rank_process(self.process, rank) for rank in range(self.ranks)]
        return [pid for pid in (self.process.pid, *ranks) if pid is not None]

    def clean_up(self) -> None:
        if self.process is not None and self.process.poll() is None:
            for pid in self.everyone():
                os.kill(pid, signal.SIGKILL)
            self.process.communicate()


def kill_one(trial: Trial) -> None:
    trial.start(restarts=1)
    pid = trial.victim()
    trial.moment()
    trial.alive()
    os.kill(pid, signal.SIGKILL)
    trial.end(0)


def kill_all(trial: Trial) -> None:
    trial.start()
    trial.victim()
    trial.moment()
    trial.alive()
    for pid in trial.everyone():
        os.kill(pid, signal.SIGKILL)
    trial.end(-signal.SIGKILL)
    trial.again()


def kill_in_mid_save(trial: Trial) -> None:
    """Where a partial file stands; a good one is there from the first save on."""
    trial.start()
    trial.moment(first=1)
    while trial.alive() and not partial(trial.run):
        pass
    time.sleep(trial.draw.uniform(0, 0.002))
    os.kill(trial.process.pid, signal.SIGKILL)
    trial.end(-signal.SIGKILL)
    if partial(trial.run):
        trial.notes.append("a save was cut off")
    trial.again()


def partial(run: Path) -> list[str]:
    return [name for name in os.listdir(run) if name.endswith(".partial")]


def stop_one(trial: Trial) -> None:
    """It neither answers nor ends: the watchdogs end it, and torchrun starts all ranks again."""
    trial.start("train.timeout_s=15", restarts=1)
    pid = trial.victim()
    trial.moment(first=1)
    trial.alive()
    os.kill(pid, signal.SIGSTOP)
    said = trial.end(0)
    assert "is silent for 15 s" in said and f"process {pid}" in said, said


def full_disk(trial: Trial) -> None:
    """A limit on the size of files fails writes in the middle, as a full disk does."""
    trial.start()
    trial.moment(first=1, last=STEPS - 4)
    trial.alive()
    pid = trial.process.pid
    had_one = (trial.run / "last.pt").exists()  # no save may have ended yet
    unlimited = resource.prlimit(pid, resource.RLIMIT_FSIZE, (10_000, -1))
    time.sleep(trial.draw.uniform(0.02, 0.5))
    if had_one:
        runs.final_state(trial.run)  # it stays good all the time
    if trial.process.poll() is None:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, unlimited)
    said = trial.end(0)
    if "IS NOT SAVED" in said:
        trial.notes.append("a save failed")


def damaged_checkpoint(trial: Trial) -> None:
    trial.start()
    trial.moment(first=4)
    trial.alive()
    os.kill(trial.process.pid, signal.SIGKILL)
    trial.end(-signal.SIGKILL)
    trial.notes.append(damage(trial.run / "last.pt", trial.draw))
    said = trial.again()
    assert f"warning: {trial.run / 'last.pt'} is damaged: the run goes on from" in said, said


def damage(path: Path, draw: random.Random) -> str:
    """A flipped bit, a file cut short, one of no bytes, or a page of zeros."""
    content = bytearray(path.read_bytes())
    place = draw.randrange(len(content))
    form = draw.choice(("flipped bit", "cut short", "empty", "page of zeros"))
    if form == "flipped bit":
        content[place] ^= 1 << draw.randrange(8)
    elif form == "cut short":
        del content[place:]
    elif form == "empty":
        content.clear()
    else:
        place = min(place, len(content) - 4096)
        content[place : place + 4096] = bytes(4096)
    path.write_bytes(content)
    return f"{form} at {place}"


def damaged_clip(trial: Trial) -> None:
    """Every frame of a clip that one rank alone has still to read loses its end."""
    root = Path(yaml.safe_load(trial.config.read_text())["data"]["root"])
    private = trial.config.parent / "data"
    shutil.copytree(root, private)
    trial.start(f"data.root={private}")
    trial.moment(first=1, last=8)
    trial.alive()
    names = [line.split()[0] for line in (root / "train.txt").read_text().splitlines()]
    name = trial.draw.choice(names)
    damaged = private / "Images" / name
    sound = shutil.copytree(damaged, trial.config.parent / "sound")
    for frame in damaged.iterdir():
        frame.write_bytes(frame.read_bytes()[:-100])
    said = trial.end(1)
    (error,) = {line for line in said.splitlines() if line.startswith("error: ") and name in line}
    trial.notes.append(error.removeprefix("error: ")[:60])
    shutil.rmtree(damaged)
    sound.rename(damaged)
    trial.start(f"data.root={private}")
    trial.end(0)


def nan_loss(trial: Trial) -> None:
    """One clip of one rank; the other rank's losses are numbers."""
    step = trial.draw.randint(1, STEPS)
    trial.start(script="tests/poisoned_training.py", env={"POISON": str(step)})
    said = trial.end(1)
    assert f"error: step {step}, " in said and "its clips: " in said, said
    trial.notes.append(f"step {step}")
    trial.again()


@dataclass(frozen=True)
class Kind:
    inject: Callable[[Trial], None]
    ranks: int
    fault: str
    expected: str


KINDS = {
    kind.inject.__name__: kind
    for kind in (
        Kind(kill_one, 2, "SIGKILL of one rank of two", "torchrun starts all again, by itself"),
        Kind(kill_all, 2, "SIGKILL of all ranks and torchrun", "the same command goes on"),
        Kind(kill_in_mid_save, 0, "SIGKILL in mid-save", "the same command goes on"),
        Kind(stop_one, 2, "SIGSTOP of one rank of two", "named after `train.timeout_s`; all again"),
        Kind(full_disk, 0, "full disk, for a while", "training goes on; a loud line"),
        Kind(damaged_checkpoint, 0, "damaged `last.pt`", "a warning; goes on from the one before"),
        Kind(damaged_clip, 2, "damaged clip on one rank", "stops naming the file; then goes on"),
        Kind(nan_loss, 2, "NaN loss on one rank", "stops naming the clips; then goes on"),
    )
}
