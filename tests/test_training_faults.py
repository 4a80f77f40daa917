"""Runs whose checkpoints are damaged and whose disks fail."""

import resource
import shutil

import pytest

from holding import HeldRun
from runs import assert_bit_equal, final_state, flip, lines_of, result_of

LONG = ("train.epochs=4", "train.save_every=2", "optim.warmup=0")


@pytest.mark.slow
def test_a_damaged_last_checkpoint_costs_a_warning_and_the_steps_since_the_one_before(
    train, tmp_path
):
    whole = train("train.save_every=3", "train.run_dir=whole")
    assert whole.returncode == 0, whole.stderr
    run = tmp_path / "run"
    shutil.copytree(tmp_path / "whole", run)
    assert [path.name for path in sorted(run.glob("step_*.pt"))] == [
        "step_00000004.pt", "step_00000006.pt", "step_00000008.pt",
    ]  # fmt: skip
    for name in ("last.pt", "step_00000008.pt"):
        flip(run / name)
    (run / "step_00000009.pt.partial").write_bytes(b"left by a kill")
    done = train("train.save_every=3", "train.keep=2", ranks=2)
    assert done.returncode == 0, done.stderr
    said = f"warning: {run / 'last.pt'} is damaged: the run goes on from {run / 'step_00000006.pt'}"
    assert done.stderr.count(said) == 1
    assert final_state(run)["progress"] == final_state(tmp_path / "whole")["progress"]
    assert [line["step"] for line in lines_of(run, "train")] == list(range(1, 9))
    assert [line["epoch"] for line in lines_of(run, "eval")] == [0, 1]
    assert sorted(path.name for path in run.glob("*.pt*")) == [
        "best.pt", "last.pt", "step_00000006.pt", "step_00000008.pt",
    ]  # fmt: skip

    for path in {path.stat().st_ino: path for path in run.glob("*.pt")}.values():
        flip(path)  # each once: some are names of one file
    lost = train("train.save_every=3")
    assert lost.returncode == 1
    (error,) = [line for line in lost.stderr.splitlines() if line.startswith("error: ")]
    assert error.startswith(f"error: {run / 'last.pt'}: cannot be read as a checkpoint (")
    assert f"{run}: no checkpoint is left to go on from; put a good copy" in lost.stderr


def wait_for(process, text: str) -> None:
    """Read the process's stderr as far as a line with `text`."""
    assert process.stderr is not None
    for line in process.stderr:
        if text in line:
            return
    raise AssertionError(f"the run ended without saying {text!r}")


@pytest.mark.slow
def test_training_outlives_a_full_disk_and_a_deleted_directory_bit_for_bit(start, train, tmp_path):
    """A limit on the size of files fails writes in the middle, as a full disk does; a directory
    that is moved away is deleted for the run."""
    whole = train(*LONG, "train.run_dir=whole")
    assert whole.returncode == 0, whole.stderr
    expected = final_state(tmp_path / "whole")

    held = HeldRun(start, tmp_path / "hold_full", [5, 9], *LONG, "train.run_dir=full")
    held.wait(5)
    held.wait_for(tmp_path / "full" / "last.pt")
    unlimited = resource.prlimit(held.process.pid, resource.RLIMIT_FSIZE, (10_000, -1))
    held.go(5)
    wait_for(held.process, "IS NOT SAVED")
    held.wait(9)
    resource.prlimit(held.process.pid, resource.RLIMIT_FSIZE, unlimited)
    held.go(9)
    err = held.end()
    assert held.process.returncode == 0, err
    assert "checkpoints are saved again" in err
    assert_bit_equal(final_state(tmp_path / "full"), expected)
    steps = [line["step"] for line in lines_of(tmp_path / "full", "train")]
    assert steps == [line["step"] for line in lines_of(tmp_path / "whole", "train")]

    held = HeldRun(start, tmp_path / "hold_deleted", [5], *LONG, "train.run_dir=deleted")
    held.wait(5)
    held.wait_for(tmp_path / "deleted" / "last.pt")
    (tmp_path / "deleted").rename(tmp_path / "away")
    held.go(5)
    err = held.end()
    assert held.process.returncode == 0, err
    assert_bit_equal(final_state(tmp_path / "deleted"), expected)
    assert (tmp_path / "deleted" / "config.yaml").read_bytes() == (
        tmp_path / "away" / "config.yaml"
    ).read_bytes()
    assert result_of(tmp_path / "deleted")["steps"] == result_of(tmp_path / "whole")["steps"]


@pytest.mark.slow
def test_a_disk_that_stays_full_is_an_error_at_the_end(start, tmp_path):
    held = HeldRun(start, tmp_path / "held", [5], "train.run_dir=full")
    held.wait(5)
    held.wait_for(tmp_path / "full" / "last.pt")
    resource.prlimit(held.process.pid, resource.RLIMIT_FSIZE, (10_000, -1))
    held.go(5)
    err = held.end()
    assert held.process.returncode == 1
    (error,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "step_00000008.pt: cannot be saved (" in error and "untouched" in error
    assert final_state(tmp_path / "full")["progress"]["step"] == 4
