"""benchmarks/end_to_end.py: its cases, its arithmetic, a tiny run."""

import functools
import json
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from unittest import mock

import pytest
import torch

from benchmarks import (
    ceilings,
    compare,
    end_to_end,
    end_to_end_run,
    end_to_end_table,
    networks,
    scaling,
)
from benchmarks.end_to_end_run import BOTH, LOADER, STEP, Case, Window, alive_together, cases, entry
from benchmarks.loader_cases import Setting
from benchmarks.networks import SHAPES, Network, training_step
from benchmarks.settings import settings
from benchmarks.traffic import network_operations
from engine import compilation
from engine.distributed import Ranks
from engine.losses import LossConfig
from engine.timing import StepClock
from models.registry import build_model
from models.video_networks import PUBLISHED

R3D = SHAPES["small"]["r3d_18"]
TINY = (
    "--networks decoupled --sources frames --batch 1 --clips 4 --batches 1 --workers 1 "
    "--prefetch 1 --rgb-size 64x48 --depth-size 64x48 --frames 8 --size 32 --windows 2 --device cpu"
)


RATES = {"matmul_tflop_per_s": 1.0, "copy_gb_per_s": 100.0}
SETTINGS = {"tf32_matmul": False, "tf32_cudnn": True, "cudnn_benchmark": False}


def window(seconds: float, waited: float = 0.0) -> Window:
    parts = {"data": waited, "forward": seconds - waited}
    return Window(4, seconds, parts, 1.5 * seconds, {"SM": 0.5})


def entries(device: str, **seconds: float) -> dict:
    """The part's seconds per clip, of frames or (`videos_both`) of videos."""
    found = {}
    for name, value in seconds.items():
        source, _, part = name.rpartition("_")
        case = Case(device, R3D, part, source or "frames")
        found[case.name] = entry(case, [window(99), window(4 * value), window(4 * value)], SETTINGS)
    return found


def test_the_stall_is_what_training_takes_beyond_the_step():
    assert end_to_end_table.stall(2.0, 2.5) == pytest.approx(0.2)
    assert end_to_end_table.stall(2.0, 2.0) == 0
    assert end_to_end_table.stall(1.0, 4.0) == 0.75
    # A loader of 3 s and a step of 2 s allow 3 s where they share nothing.
    assert end_to_end_table.of_best(3.0, 2.0, 4.0) == 0.75
    assert end_to_end_table.of_best(1.0, 2.0, 2.0) == 1


def test_each_source_has_a_stall_of_its_own_where_all_was_measured():
    found = entries("cpu", step=2, loader=1, both=2.5, videos_loader=3, videos_both=4, pack_both=9)
    assert next(iter(found)) == "cpu/r3d_18/step"
    assert end_to_end_table.stalls(found) == {
        "cpu/r3d_18/frames": {"stall": pytest.approx(0.2), "of_best": pytest.approx(0.8)},
        "cpu/r3d_18/videos": {"stall": pytest.approx(0.5), "of_best": pytest.approx(0.75)},
    }
    text = end_to_end_table.as_text(found, {})
    assert "20.0%" in text and "50.0%" in text and "share the cores" in text
    assert "published" not in text


def test_an_entry_leaves_the_first_window_out():
    case = Case("cpu", R3D, BOTH, "frames")
    found = entry(case, [window(100, 100), window(4, 1), window(8, 1), window(6, 1)], SETTINGS)
    assert found["seconds"] == {"median": 1.5, "q1": 1.25, "q3": 1.75, "n": 3}
    assert found["clips_per_s"] == pytest.approx(1 / 1.5) and found["cores"] == 1.5
    assert found["data_wait"] == pytest.approx(3 / 18)
    assert found["clips"] == "16x64x64" and found["settings"] == SETTINGS
    assert "engines" not in found and "data_wait" not in entry(
        Case("cuda", R3D, STEP, "frames"), [window(1)] * 2, SETTINGS
    )


