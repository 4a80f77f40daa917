"""benchmarks/demos.py: whole trainings side by side, and what is made of their results."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TextIO

import pytest

from benchmarks import demos
from benchmarks.demos import as_text, main, train_side_by_side
from forked import Forked


def entry(*runs: tuple[float, float]) -> dict:
    """Of (top-1, ms per clip)."""
    times = [ms for _, ms in runs]
    spread = {"median": sorted(times)[len(times) // 2], "q1": min(times), "q3": max(times)}
    return {"runs": [{"top1": top1} for top1, _ in runs], "ms_per_clip": spread}


def test_the_table_holds_times_against_the_first_config():
    entries = {"one": entry((0.97, 10.0), (0.98, 12.0), (0.5, 11.0)), "two": entry((1.0, 5.5))}
    _, one, two = as_text(entries).splitlines()
    assert one.split() == ["one", "97.0%,", "98.0%,", "50.0%", "11.00", "(10.00", "to", "12.00)",
                           "1.00x"]  # fmt: skip
    assert two.split() == ["two", "100.0%", "5.50", "(5.50", "to", "5.50)", "0.50x"]


class ForkedTraining:
    """As much of subprocess.Popen as the benchmark uses, for tests/forked.py."""

    def __init__(
        self, command: Sequence[str], env: Mapping[str, str], stdout: TextIO, stderr: TextIO
    ) -> None:
        assert command[0] == sys.executable and stdout is stderr
        self.log = Path(stdout.name)
        self.process = Forked(Path(command[1]), command[2:], Path.cwd(), env)

    def wait(self) -> int:
        self.log.write_text("".join(self.process.communicate(timeout=600)))
        return self.process.returncode


@pytest.fixture
def forked_trainings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demos, "subprocess", SimpleNamespace(Popen=ForkedTraining))


@pytest.mark.usefixtures("forked_trainings")
def test_two_configs_train_on_the_same_clips_and_are_recorded(dataset, tmp_path, capsys):
    out = tmp_path / "out.json"
    overrides = [f"data.root={dataset}", "train.epochs=1", f"data.cache_dir={tmp_path}"]
    overrides += ["data.num_frames=8", "data.branch_frames=[2,4,6]", "train.global_batch=12"]
    overrides += ["model.width=4", "model.dim=64"]
    assert main(["--seeds", "3", "--json", str(out), "--overrides", *overrides]) == 0
    entries = json.loads(out.read_text())["entries"]
    assert list(entries) == ["demo_rgb", "demo_umdr_rgb"]
    printed = capsys.readouterr().out
    for config, found in entries.items():
        assert config in printed
        (run,) = found["runs"]
        assert run["seed"] == 3 and run["clips"] > 0 and 0 <= run["top1"] <= 1
        assert found["ms_per_clip"]["median"] == 1000 * run["seconds"] / run["clips"]


@pytest.mark.usefixtures("forked_trainings")
def test_a_training_that_fails_is_named_and_ends_no_other(dataset, tmp_path):
    wrong = ["train.epochs=0", f"data.root={dataset}", f"data.cache_dir={tmp_path}"]
    results, stopped = train_side_by_side(["demo_rgb", "no_such"], 5, wrong, tmp_path)
    assert results == {} and list(stopped) == ["demo_rgb_5", "no_such_5"]
    assert stopped["demo_rgb_5"].startswith("training failed (exit status 1): ")
    assert "epochs is 0" in stopped["demo_rgb_5"] and "no_such.yaml" in stopped["no_such_5"]


def test_a_seed_whose_training_fails_is_left_out_and_the_next_goes_on(
    tmp_path, capsys, monkeypatch
):
    """The training beside the failed one had the machine to itself: its time is not comparable."""
    out = tmp_path / "out.json"
    kept = {"top1": 1.0, "best_top1": 1.0, "clips": 10, "clips_per_s": 5.0, "data_wait": 0.0,
            "device": "cpu"}  # fmt: skip

    def train(configs, seed, overrides, folder):
        if seed == 2:
            assert len(json.loads(out.read_text())["entries"]["one"]["runs"]) == 1, "kept so far"
            return {"one": {**kept, "seconds": 99.0}}, {"two_2": "training failed"}
        return {config: {**kept, "seconds": 2.0 * seed} for config in configs}, {}

    monkeypatch.setattr(demos, "train_side_by_side", train)
    command = ["--configs", "one", "two", "--seeds", "1", "2", "3", "--json", str(out)]
    assert main(command) == 1
    result = json.loads(out.read_text())
    assert result["errors"] == {"two_2": "training failed"}
    for found in result["entries"].values():
        assert [run["seed"] for run in found["runs"]] == [1, 3]
        assert found["ms_per_clip"]["median"] == 400 and found["ms_per_clip"]["n"] == 2
    assert "error: two_2: training failed" in capsys.readouterr().err


def test_a_run_in_which_nothing_succeeds_says_so(tmp_path, capsys):
    out = tmp_path / "out.json"
    command = ["--configs", "no_such", "--seeds", "1", "--json", str(out)]
    assert main(command) == 1
    said = capsys.readouterr()
    assert said.out == "nothing was measured\n" and "error: no_such_1: " in said.err
    assert json.loads(out.read_text())["entries"] == {}
