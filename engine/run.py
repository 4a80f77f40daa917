"""A run's directory: whose it is, resolved config, names of checkpoints, result. Only rank 0 writes
it; checkpoints are written by engine/saver.py."""

import dataclasses
import fcntl
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
import yaml

from engine.config import Config, as_dict, load
from engine.metrics import Stopwatch
from engine.metrics_log import MetricsLog
from engine.warn import warn

MAY_CHANGE = {
    "data": {"workers", "prefetch", "cache", "cache_gb", "cache_dir", "max_bad"},
    "optim": {"fused"},
    "train": {
        "device", "compile", "cuda_graph", "deterministic", "gc", "eval_batch", "micro_batch",
        "save_every", "keep", "log_every", "run_dir", "timeout_s", "profile", "flop_use", "on_nan",
        "max_loss",
    },
}  # fmt: skip
"""Keys that may differ when a run is resumed: they change no result, or only what becomes of steps
that would have stopped it; `micro_batch`, which follows the machine's memory, says what batch norm
sees at a time."""


HANDOVER_S = 60.0
"""torchrun gives a process 30 s to end, and a machine may take its time to say so."""

STEP_FILE = re.compile(r"step_(\d{8,})\.pt")


@dataclass
class Progress:
    """How far a run has come; travels in its checkpoint."""

    epoch: int = 0
    """Epochs finished, their evaluation included."""

    step: int = 0
    """Optimizer steps taken."""

    best_top1: float = -1.0
    best_epoch: int = -1

    def is_after(self, line: dict[str, Any]) -> bool:
        """Whether what a line of metrics.jsonl tells of had happened by then."""
        return line["step"] <= self.step and (line["kind"] == "train" or line["epoch"] < self.epoch)


class RunDirectory:
    """Files of one run below `path`."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.last = self.path / "last.pt"
        self.best = self.path / "best.pt"
        self.metrics = MetricsLog(self.path)
        self._lock = self.path / "lock"
        self._claim: TextIO | None = None
        self._config = ""
        """What config.yaml holds."""

    def claim(self) -> None:
        """Keep other processes from training in it until this one ends, however it ends, and
        remove what a killed one left half written.

        Raises ValueError naming the process that already does, OSError where no file can be.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = self._lock.open("a+")  # not yet emptied: it may be another's
        except OSError as error:
            raise self._cannot_be_written(error) from None
        try:
            _lock(lock)
        except BlockingIOError:
            lock.seek(0)
            raise ValueError(
                f"{self.path}: {lock.read().strip()} already trains in it; wait for it, "
                "stop it, or choose another train.run_dir"
            ) from None
        except OSError as error:  # a file system without locks
            self._claim = lock
            warn(f"{self._lock}: cannot be locked ({error.strerror}): make sure that no other "
                 f"process trains in {self.path}")  # fmt: skip
            return
        self._claim = lock  # open until the process ends
        try:
            lock.truncate(0)
            lock.write(f"process {os.getpid()} on {platform.node()}{_launch()}\n")
            lock.flush()
            for left in self.path.glob("*.partial"):
                left.unlink()
        except OSError as error:
            raise self._cannot_be_written(error) from None

    def restore(self) -> None:
        """Make the directory again, with the lock and the config in it, where it was deleted while
        this process trains. Raises OSError naming it, also where it has become another's."""
        if not self._is_ours():
            try:
                self.claim()
            except ValueError as error:
                raise OSError(str(error)) from None
        try:
            if self._config and not (self.path / "config.yaml").exists():
                (self.path / "config.yaml").write_text(self._config)
        except OSError as error:
            raise self._cannot_be_written(error) from None

    def _is_ours(self) -> bool:
        """Whether the lock in the directory is the one that this process holds."""
        try:
            return self._claim is not None and os.path.samestat(
                os.stat(self._lock), os.fstat(self._claim.fileno())
            )
        except OSError:  # it is gone
            return False

    def step_files(self) -> list[Path]:
        """Checkpoints named by their step, oldest first."""
        found = [path for path in self.path.glob("step_*.pt") if STEP_FILE.fullmatch(path.name)]
        return sorted(found, key=step_of)

    def step_file(self, step: int) -> Path:
        """The name of the checkpoint of a step."""
        return self.path / f"step_{step:08d}.pt"

    def checkpoints(self) -> list[Path]:
        """What the run can go on from, in the order to try it: last.pt, then the newest step."""
        return [path for path in (self.last, *reversed(self.step_files())) if path.exists()]

    def prepare(self, config: Config) -> Config:
        """Make the directory and write the resolved config, or check that a run found there is
        the same one. Returns the config, with the source of clips that a run found there chose.

        Raises ValueError or OSError naming the directory.
        """
        saved = self.path / "config.yaml"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if saved.exists() and self.checkpoints():
                # Loaded, not only parsed: keys that came after that run count as their defaults.
                before = load(saved)
                if config.data.source == "auto":
                    data = dataclasses.replace(config.data, source=before.data.source)
                    config = dataclasses.replace(config, data=data)
                self._check_same(as_dict(before), config)
            self.write_config(config)
            return config
        except OSError as error:
            raise self._cannot_be_written(error) from None

    def write_config(self, config: Config) -> None:
        """config.yaml: the resolved config."""
        self._config = yaml.safe_dump(as_dict(config), sort_keys=False)
        (self.path / "config.yaml").write_text(self._config)

    def _cannot_be_written(self, error: OSError) -> OSError:
        return OSError(
            f"{self.path}: cannot be written ({error.strerror}); set train.run_dir to a folder "
            "that can"
        )

    def _check_same(self, before: dict[str, Any], config: Config) -> None:
        now = as_dict(config)
        for section, values in now.items():
            for key in values.keys() | before.get(section, {}).keys():
                old, new = before.get(section, {}).get(key), values.get(key)
                if old != new and key not in MAY_CHANGE.get(section, ()):
                    raise ValueError(
                        f"{self.path}: holds a run with {section}.{key} = {old}, not {new}; "
                        "choose another train.run_dir, or delete this one to start anew"
                    )

    def rewind(self, progress: Progress) -> None:
        """Forget what was logged after the checkpoint that training resumes from."""
        self.metrics.rewind(progress.step, progress.is_after)

    def log(self, kind: str, step: int, epoch: int, **values: Any) -> None:
        """One line of metrics.jsonl; its numbers also to TensorBoard, named `kind/key`."""
        self.metrics.add(kind, step, epoch, **values)

    def read_metrics(self, kind: str) -> list[dict[str, Any]]:
        """All logged lines of one kind, oldest first."""
        return self.metrics.read(kind)

    def close(self) -> None:
        """Write what waits of the metrics. Raises OSError where that still fails."""
        self.metrics.close()

    def write_quarantine(self, lines: Sequence[str]) -> None:
        """quarantine.txt: the clips left out for damage, one a line; none, no file."""
        path = self.path / "quarantine.txt"
        if lines:
            path.write_text("".join(f"{line}\n" for line in lines), errors="surrogateescape")
        else:
            path.unlink(missing_ok=True)

    def write_result(self, result: dict[str, Any]) -> None:
        """result.json: the run's summary, written when it is complete."""
        try:
            (self.path / "result.json").write_text(json.dumps(result, indent=1) + "\n")
        except OSError as error:
            raise self._cannot_be_written(error) from None