def test_on_a_gpu_the_published_rates_stand_beside_ours_with_their_conditions():
    text = end_to_end_table.as_text(entries("cuda", step=0.002, loader=0.001, both=0.0025), {})
    (row,) = (line for line in text.splitlines() if "spdl" in line)
    assert row.split()[0] == "171" and "8 x H100" in row and row.endswith("here from frames 400")
    assert sum("another network than ours" in line for line in text.splitlines()) == 2


def test_what_is_reached_of_the_wall_stands_below_the_table():
    found = entries("cuda", step=0.002, loader=0.001, both=0.0025)
    wall = {"tflop": 0.1, "gb": 3.0, "merged_gb": 2.0, "least_seconds": 0.001}
    (row,) = end_to_end_table.wall_rows(found, {"r3d_18": wall})
    assert "0.1 TFLOP, 2 GB, at least 1 ms here" in row
    assert row.endswith("r3d_18/step 50%, r3d_18/frames/both 40%")


def test_the_settings_and_what_stands_in_no_row_follow_the_table():
    found = entries("cpu", step=2, loader=1, both=2.5, videos_loader=4)
    lines = end_to_end_table.as_text(found, {}).splitlines()
    assert "measured with TF32 off/on (matmul/cuDNN), cudnn.benchmark off: all" in lines
    alone = [line for line in lines if line.endswith("not all parts were measured")]
    assert alone == ["cpu/r3d_18/videos/loader: 0.25 clips/s; not all parts were measured"]
    del found["cpu/r3d_18/frames/loader"]
    lines = end_to_end_table.as_text(found, {}).splitlines()
    alone = [line.split(":")[0] for line in lines if line.endswith("not all parts were measured")]
    assert alone == [f"cpu/r3d_18/{part}" for part in ("step", "frames/both", "videos/loader")]


def test_the_cases_of_a_network_are_made_of_its_sources_and_its_step_is_measured_once():
    found = cases("cuda", R3D, ["frames", "pack"])
    assert [case.name for case in found] == [
        "cuda/r3d_18/step", "cuda/r3d_18/frames/both", "cuda/r3d_18/pack/both",
        "cuda/r3d_18/frames/loader", "cuda/r3d_18/pack/loader",
    ]  # fmt: skip
    assert {case.part for case in found} == {STEP, BOTH, LOADER}
    setting = found[1].setting(Setting(clips=7))
    assert (setting.clips, setting.frames, setting.size, setting.batch) == (7, 16, 64, 2)


