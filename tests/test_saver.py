"""engine/saver.py: whatever happens to the disk or the process, a good checkpoint stays."""

import errno
import os
import shutil
import threading
from pathlib import Path

import pytest
import torch

from engine import checkpoint
from engine.run import RunDirectory
from engine.saver import Saver, start_point
from forked import run_code
from saves import FullDisk, names, saved, state, value_of


def test_the_newest_are_kept_and_last_and_best_are_second_names_of_theirs(run):
    saved(run, 2, 4, 6, 8, 10, best=8)
    assert names(run) == [
        "best.pt", "last.pt", "step_00000006.pt", "step_00000008.pt", "step_00000010.pt",
    ]  # fmt: skip
    assert run.last.samefile(run.step_file(10)) and run.best.samefile(run.step_file(8))
    assert [value_of(run.step_file(step)) for step in (6, 8, 10)] == [6, 8, 10]
    assert (value_of(run.last), value_of(run.best)) == (10, 8)


def test_the_best_network_stays_when_its_step_is_no_longer_kept(run):
    saved(run, 2, 4, 6, keep=1, best=2)
    assert names(run) == ["best.pt", "last.pt", "step_00000006.pt"]
    assert (value_of(run.last), value_of(run.best)) == (6, 2)


def test_without_hard_links_they_are_copies(run, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    saved(run, 2, 4, best=2)
    assert not run.last.samefile(run.step_file(4)) and not run.best.samefile(run.step_file(2))
    assert run.last.read_bytes() == run.step_file(4).read_bytes()
    assert (value_of(run.last), value_of(run.best)) == (4, 2)


def test_the_best_network_is_in_place_before_the_last(run, monkeypatch):
    order = []

    def replace(source: Path, target: Path) -> None:
        order.append(target.name)
        os.rename(source, target)

    monkeypatch.setattr(os, "replace", replace)
    saved(run, 2, 4, best=4)
    assert order == ["step_00000002.pt", "last.pt", "step_00000004.pt", "best.pt", "last.pt"]


def test_two_runs_of_a_changed_number_to_keep(run):
    saved(run, 2, 4, 6, keep=3)
    for keep, step, kept in ((1, 8, [8]), (2, 10, [8, 10]), (3, 12, [8, 10, 12])):
        saver = Saver(run, keep, step=step - 2)
        saver.save(state(step), step)
        saver.finish()
        assert run.step_files() == [run.step_file(step) for step in kept]


class SlowDisk:
    """Takes the place of checkpoint.save: holds every save until `gate` opens."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.busy, self.most, self.saved = 0, 0, []
        self.save = checkpoint.save

    def __call__(self, path: Path, state: dict) -> None:
        self.busy += 1
        self.most = max(self.most, self.busy)
        assert self.gate.wait(60)
        self.save(path, state)
        self.saved.append(path.name)
        self.busy -= 1


def test_what_is_saved_is_the_state_at_the_call_not_at_the_writing(run, monkeypatch):
    disk = SlowDisk()
    monkeypatch.setattr(checkpoint, "save", disk)
    weight, momenta = torch.ones(10), {0: {"momentum_buffer": torch.ones(3)}}
    progress = {"step": 1}
    saver = Saver(run, 3)
    saver.save({"model": {"w": weight}, "optimizer": momenta, "progress": progress}, 1)
    weight.fill_(2), momenta[0]["momentum_buffer"].fill_(2), progress.update(step=2)
    disk.gate.set()
    saver.finish()
    found = checkpoint.load(run.last)
    assert found["model"]["w"].tolist() == [1.0] * 10
    assert found["optimizer"][0]["momentum_buffer"].tolist() == [1.0] * 3
    assert found["progress"] == {"step": 1}


def test_a_second_save_waits_for_the_first_and_none_is_left_out(run, monkeypatch):
    disk = SlowDisk()
    monkeypatch.setattr(checkpoint, "save", disk)
    saver = Saver(run, 9)
    saver.save(state(1), 1)  # returns while the disk is busy
    rest = threading.Thread(target=lambda: [saver.save(state(step), step) for step in range(2, 6)])
    rest.start()
    rest.join(0.2)
    assert rest.is_alive() and disk.saved == []
    disk.gate.set()
    rest.join()
    saver.finish()
    assert disk.saved == [f"step_{step:08d}.pt" for step in range(1, 6)] and disk.most == 1
    assert [value_of(path) for path in run.step_files()] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("passes", [0, 1, 2])
def test_a_save_that_fails_is_told_and_costs_no_checkpoint(
    run, monkeypatch, capsys, number, passes
):
    """Of the three files of a save: step, best.pt, last.pt, the first `passes` can be written."""
    saver = saved(run, 2, 4, best=2)
    with monkeypatch.context() as full:
        disk = FullDisk(number)
        disk.passes = passes
        full.setattr(os, "replace", disk)
        saver.save(state(6), 6, is_best=True)
        saver.flush()
        said = capsys.readouterr().err
        assert said.startswith("warning: THE CHECKPOINT OF STEP 6 IS NOT SAVED: ")
        assert os.strerror(number) in said and "training goes on" in said
        assert said.count("\n") == 1
        assert value_of(run.last) == 4 and value_of(run.best) == (6 if passes == 2 else 2)
        assert value_of(run.step_file(4)) == 4 and not list(run.path.glob("*.partial"))
        with pytest.raises(OSError, match="cannot be saved"):
            saver.finish()
    saver.save(state(8), 8)
    saver.finish()
    assert f"checkpoints are saved again: {run.step_file(8)}" in capsys.readouterr().err
    assert (value_of(run.last), value_of(run.best)) == (8, 6), "the best network was lost"


def test_a_best_network_that_waits_for_the_disk_outlives_the_saves_in_between(run, monkeypatch):
    saver = saved(run, 2, best=2)
    with monkeypatch.context() as full:
        full.setattr(os, "replace", FullDisk())
        for step in (4, 6, 8):
            saver.save(state(step), step, is_best=step == 4)
        saver.flush()
    assert (value_of(run.last), value_of(run.best)) == (2, 2)
    saver.save(state(10), 10)
    saver.finish()
    assert (value_of(run.last), value_of(run.best)) == (10, 4)
    saver.save(state(12), 12, is_best=True)
    saver.finish()
    assert value_of(run.best) == 12


SAVE_ON_A_FULL_DISK = """
import resource, sys, torch
from engine import checkpoint
from engine.run import RunDirectory
from engine.saver import Saver
run = RunDirectory(sys.argv[1])
run.claim()
saver = Saver(run, 3)
for step, limit in ((1, resource.RLIM_INFINITY), (2, 100_000), (3, 300_000), (4, 3_900_000),
                    (5, resource.RLIM_INFINITY)):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    saver.save({"model": {"w": torch.full((1_000_000,), float(step))}}, step, is_best=step == 2)
    saver.flush()
saver.finish()
"""


def test_a_disk_that_is_full_for_a_while(tmp_path):
    """A file-size limit fails writes in the middle, as a full disk does."""
    done = run_code(SAVE_ON_A_FULL_DISK, str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    told = [line.split(":")[1] for line in done.stderr.splitlines()]
    assert told == [f" THE CHECKPOINT OF STEP {step} IS NOT SAVED" for step in (2, 3, 4)] + [
        " checkpoints are saved again"
    ]
    run = RunDirectory(tmp_path / "run")
    assert names(run) == ["best.pt", "last.pt", "step_00000001.pt", "step_00000005.pt"]
    for path, value in ((run.last, 5.0), (run.best, 2.0)):
        assert checkpoint.load(path)["model"]["w"].unique().tolist() == [value]


def test_a_deleted_directory_is_made_again_with_lock_and_config(run, capsys):
    saver = saved(run, 2, best=2)
    run._config = "train: {}\n"
    shutil.rmtree(run.path)
    saver.save(state(4), 4)
    saver.finish()
    assert names(run) == ["config.yaml", "last.pt", "step_00000004.pt"]
    assert value_of(run.last) == 4
    with pytest.raises(ValueError, match=f"process {os.getpid()} on .* already trains in it"):
        RunDirectory(run.path).claim()


def test_a_directory_that_became_another_processs_is_left_alone(run, capsys):
    saver = saved(run, 2)
    shutil.rmtree(run.path)
    other = RunDirectory(run.path)
    other.claim()
    for step in (4, 6):
        saver.save(state(step), step)
        saver.flush()
        assert "already trains in it" in capsys.readouterr().err
    assert names(run) == []
    with pytest.raises(OSError, match="already trains in it"):
        saver.finish()


def test_a_file_in_the_place_of_the_directory_stops_nothing(run, capsys):
    saver = saved(run, 2)
    shutil.rmtree(run.path)
    run.path.write_text("")
    saver.save(state(4), 4)
    saver.flush()
    assert f"IS NOT SAVED: {run.path}: cannot be written" in capsys.readouterr().err
    run.path.unlink()
    saver.save(state(6), 6)
    saver.finish()
    assert value_of(run.last) == 6


def test_an_old_checkpoint_that_cannot_be_deleted_is_told(run, monkeypatch, capsys):
    saver = saved(run, 2, 4, keep=2)

    def refuse(path: Path, **_: object) -> None:
        if path.suffix == ".pt":
            raise PermissionError(errno.EPERM, "Operation not permitted", str(path))

    with monkeypatch.context() as immutable:
        immutable.setattr(Path, "unlink", refuse)
        saver.save(state(6), 6)
        saver.finish()
    assert f"{run.step_file(2)}: an old checkpoint cannot be deleted" in capsys.readouterr().err
    saver.save(state(8), 8)
    saver.finish()
    assert [value_of(path) for path in run.step_files()] == [6, 8] and value_of(run.last) == 8


def test_a_defect_in_the_background_is_raised_at_the_next_call(run):
    for after in (Saver.flush, Saver.finish, lambda saver: saver.save(state(4), 4)):
        saver = saved(run, 2)
        saver.save({"model": {"weight": lambda: None}}, 3)
        with pytest.raises((AttributeError, TypeError), match=r"lambda|pickle"):
            after(saver)
        assert value_of(run.last) == 2


def test_a_past_that_is_not_gone_on_with_leaves_at_the_first_save(run):
    """The run goes on from step 4; 6 and 8 were damaged, and its next save is that of step 5."""
    saved(run, 2, 4, 6, 8, keep=4)
    saver = Saver(run, 3, step=4)
    assert len(run.step_files()) == 4, "nothing is deleted before something is saved"
    saver.save(state(5), 5)
    saver.finish()
    assert run.step_files() == [run.step_file(step) for step in (2, 4, 5)]
    saver.save(state(8), 8)
    saver.finish()
    assert run.step_files() == [run.step_file(step) for step in (4, 5, 8)]
    assert value_of(run.last) == 8


def test_a_copied_directory_is_the_same_run(run, tmp_path):
    saved(run, 2, 4, best=2)
    copy = RunDirectory(tmp_path / "elsewhere")
    shutil.copytree(run.path, copy.path)
    copy.claim()
    assert start_point(copy) == copy.last
    saver = Saver(copy, 2, step=4)
    saver.save(state(6), 6)
    saver.finish()
    assert names(copy) == ["best.pt", "last.pt", "step_00000004.pt", "step_00000006.pt"]
    assert [value_of(path) for path in (copy.last, copy.best, run.last)] == [6, 2, 4]


KILL_IN_MID_SAVE = """
import os, random, signal, sys, time, torch
from engine import checkpoint
from engine.run import RunDirectory
from engine.saver import Saver, start_point

def hold_still(told):
    os.write(told, b"%12s" % b"half")
    signal.pause()

def save_for_ever(path, told, held):
    run = RunDirectory(path)
    run.claim()
    start = start_point(run)
    step = checkpoint.load(start)["progress"]["step"] if start else 0
    saver = Saver(run, 2, step)
    while True:
        step += 1
        weight = torch.full((300_000,), float(step))
        saver.save({"model": {"w": weight}, "progress": {"step": step}}, step, step % 3 == 0)
        saver.flush()
        os.write(told, b"%12d" % step)
        if held:  # from now on before what is written is on the disk
            os.fsync = lambda file: hold_still(told)

draw, run = random.Random(3), RunDirectory(sys.argv[1])
halves = before = 0
for number in range(20):
    read, write = os.pipe()
    child = os.fork()
    if not child:
        save_for_ever(run.path, write, number % 2)
    os.close(write)
    told = [os.read(read, 12)]
    if number % 2:
        assert os.read(read, 12).strip() == b"half"
    else:
        time.sleep(draw.uniform(0, 0.03))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while part := os.read(read, 12):
        told.append(part)
    os.close(read)
    halves += bool(list(run.path.glob("*.partial")))
    found = start_point(run)
    state = checkpoint.load(found)
    step, weight = state["progress"]["step"], state["model"]["w"]
    assert found == run.last and (weight == step).all()
    assert step >= max(before, int(told[-1])), (before, told, step)
    if run.best.exists():
        assert checkpoint.load(run.best)["progress"]["step"] >= step // 3 * 3
    before = step
run.claim()
assert not list(run.path.glob("*.partial"))
print(halves)
"""


def test_a_kill_at_any_moment_of_a_save_costs_that_save_at_most(tmp_path):
    done = run_code(KILL_IN_MID_SAVE, str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 10, "every second one came in mid-save"
