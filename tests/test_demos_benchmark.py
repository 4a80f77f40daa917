"""benchmarks/demos.py: whole trainings side by side, and what is made of their results."""

import json
from pathlib import Path

import pytest

from benchmarks.demos import as_text, main, train_side_by_side


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


@pytest.mark.slow
def test_two_configs_train_on_the_same_clips_and_are_recorded(dataset, tmp_path, capsys):
    out = tmp_path / "out.json"
    overrides = [f"data.root={dataset}", "train.epochs=1", f"data.cache_dir={tmp_path}"]
    assert main(["--seeds", "3", "--json", str(out), "--overrides", *overrides]) == 0
    entries = json.loads(out.read_text())["entries"]
    assert list(entries) == ["demo_rgb", "demo_umdr_rgb"]
    printed = capsys.readouterr().out
    for config, found in entries.items():
        assert config in printed
        (run,) = found["runs"]
        assert run["seed"] == 3 and run["clips"] > 0 and 0 <= run["top1"] <= 1
        assert found["ms_per_clip"]["median"] == 1000 * run["seconds"] / run["clips"]


def test_a_training_that_fails_is_named(tmp_path):
    wrong = ["train.epochs=0"]
    with pytest.raises(RuntimeError, match=r"demo_rgb_5: training failed: .*epochs is 0"):
        train_side_by_side(["demo_rgb"], 5, wrong, Path(tmp_path))