def test_cases_share_a_cpu_in_turns_and_have_a_gpu_for_themselves():
    on_cpu, on_gpu = (cases(device, R3D, ["frames", "pack"]) for device in ("cpu", "cuda"))
    assert alive_together(on_cpu) == [on_cpu]
    assert alive_together(on_gpu) == [[case] for case in on_gpu]


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which passes only where a test says so."""
    moment = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: moment[0])
    monkeypatch.setattr(end_to_end_run, "settle", lambda: None)
    return moment


def slow_loader(now: list[float], seconds: float) -> Iterator[None]:
    while True:
        now[0] += seconds
        yield None


def wait_of(found: Window) -> float:
    return entry(Case("cpu", R3D, BOTH, "frames"), [window(1), found], SETTINGS)["data_wait"]


@pytest.mark.parametrize(("loader", "step", "wait"), [(9.0, 1.0, 0.9), (0.0, 4.0, 0.0)])
def test_the_wait_is_the_share_of_time_in_which_a_step_had_no_batch(now, loader, step, wait):
    clock = StepClock(torch.device("cpu"))

    def take_step(batch: None) -> None:
        with clock.part("forward"):
            now[0] += step

    setting = Setting(batches=4, prefetch=1)
    found = end_to_end_run._window("cpu", setting, slow_loader(now, loader), take_step, clock)
    assert found.seconds == 4 * (loader + step)
    assert found.parts == {"data": 4 * loader, "forward": 4 * step, "other": 0}
    assert wait_of(found) == wait


class GpuLine:
    """The time line of a GPU that works behind the host, which only queues."""

    def __init__(self, now: list[float]) -> None:
        self.host, self.free = now, now[0]

    def queue(self, seconds: float) -> None:
        self.free = self.now() + seconds

    def now(self) -> float:
        """When the device has done what is queued."""
        return max(self.free, self.host[0])

    def has_passed(self, moment: float) -> bool:
        return True

    def seconds(self, start: float, end: float) -> float:
        return end - start

    def give_back(self, moment: float | None) -> None:
        pass


@pytest.mark.parametrize(("loader", "wait"), [(2.0, 2 / 22), (6.0, 9 / 29)])
def test_a_gpu_that_is_behind_the_host_does_not_wait_while_the_host_does(
    now, monkeypatch, loader, wait
):
    """The host is busy with nothing but waiting for batches: 8 of 22 and 24 of 29 seconds. The
    device, 5 seconds a step, waits for the window's first, and then where the loader is slower."""
    clock = StepClock(torch.device("cpu"))
    clock.line = line = GpuLine(now)

    def synchronise(device: str) -> None:
        now[0] = line.now()

    def take_step(batch: None) -> None:
        with clock.part("forward"):
            line.queue(5.0)

    monkeypatch.setattr(end_to_end_run, "wait_for", synchronise)
    setting = Setting(batches=4, prefetch=1)
    found = end_to_end_run._window("cpu", setting, slow_loader(now, loader), take_step, clock)
    assert found.parts["forward"] == 4 * 5.0
    assert found.seconds == sum(found.parts.values())
    assert wait_of(found) == pytest.approx(wait)


def test_only_the_cvpr_network_is_given_motion_maps():
    made = {name: Case("cpu", network, BOTH, "frames").loading.upto
            for name, network in SHAPES["published"].items()}  # fmt: skip
    assert made.pop("decoupled") == "motion" and set(made.values()) == {"view"}


def test_published_shapes_are_those_of_the_networks():
    for name, clips in PUBLISHED.items():
        network = SHAPES["published"][name]
        assert (network.frames, network.size) == (clips.num_frames, clips.size)
    assert SHAPES["published"].keys() == SHAPES["small"].keys() == {"decoupled", "umdr", *PUBLISHED}


def test_the_step_is_the_engines():
    network = Network("decoupled", 8, 32, 2)
    ranks = Ranks(0, 0, 1)
    batch = next(scaling._kept(network, ranks))
    clock = StepClock(ranks.device)
    step = training_step(network, ranks, batch, "off", clock)
    losses = [step(batch).item() for _ in range(3)]
    assert len(set(losses)) == 3
    assert clock.read().keys() == {"forward", "backward", "optimizer"}
    assert all(0 < loss < 1e3 for loss in losses) and LossConfig().recoupling_delay > 0