def step_of(path: Path) -> int:
    """The step in a step file's name."""
    match = STEP_FILE.fullmatch(path.name)
    assert match is not None, path
    return int(match[1])


def result(
    progress: Progress, watch: Stopwatch, scores: dict[str, Any], clips: int, device: str
) -> dict[str, Any]:
    """The summary of a finished run; the meaning of each key is in README."""
    return {
        "top1": scores["top1"],
        "top5": scores["top5"],
        "best_top1": progress.best_top1,
        "best_epoch": progress.best_epoch,
        "best_chosen_on": "evaluation list",
        "clips": clips,
        "seconds": watch.seconds,
        "clips_per_s": clips / watch.seconds if watch.seconds else 0.0,
        "data_wait": watch.wait_share,
        "epochs": progress.epoch,
        "steps": progress.step,
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "commit": commit(),
        "device": device,
    }


def commit() -> str:
    """The commit of the program that runs, with `+` after it where files differ from it; in an
    image, which has no repository, that of ENGINE_COMMIT."""
    root = Path(__file__).resolve().parents[1]
    git = ["git", "-C", str(root)]
    built = os.environ.get("ENGINE_COMMIT", "unknown")
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
        dirty = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True)
    except FileNotFoundError:  # no git on this machine
        return built
    if head.returncode:
        return built
    return head.stdout.strip() + ("+" if dirty.stdout else "")


def device_name(device: torch.device) -> str:
    """What the run ran on, e.g. `cuda: NVIDIA H200` or `cpu: 2 threads`."""
    if device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    return f"cpu: {torch.get_num_threads()} threads"


def _launch() -> str:
    """Which of torchrun's jobs this process is of: the same after a restart."""
    run_id = os.environ.get("TORCHELASTIC_RUN_ID")
    return f" of torchrun's job {run_id}" if run_id else ""


def _lock(file: TextIO) -> None:
    """Take the lock, or raise BlockingIOError; but wait for a process of the same job, which
    torchrun has ended on one machine as it starts another elsewhere."""
    deadline = time.monotonic() + HANDOVER_S
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            ours = _launch() and file.read().strip().endswith(_launch())
            if not ours or time.monotonic() > deadline:
                raise
        time.sleep(0.1)
