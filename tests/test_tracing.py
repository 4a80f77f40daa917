"""train.profile: which steps are traced, and that the loader's stages are seen in the trace."""

import gzip
import json
from collections import defaultdict
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from engine.config import from_tree
from engine.distributed import Ranks
from engine.tracing import Trace, window
from engine.training import Training
from pipelines import spans
from runs import lines_of

CPU = torch.device("cpu")


def test_a_window_is_two_step_numbers():
    assert window("") == (0, 0)
    assert window("20:25") == (20, 25)
    for text in ("20", "25:20", "3:3", "0:4", ":4", "a:b", "1:2:3", "-1:3", "1.5:3"):
        with pytest.raises(ValueError, match="must be START:STOP, such as 20:25"):
            window(text)


def test_yaml_does_not_make_one_number_of_it(tiny_config):
    for override in ("train.profile=3:5", "train.profile='3:5'"):
        assert from_tree(tiny_config, "test", [override]).train.profile == "3:5"
    with pytest.raises(ValueError, match="test: train: profile is '5:3'; it must be START:STOP"):
        from_tree(tiny_config, "test", ["train.profile=5:3"])


def ranges_in(path: Path) -> dict[str, set[int]]:
    """Names of the ranges of a trace, and the threads they were in."""
    with gzip.open(path, "rt") as file:
        events = json.load(file)["traceEvents"]
    found = defaultdict(set)
    for event in events:
        if event.get("cat") == "user_annotation":
            found[event["name"]].add(event["tid"])
    return found


def test_the_trace_of_a_run_shows_the_steps_and_the_loader_beside_them(tiny_config, tmp_path):
    tiny_config["train"] |= {"profile": "2:4", "epochs": 1, "global_batch": 3, "log_every": 3}
    tiny_config["data"]["prefetch"] = 1  # or all batches of so short a run were made before it
    Training(from_tree(tiny_config, "test"), Ranks(0, 0, 1)).fit()
    ranges = ranges_in(tmp_path / "run" / "trace_2_4.json.gz")
    (main,) = ranges["forward"]
    assert ranges["data"] == ranges["backward"] == ranges["optimizer"] == {main}
    for stage in ("read", "decode", "frames", "view", "normalise", "motion"):
        assert ranges[f"loader: {stage}"] and main not in ranges[f"loader: {stage}"], stage
    assert [line["step"] for line in lines_of(tmp_path / "run", "train")] == [3, 6, 8]


def steps_traced(trace: Trace, first: int, last: int) -> list[int]:
    traced = []
    for step in range(first, last + 1):
        trace.before(step)
        if trace._profiler is not None:
            traced.append(step)
    return traced


def test_only_the_window_is_traced_whichever_step_the_run_begins_at(tmp_path):
    for first, expected in ((1, [2, 3]), (3, [3]), (4, [])):
        trace = Trace("2:4", tmp_path, CPU, enabled=True)
        assert steps_traced(trace, first, 6) == expected
        assert (tmp_path / "trace_2_4.json.gz").exists() == bool(expected)
        (tmp_path / "trace_2_4.json.gz").unlink(missing_ok=True)
    assert steps_traced(Trace("2:4", tmp_path, CPU, enabled=False), 1, 6) == []


def test_a_run_that_ends_within_the_window_writes_what_there_is(tmp_path):
    trace = Trace("2:9", tmp_path, CPU, enabled=True)
    assert steps_traced(trace, 1, 3) == [2, 3]
    trace.close()
    assert (tmp_path / "trace_2_9.json.gz").stat().st_size > 0


def test_a_trace_that_cannot_be_written_stops_nobody(tmp_path, capsys):
    trace = Trace("1:2", tmp_path / "deleted", CPU, enabled=True)
    assert steps_traced(trace, 1, 3) == [1]
    assert "trace_1_2.json.gz cannot be written (" in capsys.readouterr().out


def test_ranges_go_to_nvidias_tools_too_where_there_is_a_gpu(monkeypatch):
    said = []
    tool = SimpleNamespace(range_push=said.append, range_pop=lambda: said.append("end"))
    monkeypatch.setattr(torch.cuda, "nvtx", tool)
    monkeypatch.setattr(spans, "_has_nvtx", lambda: True)
    with pytest.raises(KeyError), spans.span("outer"), spans.span("inner"):
        raise KeyError
    assert said == ["outer", "inner", "end", "end"]


def test_where_nobody_looks_a_range_is_nothing(monkeypatch):
    monkeypatch.setattr(spans, "_has_nvtx", lambda: False)
    assert isinstance(spans.span("any"), nullcontext)
