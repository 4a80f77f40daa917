"""benchmarks/loader.py: cases, their turns, tables and files; the memory curve."""

import json
import os
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from benchmarks import (
    compare,
    engines,
    loader,
    loader_run,
    loader_table,
    memory_curve,
    page_cache,
    peers,
)
from benchmarks.loader_cases import UPTOS, WHATS, Case, Setting
from benchmarks.loader_data import video_path, write_videos
from benchmarks.loader_run import Window, entry, measure
from benchmarks.loader_sources import HARDWARE_SHARES, SOURCES, VIDEO_THREADS, clip_source, plan
from benchmarks.python_work import python_work
from benchmarks.settings import settings
from pipelines import reference

ROOT = Path(__file__).resolve().parents[1]
TINY = Setting(
    clips=8, size=32, frames=8, batch=1, workers=1, prefetch=1, windows=2, batches=1,
    rgb_size=(64, 48), depth_size=(64, 48),
)  # fmt: skip
TINY_OPTIONS = [
    "--clips", "8", "--size", "32", "--frames", "8", "--batch", "1", "--workers", "1",
    "--prefetch", "1", "--windows", "2", "--batches", "1",
    "--rgb-size", "64x48", "--depth-size", "64x48",
]  # fmt: skip
MOTION = Case("cpu", "frames", "rgb", "motion", "warm")
SETTINGS = {"tf32_matmul": False, "tf32_cudnn": True, "cudnn_benchmark": False}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder of a tiny run, videos included."""
    data = tmp_path_factory.mktemp("bench")
    write_videos(data, TINY)
    return data


@pytest.fixture(autouse=True)
def few_in_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what Python does alone, no time is looked at."""
    monkeypatch.setattr("benchmarks.python_work.CLIPS", 1000)


def serve_short(case: Case, setting: Setting, data: Path, pipe: Connection) -> None:
    """`serve` whose windows last no longer than their batches."""
    with mock.patch.dict(loader_run.SHORTEST, cpu=0.0):
        loader_run.serve(case, setting, data, pipe)


@pytest.mark.usefixtures("forked_cases")
def test_a_tiny_run_measures_the_loader_beside_the_twin_and_can_be_compared(
    clips, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(loader_run, "serve", serve_short)
    file = tmp_path / "result.json"
    only = ["--only", "*/rgb/motion/warm", "cpu/frames/rgb/read/cold"]
    where = ["--data", str(clips), "--json", str(file)]
    assert loader.main([*TINY_OPTIONS, *only, "--peers", *where]) == 0
    result = json.loads(file.read_text())
    assert {"command", "commit", "machine", "versions", "setting"} <= result.keys()
    entries = result["entries"]
    twin, cold = "cpu/twin/rgb/motion/warm", "cpu/frames/rgb/read/cold"
    assert {MOTION.name, twin, cold} <= entries.keys()
    for name, found in entries.items():
        seconds = found["seconds"]
        assert found["name"] == name
        assert seconds["n"] == 2 and 0 < seconds["q1"] <= seconds["median"] <= seconds["q3"]
        assert found["clips_per_s"] == pytest.approx(1 / seconds["median"])
        assert found["settings"] == settings()
        assert found["memory_bytes"] > 0 and found["cpu_seconds_per_clip"] > 0
    assert "left_page_cache" not in entries[twin]
    assert compare.main([str(file), str(file)]) == 0
    printed = capsys.readouterr().out
    assert all(f"\n{name} " in printed for name in [*entries, *result["missing"]])


def test_a_run_that_cannot_be_done_says_what_to_change(tmp_path, capsys):
    assert loader.main(["--only", "cpu/tapes/*"]) == 1
    assert "--only cpu/tapes/*: fits no case" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"--clips 3: cold files need at least 5"):
        measure([replace(MOTION, pages="cold")], replace(TINY, clips=3), tmp_path)


