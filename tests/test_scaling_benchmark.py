"""benchmarks/scaling.py: its groups of ranks, its arithmetic, tiny runs."""

import dataclasses
import functools
import json
import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest

from benchmarks import compare, loader_cases, networks, scaling
from benchmarks.networks import SHAPES
from benchmarks.scaling import Group, Setting, groups
from benchmarks.settings import settings
from models.registry import build_model

R3D = SHAPES["small"]["r3d_18"]
TINY = "--frames 8 --size 32 --batch 1 --warmup 1 --steps 1 --windows 1 --device cpu"


def test_ranks_share_a_batch_that_grows_with_them_or_stays():
    assert groups([1, 2, 4], 3) == {
        "weak/1": Group(1, 3), "weak/2": Group(2, 3), "weak/4": Group(4, 3),
        "strong/1": Group(1, 12), "strong/2": Group(2, 6), "strong/4": Group(4, 3),
    }  # fmt: skip
    with pytest.raises(ValueError, match="--ranks 3: cannot share 8 clips equally"):
        groups([1, 3, 4], 2)
    assert scaling.default_ranks(1) == [1] and scaling.default_ranks(2) == [1, 2]
    assert scaling.default_ranks(7) == [1, 2, 4] and scaling.default_ranks(8) == [1, 2, 4, 8]


def test_efficiency_is_the_rate_over_that_of_one_rank_times_their_number():
    rates = {"weak/1": (1, 10.0), "weak/4": (4, 30.0), "strong/1": (1, 20.0), "strong/4": (4, 60.0)}
    made = {name: {"ranks": n, "clips_per_s": rate} for name, (n, rate) in rates.items()}
    found = scaling.efficiencies(made)
    assert found == {"weak/1": 1, "weak/4": 0.75, "strong/1": 1, "strong/4": 0.75}
    del made["strong/1"]
    assert scaling.efficiencies(made).keys() == {"weak/1", "weak/4"}


def serve_small(group: Group, setting: Setting, data: Path, pipe: Connection) -> None:
    """`serve` of a small network; the other ranks are forked from the first."""
    fork = SimpleNamespace(get_context=lambda method: multiprocessing.get_context("fork"))
    small = functools.partial(build_model, width=8, dim=64, num_blocks=1)
    with (
        mock.patch.object(scaling, "multiprocessing", fork),
        mock.patch.object(networks, "build_model", small),
    ):
        scaling.serve(group, setting, data, pipe)


@pytest.mark.usefixtures("forked_cases")
@pytest.mark.parametrize("loader", [False, True])
def test_a_tiny_run_trains_on_one_rank_and_on_two(tmp_path, capsys, monkeypatch, loader):
    few = {"clips": 4, "workers": 1, "rgb_size": (64, 48), "depth_size": (64, 48)}
    monkeypatch.setattr(loader_cases, "Setting", functools.partial(loader_cases.Setting, **few))
    monkeypatch.setattr(scaling, "serve", serve_small)
    out = tmp_path / "scaling.json"
    command = f"--network decoupled --ranks 1 2 {TINY}".split()
    command += ["--loader"] if loader else []
    assert scaling.main([*command, "--json", str(out)]) == 0
    result = json.loads(out.read_text())
    assert {"command", "commit", "machine", "versions", "setting"} <= result.keys()
    assert list(result["entries"]) == ["weak/1", "weak/2", "strong/1", "strong/2"]
    assert [found["global_batch"] for found in result["entries"].values()] == [1, 2, 2, 2]
    assert result["entries"]["weak/2"]["seconds"] == result["entries"]["strong/2"]["seconds"]
    assert all(found["settings"] == settings() for found in result["entries"].values())
    for name, figure in scaling.efficiencies(result["entries"]).items():
        assert result["entries"][name]["efficiency"] == figure > 0
    assert result["errors"] == {} and "efficiency" in capsys.readouterr().out
    assert compare.main([str(out), str(out)]) == 0


@pytest.mark.usefixtures("forked_cases")
def test_what_stops_a_group_is_told_and_the_others_go_on(tmp_path):
    network = dataclasses.replace(R3D, frames=8, size=31)  # too small for the network
    setting = Setting("cpu", network, "off", False, 1, 1, 1, 1)
    found, errors = scaling.measure(groups([1], 1), setting, tmp_path)
    assert found == {}
    assert errors["weak/1"] == "ValueError: size must be at least 32, not 31"
