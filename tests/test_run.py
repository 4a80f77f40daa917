"""engine/run.py: a run directory is one process's at a time."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from engine import run
from engine.run import RunDirectory, commit

DOCKERFILE = Path(__file__).resolve().parents[1] / "docker" / "Dockerfile"


def test_a_directory_in_which_a_process_trains_is_refused_and_free_after_it(tmp_path: Path) -> None:
    first = RunDirectory(tmp_path / "run")
    first.claim()
    with pytest.raises(ValueError) as error:
        RunDirectory(tmp_path / "run").claim()
    assert f"{tmp_path / 'run'}: process {os.getpid()} on " in str(error.value)
    assert "already trains in it" in str(error.value)
    RunDirectory(tmp_path / "other").claim()
    del first  # as the end of its process does
    RunDirectory(tmp_path / "run").claim()


def test_a_killed_process_leaves_no_lock_behind(tmp_path: Path) -> None:
    claim_and_die = (
        "import os, sys; from engine.run import RunDirectory; run = RunDirectory(sys.argv[1]); "
        "run.claim(); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", claim_and_die, str(tmp_path / "run")])
    assert done.returncode == -9
    assert "process" in (tmp_path / "run" / "lock").read_text()
    RunDirectory(tmp_path / "run").claim()


def test_a_process_that_torchrun_started_again_waits_for_the_end_of_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job7")
    first = [RunDirectory(tmp_path / "run")]
    first[0].claim()
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            first.clear()  # its process ends

    monkeypatch.setattr(run.time, "sleep", sleep)
    second = RunDirectory(tmp_path / "run")
    second.claim()
    assert len(pauses) == 3
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job8")
    with pytest.raises(ValueError, match="of torchrun's job job7 already trains in it"):
        RunDirectory(tmp_path / "run").claim()
    assert len(pauses) == 3, "another job is refused at once"


@pytest.mark.slow
def test_the_second_process_of_a_run_stops_with_one_line(train, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.claim()
    done = train()
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path / 'run'}: process {os.getpid()} on ")
    assert not run.last.exists()


def test_the_commit_of_an_image_without_a_repository_is_the_one_it_was_built_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = commit()
    assert re.fullmatch(r"[0-9a-f]{40}\+?", here)
    monkeypatch.setenv("ENGINE_COMMIT", "0" * 40)
    assert commit() == here
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    assert commit() == "0" * 40
    monkeypatch.delenv("ENGINE_COMMIT")
    assert commit() == "unknown"
    assert "ENGINE_COMMIT=${COMMIT}" in DOCKERFILE.read_text()
