"""A run's directory: resolved config, metrics, checkpoints, result. Only rank 0 writes it."""

import dataclasses
import fcntl
import json
import os
import platform
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
from torch.utils.tensorboard import SummaryWriter

from engine import checkpoint
from engine.config import Config, as_dict, load
from engine.metrics import Stopwatch

MAY_CHANGE = {
    "data": {"workers", "prefetch", "cache", "cache_gb", "cache_dir", "max_bad"},
    "optim": {"fused"},
    "train": {
        "device", "compile", "cuda_graph", "gc", "eval_batch", "micro_batch", "save_every",
        "log_every", "run_dir", "timeout_s", "profile", "flop_use", "on_nan", "max_loss",
    },
}  # fmt: skip
"""Keys that may differ when a run is resumed: they change no result, or only what becomes of steps
that would have stopped it; `micro_batch`, which follows the machine's memory, says what batch norm
sees at a time."""


HANDOVER_S = 60.0
"""torchrun gives a process 30 s to end, and a machine may take its time to say so."""


@dataclass
class Progress:
    """How far a run has come; travels in its checkpoint."""

    epoch: int = 0
    """Epochs finished, their evaluation included."""

    step: int = 0
    """Optimizer steps taken."""

    best_top1: float = -1.0
    best_epoch: int = -1


class RunDirectory:
    """Files of one run below `path`."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.last = self.path / "last.pt"
        self.best = self.path / "best.pt"
        self.metrics = self.path / "metrics.jsonl"
        self._events: SummaryWriter | None = None
        self._claim: TextIO | None = None

    def claim(self) -> None:
        """Keep other processes from training in it until this one ends, however it ends.

        Raises ValueError naming the process that already does, OSError where no file can be.
        """
        path = self.path / "lock"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # Open until the process ends, and not yet emptied: it may be another's.
            self._claim = path.open("a+")
        except OSError as error:
            raise self._cannot_be_written(error) from None
        try:
            _lock(self._claim)
        except BlockingIOError:
            self._claim.seek(0)
            raise ValueError(
                f"{self.path}: {self._claim.read().strip()} already trains in it; wait for it, "
                "stop it, or choose another train.run_dir"
            ) from None
        except OSError as error:  # a file system without locks
            print(f"{path}: cannot be locked ({error.strerror}): make sure that no other process "
                  f"trains in {self.path}", file=sys.stderr)  # fmt: skip
            return
        self._claim.truncate(0)
        self._claim.write(f"process {os.getpid()} on {platform.node()}{_launch()}\n")
        self._claim.flush()

    def prepare(self, config: Config) -> Config:
        """Make the directory and write the resolved config, or check that a run found there is
        the same one. Returns the config, with the source of clips that a run found there chose.

        Raises ValueError or OSError naming the directory.
        """
        saved = self.path / "config.yaml"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if saved.exists() and self.last.exists():
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
        text = yaml.safe_dump(as_dict(config), sort_keys=False)
        (self.path / "config.yaml").write_text(text)

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
        if self.metrics.exists():
            kept = [
                line
                for line in self.metrics.read_text().splitlines(keepends=True)
                if line.endswith("\n") and _is_before(json.loads(line), progress)
            ]
            partial = self.metrics.with_name(self.metrics.name + ".partial")
            partial.write_text("".join(kept))  # a kill in mid-write must not cost the log
            os.replace(partial, self.metrics)
        self._events = SummaryWriter(str(self.path / "tensorboard"), purge_step=progress.step + 1)

    def log(self, kind: str, step: int, epoch: int, **values: Any) -> None:
        """One line of metrics.jsonl; its numbers also to TensorBoard, named `kind/key`."""
        line = json.dumps({"kind": kind, "epoch": epoch, "step": step, **values})
        with open(self.metrics, "a") as file:
            file.write(line + "\n")
        assert self._events is not None, "rewind() comes first"
        for key, value in values.items():
            if isinstance(value, (int, float)):
                self._events.add_scalar(f"{kind}/{key}", value, step)

    def read_metrics(self, kind: str) -> list[dict[str, Any]]:
        """All logged lines of one kind, oldest first."""
        if not self.metrics.exists():
            return []
        lines = map(json.loads, self.metrics.read_text().splitlines())
        return [line for line in lines if line["kind"] == kind]

    def save(self, state: dict[str, Any], is_best: bool = False) -> None:
        """`last.pt`, and before it `best.pt`: a crash between the two repeats the evaluation."""
        if is_best:
            checkpoint.save(self.best, state)
        checkpoint.save(self.last, state)

    def write_quarantine(self, lines: Sequence[str]) -> None:
        """quarantine.txt: the clips left out for damage, one a line; none, no file."""
        path = self.path / "quarantine.txt"
        if lines:
            path.write_text("".join(f"{line}\n" for line in lines), errors="surrogateescape")
        else:
            path.unlink(missing_ok=True)

    def write_result(self, result: dict[str, Any]) -> None:
        """result.json: the run's summary, written when it is complete."""
        (self.path / "result.json").write_text(json.dumps(result, indent=1) + "\n")

    def close(self) -> None:
        """Flush TensorBoard's events."""
        if self._events is not None:
            self._events.close()


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
    """The commit of the program that runs, with `+` after it where files differ from it."""
    root = Path(__file__).resolve().parents[1]
    git = ["git", "-C", str(root)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
        dirty = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True)
    except FileNotFoundError:  # no git on this machine
        return "unknown"
    if head.returncode:
        return "unknown"
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


def _is_before(line: dict[str, Any], progress: Progress) -> bool:
    return line["step"] <= progress.step and (
        line["kind"] == "train" or line["epoch"] < progress.epoch
    )