@pytest.mark.usefixtures("forked_cases")
def test_what_stops_one_case_is_told_and_the_others_go_on(tmp_path, capsys):
    SOURCES["videos"].write(tmp_path, TINY)
    for video in (tmp_path / SOURCES["videos"].folder).rglob("*.mp4"):
        video.write_bytes(b"no video")
    both = ["cpu/frames/rgb/view/warm", "cpu/videos/rgb/view/warm"]
    result = tmp_path / "result.json"
    where = ["--data", str(tmp_path), "--json", str(result)]
    assert loader.main([*TINY_OPTIONS, "--only", *both, *where]) == 1
    seen = json.loads(result.read_text())
    assert set(seen["entries"]) == {both[0]}
    assert len(seen["errors"]) == 1 and seen["errors"][0].startswith(f"{both[1]}: ValueError: ")
    assert f"error: {both[1]}: ValueError: " in capsys.readouterr().err


def test_every_source_kind_stage_and_page_state_is_a_case_of_this_machine():
    cases, missing = loader.choose(("cpu",), ["*"], with_peers=False)
    whole = [(source, what, upto) for source in ("pack", "cache_host") for what in WHATS
             for upto in ("view", "motion")]  # fmt: skip
    whole += [("videos", what, upto) for what in ("rgb", "rgbd") for upto in ("view", "motion")]
    whole += [("frames", what, upto) for what in WHATS for upto in UPTOS]
    names = {"/".join((*case, pages)) for case in whole for pages in ("warm", "cold")}
    assert {case.name for case in cases} == {f"cpu/{name}" for name in names}
    on_gpu = {f"cuda/{name}" for name in names}
    kept = {name.replace("cache_host", "cache_gpu") for name in on_gpu if "cache_host" in name}
    tuned = {f"cuda/{source}/rgb/decode" for source in HARDWARE_SHARES}
    tuned |= {f"cuda/{source}/rgb/motion" for source in VIDEO_THREADS}
    tuned = {f"{name}/{pages}" for name in tuned for pages in ("warm", "cold")}
    assert set(missing) == on_gpu | kept | tuned
    assert set(missing.values()) == {"not measured"}


def test_a_peer_that_is_not_installed_is_listed_with_the_reason(monkeypatch):
    assert peers.missing("av") == "" and peers.missing("no_such_module") == "not installed"
    absent = replace(SOURCES["twin"], missing="not installed")
    monkeypatch.setitem(SOURCES, "twin", absent)
    cases, missing = loader.choose(("cpu",), ["cpu/*/rgb/motion/warm"], with_peers=True)
    assert missing["cpu/twin/rgb/motion/warm"] == "not installed"
    assert MOTION in cases and not any(case.source == "twin" for case in cases)


def test_cold_and_warm_files_never_take_turns():
    cases, _ = loader.choose(("cpu",), ["*"], with_peers=True)
    turns = [case.turn for case in cases]
    assert turns == sorted(turns, key=turns.index)  # each turn in one piece
    assert all(case.pages == case.turn[-1] for case in cases)


def test_a_window_of_cold_files_meets_no_clip_twice(clips):
    source = clip_source(MOTION, TINY, clips / "frames", layout="ntu")
    batches = plan(source, batch=3)
    drawn = [request.index for _ in range(8) for request in next(batches)]
    assert all(len(set(drawn[i : i + 8])) == 8 for i in range(len(drawn) - 8))


@pytest.mark.parametrize("what", ["rgb", "rgbd"])
@pytest.mark.parametrize("name", ["frames", "videos", "pack", "cache_host"])
def test_every_source_gives_the_same_clips(clips, name, what):
    SOURCES[name].write(clips, TINY)
    made = SOURCES[name].open(Case("cpu", name, what, "motion", "warm"), TINY, clips)
    first = next(made)
    made.close()
    case = Case("cpu", "frames", what, "motion", "warm")
    expected = next(SOURCES["frames"].open(case, TINY, clips))
    assert torch.equal(first.index, expected.index)
    for ours, theirs in zip(first.streams, expected.streams, strict=True):
        close = 0.1 if name == "videos" else 0.0
        assert (ours[0] - theirs[0]).abs().mean() <= close


