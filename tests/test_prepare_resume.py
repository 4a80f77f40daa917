"""python -m pipelines.prepare where things go wrong: kills, second runs, damaged downloads."""

import json
from pathlib import Path

import numpy as np
import pytest

from datasets import NTU_SAMPLES, prepare, tree, write_ntu, write_video
from forked import run_code
from pipelines.manifest import Manifest
from pipelines.prepare import main


def write_cut_short(path: Path) -> None:
    """A video of 30 frames whose file ends after some 18."""
    noise = np.random.default_rng(0).integers(0, 256, (30, 48, 64, 3), dtype=np.uint8)
    write_video(path, noise)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])


def test_a_second_run_makes_nothing(tmp_path, capsys):
    source, out = write_ntu(tmp_path / "in", NTU_SAMPLES), tmp_path / "out"
    prepare("ntu60", source, out)
    assert "3 clips made now" in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.jpg")}
    files = tree(out)
    prepare("ntu60", source, out)
    assert "0 clips made now" in capsys.readouterr().out
    assert tree(out) == files
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.jpg")} == before


def test_other_options_and_other_sources_make_clips_anew(tmp_path, capsys):
    source, out = write_ntu(tmp_path / "in", NTU_SAMPLES), tmp_path / "out"
    prepare("ntu60", source, out)
    capsys.readouterr()
    prepare("ntu60", source, out, "--quality", "50")
    assert "3 clips made now" in capsys.readouterr().out
    write_ntu(source, NTU_SAMPLES[:1], rgb=4, depth=4)
    prepare("ntu60", source, out, "--quality", "50")
    assert "1 clips made now" in capsys.readouterr().out
    assert f"{NTU_SAMPLES[0]}_rgb 4 0\n" in (out / "dataset_splits/@CS/train.txt").read_text()


KILL = """
import os, signal, sys, {module}
real, calls = {module}.{function}, [0]
def counted(*args, **options):
    calls[0] += 1
    if calls[0] == {call}:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **options)
{module}.{function} = counted
from pipelines.prepare import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """What is prepared, and the files that a run makes of it."""
    folder = tmp_path_factory.mktemp("prepare")
    source = write_ntu(folder / "in", NTU_SAMPLES[:2], rgb=6)
    prepare("ntu60", source, folder / "out")
    return source, tree(folder / "out")


@pytest.mark.parametrize(
    ("module", "function", "call"),
    [("cv2", "imencode", 1), ("cv2", "imencode", 8), ("os", "link", 3)]
    + [("os", "replace", call) for call in range(1, 8)],
)  # fmt: skip
def test_a_killed_run_goes_on_to_the_same_files(tmp_path, whole, module, function, call):
    source, files = whole
    out = tmp_path / "out"
    arguments = ["ntu60", "--source", str(source), "--out", str(out), "--jobs", "1"]
    code = KILL.format(module=module, function=function, call=call)
    assert run_code(code, *arguments).returncode == -9
    assert not (out / "prepare.json").exists()
    assert main(arguments) == 0
    assert tree(out) == files


def test_damaged_clips_are_reported_and_in_no_list(tmp_path, capsys):
    source, out = write_ntu(tmp_path / "in", NTU_SAMPLES), tmp_path / "out"
    video = source / f"nturgb+d_rgb/{NTU_SAMPLES[0]}_rgb.avi"
    write_cut_short(video)
    depth = source / f"nturgb+d_depth_masked/{NTU_SAMPLES[1]}/MDepth-00000003.png"
    depth.write_bytes(depth.read_bytes()[:-20])
    assert prepare("ntu60", source, out) == 0
    rejected = json.loads((out / "prepare.json").read_text())["rejected"]
    assert sorted(rejected) == [f"{sample}_rgb" for sample in NTU_SAMPLES[:2]]
    assert rejected[f"{NTU_SAMPLES[0]}_rgb"].startswith(f"{video}: ")
    assert rejected[f"{NTU_SAMPLES[1]}_rgb"].startswith(f"{depth}: damaged")
    assert "rejected: 2 clips" in capsys.readouterr().out
    assert (out / "dataset_splits/@CS/train.txt").read_text() == f"{NTU_SAMPLES[2]}_rgb 5 6\n"
    assert (out / "dataset_splits/@CS/valid.txt").read_text() == ""
    assert [path.name for path in (out / "Images").iterdir()] == [f"{NTU_SAMPLES[2]}_rgb"]


def test_a_restored_clip_joins_the_lists(tmp_path):
    source, out = write_ntu(tmp_path / "in", NTU_SAMPLES[:2]), tmp_path / "out"
    path = source / f"nturgb+d_rgb/{NTU_SAMPLES[0]}_rgb.avi"
    sound = path.read_bytes()
    path.write_bytes(b"")
    prepare("ntu60", source, out)
    path.write_bytes(sound)
    prepare("ntu60", source, out)
    assert (out / "dataset_splits/@CS/train.txt").read_text() == f"{NTU_SAMPLES[0]}_rgb 5 0\n"
    assert json.loads((out / "prepare.json").read_text())["rejected"] == {}


def test_keep_damaged_takes_what_can_be_decoded(tmp_path):
    source = write_ntu(tmp_path / "in", NTU_SAMPLES[:1])
    write_cut_short(source / f"nturgb+d_rgb/{NTU_SAMPLES[0]}_rgb.avi")
    assert prepare("ntu60", source, tmp_path / "out", "--keep-damaged") == 0
    frames = sorted((tmp_path / f"out/Images/{NTU_SAMPLES[0]}_rgb").iterdir())
    assert 10 < len(frames) < 25


def test_a_missing_frame_in_the_middle_rejects_the_clip(tmp_path):
    source, out = write_ntu(tmp_path / "in", NTU_SAMPLES[:2]), tmp_path / "out"
    folder = source / "nturgb+d_depth_masked" / NTU_SAMPLES[0]
    (folder / "MDepth-00000003.png").unlink()
    prepare("ntu60", source, out)
    assert json.loads((out / "prepare.json").read_text())["rejected"] == {
        f"{NTU_SAMPLES[0]}_rgb": f"{folder}: frame 3 is missing after MDepth-00000002.png"
    }


def test_two_runs_at_once_in_one_folder_are_refused(tmp_path, capsys):
    source, out = write_ntu(tmp_path / "in", NTU_SAMPLES[:1]), tmp_path / "out"
    out.mkdir()
    held = Manifest(str(out))
    assert prepare("ntu60", source, out) == 1
    assert capsys.readouterr().err == f"error: {out}: another process prepares here; wait for it\n"
    held.close()
    assert prepare("ntu60", source, out) == 0
