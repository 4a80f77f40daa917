"""python -m pipelines.prepare --as copies: the download's own videos, with times for the GPU."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from datasets import (
    NTU_SAMPLES,
    config_of,
    first_batch,
    nvgesture_line,
    prepare,
    tree,
    write_generic,
    write_jester,
    write_ntu,
    write_nvgesture,
)
from pipelines import check
from pipelines.video_index import probe
from videos import write_kind

SAMPLE = NTU_SAMPLES[1]
COPY = f"Images/{SAMPLE}_rgb.mp4"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """One sample of NTU, its video with B-frames in .avi as the real ones are."""
    source = write_ntu(tmp_path / "in", [SAMPLE], depth=12)
    write_kind(tmp_path, "h264_avi_bframes", 12).replace(source / f"nturgb+d_rgb/{SAMPLE}_rgb.avi")
    return source


def test_copies_give_the_batches_of_the_download_and_can_be_decoded_on_a_gpu(source, tmp_path):
    out = tmp_path / "out"
    assert prepare("ntu60", source, out, "--as", "copies") == 0
    which = "dataset_splits/@CS/valid.txt"
    assert (out / which).read_text() == f"{SAMPLE}_rgb 12 59\n"
    before, after = source / f"nturgb+d_rgb/{SAMPLE}_rgb.avi", out / COPY
    assert (probe(str(before)).dali_gpu, probe(str(after)).dali_gpu) == (False, True)
    options = {"source": "videos", "modality": "rgbd", "depth_encoding": "metric", "num_frames": 12}
    copied = first_batch(config_of(out, "ntu", which, **options))
    downloaded = first_batch(config_of(source, "ntu", str(out / which), **options))
    for ours, theirs in zip(copied.clip, downloaded.clip, strict=True):
        assert torch.equal(ours, theirs)
    assert copied.clip[0].std() > 0.1  # of pictures, not of black frames


def test_a_second_run_copies_nothing_and_copies_are_checked(source, tmp_path, capsys):
    out = tmp_path / "out"
    prepare("ntu60", source, out, "--as", "copies")
    files = tree(out)
    capsys.readouterr()
    prepare("ntu60", source, out, "--as", "copies")
    assert "0 clips made now" in capsys.readouterr().out
    assert tree(out) == files
    assert check.main([str(out)]) == 0
    data = (out / COPY).read_bytes()
    (out / COPY).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert check.main([str(out)]) == 1
    assert f"  {COPY}: " in capsys.readouterr().out


def test_frames_become_copies_and_copies_videos_in_the_same_place(source, tmp_path, capsys):
    out = tmp_path / "out"
    for form in ("copies", "videos"):
        prepare("ntu60", source, out, "--as", form, "--modality", "rgb")
        assert "1 clips made now" in capsys.readouterr().out
        size = probe(str(out / COPY)).width, probe(str(out / COPY)).height
        assert size == {"copies": (160, 144), "videos": (320, 240)}[form]


def test_a_damaged_video_and_one_that_mp4_does_not_take_are_rejected(tmp_path):
    source = write_generic(tmp_path / "in", ["wave/a.avi", "wave/b.webm", "wave/c.avi"])
    cut = source / "wave/a.avi"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 6 // 10])
    assert prepare("generic", source, tmp_path / "out", "--as", "copies") == 0
    rejected = json.loads((tmp_path / "out/prepare.json").read_text())["rejected"]
    assert list(rejected) == ["wave/a", "wave/b"]
    assert rejected["wave/a"].startswith(f"{cut}: cut short at byte ")
    assert rejected["wave/b"] == (
        f"{source}/wave/b.webm: vp8 is not copied into .mp4; encode it anew"
    )
    assert [path.name for path in (tmp_path / "out/rgb/wave").iterdir()] == ["c.mp4"]


def test_windows_and_folders_of_frames_are_refused_before_any_work(tmp_path, capsys):
    lines = {s: [nvgesture_line("class_01/subject3_r0", 1, 38, 40)] for s in ("train", "test")}
    gestures = write_nvgesture(tmp_path / "nvgesture", lines, frames=1)
    jester, out = write_jester(tmp_path / "jester"), tmp_path / "out"
    video = gestures / "Video_data/class_01/subject3_r0/sk_color.avi"
    for dataset, root, expected in (
        ("nvgesture", gestures, f"{video}: only its frames 40 to 119 are the clip"),
        ("jester", jester, f"{jester}/20bn-jester-v1/34870: a folder of frames"),
    ):
        assert prepare(dataset, root, out, "--as", "copies") == 1
        assert capsys.readouterr().err == (
            f"error: {expected}, and --as copies takes whole videos; choose --as frames, videos "
            "or packs\n"
        )
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    "options",
    [("--roi",), ("--size", "64x48"), ("--quality", "50"), ("--gop", "9"), ("--crf", "1"),
     ("--keep-damaged",)],
)  # fmt: skip
def test_an_option_that_would_change_pictures_is_refused(source, tmp_path, capsys, options):
    assert prepare("ntu60", source, tmp_path / "out", "--as", "copies", *options) == 1
    assert capsys.readouterr().err == (
        f"error: {options[0]}: --as copies takes the videos as they are; leave it out, or choose "
        "--as frames, videos or packs\n"
    )


def test_what_was_prepared_before_there_were_copies_is_not_made_again(tmp_path):
    source, out = write_generic(tmp_path / "in", ["wave/a.mp4"]), tmp_path / "out"
    prepare("generic", source, out)
    file = (source / "wave/a.mp4").stat()
    form = {
        "videos": False, "quality": 95, "gop": 8, "crf": 18, "size": None,
        "depth_range_mm": [500, 4500], "keep_damaged": False,
    }  # fmt: skip
    facts = json.dumps([[[file.st_size, file.st_mtime_ns]], None, form])
    _, entry = json.loads((out / "manifest.jsonl").read_text())
    assert entry["made"] == hashlib.sha256(facts.encode()).hexdigest()[:16]