@pytest.mark.parametrize("upto", UPTOS)
@pytest.mark.parametrize("what", WHATS)
def test_every_stage_of_the_loader_makes_batches(clips, what, upto):
    batches = SOURCES["frames"].open(Case("cpu", "frames", what, upto, "warm"), TINY, clips)
    for _ in range(3):
        next(batches)
    batches.close()


def test_a_video_library_delivers_the_frames_asked_for(clips):
    source = clip_source(MOTION, TINY, clips / "frames", layout="ntu")
    clip = source.index.clips[0]
    frames = source.index.media["rgb"][0]
    wanted = [0, 3, 3, clip.num_frames - 1]
    decoded = peers.pyav_frames(str(video_path(clips, clip.name)), wanted)
    stored = np.stack([reference.read_color(frames.path(number)) for number in range(9)])
    assert [np.abs(stored.astype(int) - frame).mean((1, 2, 3)).argmin() for frame in decoded] == [
        min(number, 8) for number in wanted
    ]


def test_a_peer_hands_over_what_the_twin_computes(clips):
    case = replace(MOTION, source="twin")
    # In this process: a worker forked from one in which DALI and OpenCV have threads may hang.
    made, maps, label, _ = next(SOURCES["twin"].open(case, replace(TINY, workers=0), clips))
    source = clip_source(case, TINY, clips / "frames", layout="ntu")
    request = source.train_request(0, 0)
    pixels = reference.clip_pixels(request.streams, source.config)
    np.testing.assert_array_equal(made[0][0], reference.normalise(pixels[0]))
    np.testing.assert_array_equal(maps[0][0], reference.motion_maps(pixels[0], 8))
    assert label.tolist() == [request.label]


def window(seconds: float, **changes: object) -> Window:
    given = {
        "clips": 4, "seconds": seconds, "cpu_seconds": 2 * seconds,
        "caller_seconds_per_batch": 0.001, "gpu_bytes": 10, "engines": {"NVJPG": 0.9},
        "left_memory": None,
    }  # fmt: skip
    return Window(**{**given, **changes})


def test_an_entry_leaves_the_first_window_out():
    found = entry(MOTION, [window(100), window(4), window(8), window(6)], 7, SETTINGS)
    assert found["seconds"] == {"median": 1.5, "q1": 1.25, "q3": 1.75, "n": 3}
    assert found["clips_per_s"] == pytest.approx(1 / 1.5)
    assert found["cores"] == 2 and found["cpu_seconds_per_clip"] == 3
    assert found["settings"] == SETTINGS
    assert found["memory_bytes"] == 7 and "python_ms_per_batch" not in found
    on_gpu = entry(replace(MOTION, device="cuda"), [window(1)] * 3, 7, SETTINGS)
    assert on_gpu["python_ms_per_batch"] == pytest.approx(1)
    assert on_gpu["gpu_memory_bytes"] == 30 and on_gpu["engines"] == {"NVJPG": 0.9}


def results(**seconds: float) -> dict:
    return {
        f"cpu/{name.replace('__', '/')}/warm": entry(
            MOTION, [window(4 * value)] * 3, 2**20, SETTINGS
        )
        for name, value in seconds.items()
    }


def test_the_stages_add_up_to_the_whole():
    entries = results(
        frames__rgb__hand_over=1, frames__rgb__read=3, frames__rgb__decode=7, frames__rgb__view=8,
        frames__rgb__motion=12,
    )  # fmt: skip
    parts = loader_table.split(MOTION.name, entries)
    assert parts == {"hand_over": 1, "read": 2, "decode": 4, "view": 1, "motion": 4}
    del entries["cpu/frames/rgb/decode/warm"]
    assert loader_table.split(MOTION.name, entries) is None


