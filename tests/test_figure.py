"""benchmarks/figure.py: what is drawn is what the results say."""

import json
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from benchmarks import figure

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"


def result(**rates: float) -> dict:
    """Of clips of 2 per batch, whose quartiles are a fifth below and above the median's time."""
    return {
        "what": "training step",
        "machine": {"cpu": "a CPU", "cores": 8, "device": "cuda: a GPU"},
        "setting": {"network": "decoupled", "batch": 2},
        "entries": {
            name: {
                "clips_per_s": rate,
                "seconds": {"median": 2 / rate, "q1": 1.6 / rate, "q3": 2.5 / rate},
            }
            for name, rate in rates.items()
        },
    }


def test_bars_are_clips_per_second_with_their_quartiles_the_fastest_first():
    assert figure.bars(result(slow=10.0, fast=40.0)) == [
        ("fast", 40.0, 32.0, 50.0), ("slow", 10.0, 8.0, 12.5)
    ]  # fmt: skip


def test_the_wall_is_in_clips_per_second_too():
    assert figure.walls(result(a=1.0)) == {}
    assert figure.walls(result(a=1.0) | {"wall": {"least_seconds": 0.01}}) == {"decoupled": 200.0}
    walls = {"umdr": {"least_seconds": 0.002}, "r3d_18": {"least_seconds": 0.001}}
    assert figure.walls(result(a=1.0) | {"walls": walls}) == {"umdr": 500.0, "r3d_18": 1000.0}


@pytest.mark.parametrize(
    ("device", "title"),
    [
        ("cpu: 2 threads", "training step (8 cores, a CPU)"),
        ("cuda: a GPU", "training step (cuda: a GPU)"),
    ],
)
def test_a_panel_says_what_was_measured_where(device, title):
    axes = Figure().subplots()
    machine = {"cpu": "a CPU", "cores": 8, "device": device}
    figure.draw_panel(axes, figure.bars(result(a=1.0)), result(a=1.0) | {"machine": machine})
    assert axes.get_title() == title
    assert [patch.get_width() for patch in axes.patches] == [1.0]


@pytest.mark.parametrize("name", ["step_cpu", "loader_cpu", "end_to_end_cpu", "scaling_cpu"])
def test_the_repositorys_results_can_be_drawn(name):
    assert figure.bars(json.loads((RESULTS / f"{name}.json").read_text()))


def test_a_panel_per_file_is_drawn(tmp_path, capsys):
    paths, heights = [], []
    for name, rates in (("one", {"a": 1.0}), ("two", {"b": 2.0, "c": 3.0})):
        paths.append(str(tmp_path / f"{name}.json"))
        Path(paths[-1]).write_text(json.dumps(result(**rates)))
    for given in (paths[:1], paths):
        out = tmp_path / "figure.png"
        assert figure.main([str(out), *given]) == 0
        with Image.open(out) as image:
            assert image.convert("L").getextrema()[0] < 128 < image.convert("L").getextrema()[1]
            heights.append(image.height)
    assert heights[1] > 2 * heights[0]
    assert f"written: {out}" in capsys.readouterr().out


def test_a_file_without_rates_is_refused_by_name(tmp_path, capsys):
    for name, text in (("empty", "{}"), ("broken", "{"), ("other", '{"entries": {"a": {}}}')):
        path = tmp_path / f"{name}.json"
        path.write_text(text)
        assert figure.main([str(tmp_path / "out.png"), str(path)]) == 1
        assert f"error: {path}: " in capsys.readouterr().err
    assert not (tmp_path / "out.png").exists()