@pytest.fixture
def quickly_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operations of another network, as counting those of many layers takes longer than a run."""
    counted = functools.partial(network_operations, R3D)
    monkeypatch.setattr(end_to_end, "network_operations", lambda _, precision: counted(precision))


def serve_short(case: Case, disk: Setting, data: Path, compiled: str, pipe: Connection) -> None:
    """`serve` of a small network in windows that last no longer than their batches."""
    small = functools.partial(build_model, width=8, dim=64, num_blocks=1)
    with (
        mock.patch.dict(end_to_end_run.SHORTEST, cpu=0.0),
        mock.patch.object(networks, "build_model", small),
    ):
        end_to_end_run.serve(case, disk, data, compiled, pipe)


@pytest.mark.usefixtures("forked_cases", "quickly_counted")
def test_a_tiny_run_measures_the_parts_the_whole_and_the_stall(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(end_to_end_run, "serve", serve_short)
    monkeypatch.setattr(ceilings, "REPEATS", 1)
    out = tmp_path / "result.json"
    assert end_to_end.main([*TINY.split(), "--json", str(out)]) == 0
    result = json.loads(out.read_text())
    assert {"command", "commit", "machine", "versions", "setting", "published"} <= result.keys()
    names = [f"cpu/decoupled/{part}" for part in ("step", "frames/both", "frames/loader")]
    assert list(result["entries"]) == names and result["errors"] == {}
    for found in result["entries"].values():
        spread = found["seconds"]
        assert spread["n"] == 2 and 0 < spread["q1"] <= spread["median"] <= spread["q3"]
        assert found["settings"] == settings()
    assert 0 <= result["entries"][names[1]]["data_wait"] < 1
    step, both = (result["entries"][name]["seconds"]["median"] for name in names[:2])
    assert result["stalls"]["cpu/decoupled/frames"]["stall"] == pytest.approx(1 - step / both)
    assert "\ncpu/decoupled/frames " in capsys.readouterr().out
    assert compare.main([str(out), str(out)]) == 0


def serve_without_compiler(
    case: Case, disk: Setting, data: Path, compiled: str, pipe: Connection
) -> None:
    with mock.patch.object(compilation, "BACKEND", "no_such_compiler"):
        serve_short(case, disk, data, compiled, pipe)


@pytest.mark.usefixtures("forked_cases", "quickly_counted")
def test_a_step_that_cannot_be_compiled_is_an_error_and_not_measured_uncompiled(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(end_to_end_run, "serve", serve_without_compiler)
    monkeypatch.setattr(end_to_end, "rates", lambda device: RATES)
    out = tmp_path / "result.json"
    assert end_to_end.main([*TINY.split(), "--compile", "on", "--json", str(out)]) == 1
    result, printed = json.loads(out.read_text()), capsys.readouterr()
    assert list(result["entries"]) == ["cpu/decoupled/frames/loader"] and result["stalls"] == {}
    assert list(result["errors"]) == ["cpu/decoupled/step", "cpu/decoupled/frames/both"]
    for name, why in result["errors"].items():
        assert why.startswith("ValueError: the step cannot be compiled (InvalidBackend: ")
        assert why.endswith("); --compile off measures it uncompiled")
        assert f"error: {name}: {why}" in printed.err
    assert "cpu/decoupled/frames/loader: " in printed.out


def test_the_json_is_there_after_each_group_of_cases(tmp_path, monkeypatch):
    out = tmp_path / "result.json"
    step, both = "cpu/r3d_18/step", "cpu/r3d_18/frames/both"

    def measure(*_: object) -> Iterator[tuple[dict, dict]]:
        yield {step: entries("cpu", step=2)[step]}, {}
        assert list(json.loads(out.read_text())["entries"]) == [step]
        yield {}, {both: "why"}
        assert json.loads(out.read_text())["errors"] == {both: "why"}
        raise KeyboardInterrupt

    monkeypatch.setattr(end_to_end, "measure", measure)
    monkeypatch.setattr(end_to_end, "rates", lambda device: RATES)
    with pytest.raises(KeyboardInterrupt):
        end_to_end.main(["--networks", "r3d_18", "--device", "cpu", "--json", str(out)])
    result = json.loads(out.read_text())
    assert list(result["entries"]) == [step] and list(result["walls"]) == ["r3d_18"]


def test_a_source_of_another_device_is_refused(capsys):
    assert end_to_end.main(["--sources", "cache_gpu", "--device", "cpu"]) == 1
    assert "error: --sources cache_gpu: is not for cpu" in capsys.readouterr().err


@pytest.mark.gpu
def test_on_this_gpu_a_network_trains_from_decoded_videos(tmp_path):
    out = tmp_path / "result.json"
    command = "--networks r3d_18 --sources frames videos --batch 8 --clips 8 --windows 2"
    assert end_to_end.main([*command.split(), "--compile", "off", "--json", str(out)]) == 0
    result = json.loads(out.read_text())
    assert result["entries"]["cuda/r3d_18/videos/both"]["clips_per_s"] > 0