def test_speed_is_told_in_multiples_of_the_twins():
    entries = results(frames__rgb__motion=2, twin__rgb__motion=7, frames__rgb__view=1)
    assert loader_table.over_twin(MOTION.name, entries) == 3.5
    assert loader_table.over_twin("cpu/frames/rgb/view/warm", entries) is None
    text = loader_table.as_text(entries, {"cuda/frames/rgb/motion/warm": "not measured"})
    assert all(name in text for name in entries) and "not measured" in text
    assert "\nmeasured with TF32 off/on (matmul/cuDNN), cudnn.benchmark off: all" in text


def test_the_busiest_engine_is_named_the_processor_among_them():
    cores = len(os.sched_getaffinity(0))
    assert engines.busiest({}, 0.5 * cores) == "CPU 50%"
    assert engines.busiest({"SM": 0.2, "NVJPG": 0.97}, 0.5 * cores) == "NVJPG 97%"


@pytest.mark.parametrize(
    ("answer", "status", "expected"),
    [
        ("12, 3, 0, 98", 0, {"SM": 0.12, "memory": 0.03, "NVDEC": 0.0, "NVJPG": 0.98}),
        ("12, 3, 0, [N/A]", 0, {"SM": 0.12, "memory": 0.03, "NVDEC": 0.0}),
        ('Field "utilization.jpeg" is not a valid field to query.', 2, {}),
    ],
)
def test_the_driver_is_asked_how_busy_the_engines_are(
    tmp_path, monkeypatch, answer, status, expected
):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho '{answer}'\nexit {status}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert engines.engine_use() == expected
    program.unlink()
    assert engines.engine_use() == {}


def test_memory_growth_is_that_of_the_last_tenth_over_the_first_after_the_warm_up():
    level = [(batch, 1000) for batch in range(1, 101)]
    assert memory_curve.growth(level) == 0
    warming = [(batch, 10 * batch if batch <= 10 else 1000) for batch in range(1, 101)]
    assert memory_curve.growth(warming) == 0
    rising = [(batch, 1000 + batch) for batch in range(1, 101)]
    # Batches 11..19 against 92..100 of the 90 after the warm-up: medians 1015 and 1096.
    assert memory_curve.growth(rising) == pytest.approx(100 * 81 / 1015)
    with pytest.raises(ValueError, match="1 batches are too few"):
        memory_curve.growth([(1, 1000)])


def test_the_memory_of_a_run_is_recorded_with_its_picture(clips, tmp_path, capsys):
    out, picture = tmp_path / "memory.json", tmp_path / "memory.png"
    options = ["--memory-curve", "40", "--json", str(out), "--plot", str(picture)]
    assert loader.main([*TINY_OPTIONS, *options, "--data", str(clips)]) == 0
    curve = json.loads(out.read_text())["curve"]
    assert [batch for batch, _ in curve["samples"]] == list(range(1, 41))
    assert curve["growth_percent"] == pytest.approx(memory_curve.growth(curve["samples"]))
    assert picture.stat().st_size > 0
    assert f"{curve['growth_percent']:+.2f} % since the warm-up" in capsys.readouterr().out


def test_only_the_files_given_are_dropped(tmp_path, monkeypatch):
    dropped = []
    monkeypatch.setattr(
        os, "posix_fadvise",
        lambda fd, *rest: dropped.append((os.readlink(f"/proc/self/fd/{fd}"), *rest)),
    )  # fmt: skip
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(b"pixels")
    page_cache.drop([tmp_path / "a", tmp_path / "c"])
    whole = (0, 0, os.POSIX_FADV_DONTNEED)
    assert dropped == [(str(tmp_path / "a"), *whole), (str(tmp_path / "c"), *whole)]
    page_cache.read_in(page_cache.files_below(tmp_path))
    assert len(dropped) == 2
    assert page_cache.share_in_memory(page_cache.files_below(tmp_path)) in (1, None)


def test_python_work_is_measured_for_every_kind_of_clip_without_files():
    for what in WHATS:
        work = python_work(replace(TINY, batch=2), what, repeats=3)
        assert {"plan", "view_arrays", "total"} <= work.keys()
        assert all(spread["n"] == 3 and spread["median"] > 0 for spread in work.values())
