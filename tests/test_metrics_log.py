"""engine/metrics_log.py: lines are never lost, halved or doubled, whatever the disk does."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from engine.metrics_log import MetricsLog
from engine.run import Progress


@pytest.fixture
def log(tmp_path: Path) -> MetricsLog:
    log = MetricsLog(tmp_path)
    log.rewind(0, Progress().is_after)
    return log


def steps(folder: Path) -> list[int]:
    text = (folder / "metrics.jsonl").read_text()
    return [json.loads(line)["step"] for line in text.splitlines()]


def test_lines_are_in_the_file_at_once_and_numbers_in_tensorboard(log, tmp_path):
    log.add("train", 1, 0, loss=2.5, names=["a"])
    log.add("eval", 1, 0, top1=0.5)
    assert log.read("train") == [
        {"kind": "train", "epoch": 0, "step": 1, "loss": 2.5, "names": ["a"]}
    ]
    assert log.read("eval")[0]["top1"] == 0.5 and log.read("epoch") == []
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["train/loss", "eval/top1"]
    assert [event.value for event in events.Scalars("train/loss")] == [2.5]


def test_lines_of_a_deleted_directory_are_written_when_it_is_there_again(tmp_path, capsys):
    folder = tmp_path / "run"
    log = MetricsLog(folder)
    folder.mkdir()
    log.rewind(0, Progress().is_after)
    log.add("train", 1, 0, loss=1.0)
    log._events.flush()  # or its thread may write into what is deleted, and complain
    shutil.rmtree(folder)
    for step in (2, 3, 4):
        log.add("train", step, 0, loss=1.0)
    said = capsys.readouterr().err
    assert said.startswith(f"warning: {folder / 'metrics.jsonl'}: cannot be written (No such")
    assert said.count("\n") == 1 and log.read("train") == []
    with pytest.raises(OSError, match=r"metrics.jsonl: cannot be written"):
        log.close()
    folder.mkdir()
    log.add("train", 5, 0, loss=1.0)
    assert "is written again, 4 lines at once" in capsys.readouterr().err
    assert steps(folder) == [2, 3, 4, 5]
    log.close()
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [2, 3, 4, 5]


LOG_ON_A_FULL_DISK = """
import resource, sys
from pathlib import Path
from engine.metrics_log import MetricsLog
from engine.run import Progress
folder = Path(sys.argv[1])
log = MetricsLog(folder)
log.rewind(0, Progress().is_after)
for step in range(1, 101):
    limit = 20 * step if 20 <= step < 80 else resource.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    log.add("train", step, 0, loss=0.5)
    for line in (folder / "metrics.jsonl").read_text().splitlines(True):
        assert line[0] + line[-2:] == "{}\\n", line
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
log.close()
"""


def test_a_full_disk_halves_no_line(tmp_path):
    """Limits on the file's size that end within lines and grow from one to the next."""
    command = [sys.executable, "-c", LOG_ON_A_FULL_DISK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "metrics.jsonl: cannot be written (File too large)" in done.stderr
    assert "is written again" in done.stderr
    assert steps(tmp_path) == list(range(1, 101))


def test_events_that_cannot_be_written_stop_nothing(log, tmp_path, monkeypatch, capsys):
    log.add("train", 1, 0, loss=1.0)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(log._events, "add_scalar", refuse)
        log.add("train", 2, 0, loss=1.0)
    assert "tensorboard: events are missing there" in capsys.readouterr().err
    log.add("train", 3, 0, loss=1.0)
    log.close()
    assert steps(tmp_path) == [1, 2, 3]
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")][-1] == 3


def test_rewinding_forgets_what_came_after_the_checkpoint(log, tmp_path):
    for step in range(1, 7):
        log.add("train", step, (step - 1) // 3)
    for epoch in range(2):
        log.add("eval", 3 * epoch + 3, epoch)
    again = MetricsLog(tmp_path)
    again.rewind(5, Progress(epoch=1, step=5).is_after)
    assert [line["step"] for line in again.read("train")] == [1, 2, 3, 4, 5]
    assert [line["epoch"] for line in again.read("eval")] == [0]
    again.rewind(3, Progress(epoch=0, step=3).is_after)  # saved before the epoch's evaluation
    assert [line["step"] for line in again.read("train")] == [1, 2, 3] and again.read("eval") == []


@pytest.mark.parametrize("damage", [b"\0" * 40, b'{"kind": "tr', b"[1, 2]", b"7", b"\xff\xfe"])
def test_a_damaged_line_is_told_and_the_others_stay(log, tmp_path, capsys, damage):
    path = tmp_path / "metrics.jsonl"
    log.add("train", 1, 0)
    with path.open("ab") as file:
        file.write(damage + b"\n")
    log.add("train", 2, 0)
    with path.open("ab") as file:
        file.write(b'{"kind": "train", "epoch": 0, "step": 3')  # cut off by a kill: untold
    again = MetricsLog(tmp_path)
    again.rewind(9, Progress(step=9).is_after)
    assert capsys.readouterr().err == f"warning: {path}: line 2 is damaged and left out\n"
    again.add("train", 3, 0)
    assert steps(tmp_path) == [1, 2, 3]


def test_a_kill_while_rewinding_keeps_the_log(log, tmp_path, monkeypatch):
    log.add("train", 1, 0)

    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(os, "replace", kill)
        with pytest.raises(KeyboardInterrupt):
            MetricsLog(tmp_path).rewind(0, Progress().is_after)
    assert steps(tmp_path) == [1]
