"""Which checkpoint a run goes on from, whatever became of its files."""

import pytest
import torch

from engine.saver import start_point
from runs import flip
from saves import saved


def test_a_new_run_starts_from_nothing(run):
    assert start_point(run) is None


def test_a_sound_last_is_what_a_run_goes_on_from(run, capsys):
    saved(run, 2, 4, best=2)
    assert start_point(run) == run.last and capsys.readouterr().err == ""


def test_a_damaged_last_falls_back_to_the_one_before(run, capsys):
    saved(run, 2, 4, 6, best=2)
    flip(run.last)  # and with it its other name
    assert start_point(run) == run.step_file(4)
    said = capsys.readouterr().err.splitlines()
    assert [line.split(" (")[0] for line in said] == [
        f"warning: {run.last}: cannot be read as a checkpoint",
        f"warning: {run.step_file(6)}: cannot be read as a checkpoint",
        f"warning: {run.last} is damaged: the run goes on from {run.step_file(4)}, saved before it",
    ]
    assert "model" not in said[0] and "data/0 differs from its checksum" in said[0]


def test_a_damaged_copy_falls_back_to_its_own_step(run):
    saved(run, 2, 4)
    content = run.last.read_bytes()
    run.last.unlink()
    run.last.write_bytes(content[:100])
    assert start_point(run) == run.step_file(4)


def test_a_missing_last_is_no_reason_to_start_anew(run, capsys):
    saved(run, 2, 4)
    run.last.unlink()
    assert start_point(run) == run.step_file(4)
    assert capsys.readouterr().err == (
        f"warning: {run.last} is missing: the run goes on from {run.step_file(4)}, saved before it"
        "\n"
    )


def test_where_all_are_damaged_the_error_names_all(run):
    saved(run, 2, 4, best=2)
    flip(run.step_file(2)), flip(run.step_file(4))
    with pytest.raises(ValueError) as error:
        start_point(run)
    lines = str(error.value).splitlines()
    assert [line.split(": ")[0] for line in lines] == [
        str(path) for path in (run.last, run.step_file(4), run.step_file(2), run.path)
    ]
    assert "put a good copy in the place of last.pt, or delete the directory" in lines[-1]


def test_another_file_in_the_place_of_last_is_an_error_not_a_fallback(run):
    saved(run, 2)
    run.last.unlink()
    torch.save({"weights": 1}, run.last)
    with pytest.raises(ValueError, match=r"last.pt: is no checkpoint of this program"):
        start_point(run)


def test_a_damaged_best_is_told_at_the_start_and_stops_nothing(run, capsys):
    saved(run, 2, 4, 6, best=2)
    flip(run.best)
    assert start_point(run) == run.last
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {run.best}: cannot be read") and "goes on" in line
