"""python -m pipelines.prepare: from a download to what training reads."""

import json
import os
from dataclasses import replace

import av
import cv2
import numpy as np
import pytest

from datasets import (
    NTU_SAMPLES,
    config_of,
    first_batch,
    masked_depth,
    number_in,
    numbered,
    numbers_in,
    nvgesture_line,
    prepare,
    tree,
    write_generic,
    write_isogd,
    write_jester,
    write_ntu,
    write_nvgesture,
    write_thu_read,
    write_video,
)
from engine.clips import class_names
from pipelines.config import DataConfig
from pipelines.ffmpeg import decode
from pipelines.index import scan


def names(config: DataConfig) -> list[tuple[str, int, int]]:
    return [(clip.name, clip.num_frames, clip.label) for clip in scan(config, "train").clips]


def test_ntu_becomes_what_the_loader_reads(tmp_path):
    source, out = write_ntu(tmp_path / "in", NTU_SAMPLES), tmp_path / "out"
    assert prepare("ntu60", source, out) == 0
    config = config_of(
        out, "ntu", "dataset_splits/@CV/train.txt", modality="rgbd", depth_encoding="metric"
    )
    assert names(config) == [(f"{NTU_SAMPLES[1]}_rgb", 5, 59), (f"{NTU_SAMPLES[2]}_rgb", 5, 6)]
    batch = first_batch(config)
    assert batch.label.tolist() == [59, 6]
    assert [clip.shape for clip in batch.clip] == [(2, 3, 4, 32, 32)] * 2
    image = cv2.imread(str(out / f"Images/{NTU_SAMPLES[0]}_rgb/000001.jpg"))
    assert image.shape == (240, 320, 3)
    assert class_names(replace(config, num_classes=60))[6] == "throw"


def test_depth_frames_of_ntu_stay_the_files_they_are(tmp_path):
    source, out = write_ntu(tmp_path / "in", NTU_SAMPLES[:1]), tmp_path / "out"
    prepare("ntu60", source, out)
    before, after = (root / "nturgb+d_depth_masked" / NTU_SAMPLES[0] for root in (source, out))
    assert tree(after) == tree(before)
    assert os.path.samefile(after / "MDepth-00000001.png", before / "MDepth-00000001.png")


def test_links_to_depth_frames_are_followed(tmp_path):
    """Downloads spread over disks: a copied relative link would lead nowhere."""
    source, out = write_ntu(tmp_path / "in", NTU_SAMPLES[:1]), tmp_path / "out"
    folder = source / "nturgb+d_depth_masked" / NTU_SAMPLES[0]
    files = tree(folder)
    folder.rename(source / "elsewhere")
    folder.mkdir()
    for name in files:
        (folder / name).symlink_to(f"../../elsewhere/{name}")
    assert prepare("ntu60", source, out) == 0
    prepared = out / "nturgb+d_depth_masked" / NTU_SAMPLES[0]
    assert tree(prepared) == files
    assert not any(path.is_symlink() for path in prepared.iterdir())


def test_without_a_region_of_interest_ntu_keeps_its_whole_frames(tmp_path):
    source, out = write_ntu(tmp_path / "in", NTU_SAMPLES[:1]), tmp_path / "out"
    assert prepare("ntu60", source, out, "--no-roi", "--modality", "rgb") == 0
    assert numbers_in(out / f"Images/{NTU_SAMPLES[0]}_rgb") == [1, 2, 3, 4, 5]
    assert not (out / "nturgb+d_depth_masked").exists()


def test_nvgesture_is_cut_to_the_annotated_window_to_the_frame(tmp_path):
    lines = {
        "train": [nvgesture_line("class_01/subject3_r0", 1, 38, 40)],
        "test": [nvgesture_line("class_25/subject8_r2", 25, 0, 80)],
    }
    source, out = write_nvgesture(tmp_path / "in", lines), tmp_path / "out"
    assert prepare("nvgesture", source, out) == 0
    train, test = "train/class_01/subject3_r0", "test/class_25/subject8_r2"
    assert numbers_in(out / "rgb" / train) == list(range(40, 120))
    assert numbers_in(out / "depth" / train) == list(range(38, 118))
    assert numbers_in(out / "rgb" / test) == list(range(80, 160))
    assert numbers_in(out / "depth" / test) == list(range(80))
    config = config_of(out, "nvgesture", "dataset_splits/train.txt", modality="rgbd")
    assert names(config) == [(train, 80, 0)]
    assert names(replace(config, train_list="dataset_splits/valid.txt")) == [(test, 80, 24)]
    assert first_batch(config).label.tolist() == [0]


def test_a_window_that_the_video_does_not_fill_is_rejected(tmp_path):
    lines = {split: [nvgesture_line("class_01/subject3_r0", 1, 38, 40)] for split in ("test",)}
    lines["train"] = [nvgesture_line("class_01/subject4_r0", 1, 90, 40)]
    source, out = write_nvgesture(tmp_path / "in", lines), tmp_path / "out"
    assert prepare("nvgesture", source, out) == 0
    video = source / "Video_data/class_01/subject4_r0/sk_depth.avi"
    assert json.loads((out / "prepare.json").read_text())["rejected"] == {
        "train/class_01/subject4_r0": f"{video}: only 70 of the 80 frames 90 to 169"
    }
    assert (out / "dataset_splits/train.txt").read_text() == ""


def test_isogd_becomes_what_the_loader_reads(tmp_path):
    source, out = write_isogd(tmp_path / "in"), tmp_path / "out"
    labelled = tmp_path / "test.txt"
    labelled.write_text("test/001/M_00001.avi test/001/K_00001.avi 249")
    assert prepare("isogd", source, out, "--labels", f"test={labelled}") == 0
    config = config_of(out, "isogd", "dataset_splits/train.txt", modality="rgbd")
    assert names(config)[2] == ("train/002/M_00201", 6, 248)
    assert names(replace(config, train_list="dataset_splits/test.txt"))[0][2] == 248
    assert numbers_in(out / "depth/train/002/K_00201") == list(range(6))
    assert first_batch(config).label.tolist() == [35, 0, 248]


def test_thu_read_becomes_what_the_loader_reads(tmp_path):
    source, out = write_thu_read(tmp_path / "in", ["fold_cgy_1", "stir_gs_2"]), tmp_path / "out"
    assert prepare("thu_read", source, out, "--depth-range", "500", "4500") == 0
    config = config_of(out, "thu_read", "dataset_splits/@1/valid.txt")
    assert names(config) == [("RGB/RGB_fold_cgy_1", 6, 31)]
    depth = replace(config, train_list="dataset_splits/@1/depth_valid_lst.txt", modality="depth")
    assert names(depth) == [("Depth/D_fold_cgy_1", 5, 31)]
    both = replace(config, modality="rgbd", frame_slack=1)
    assert first_batch(both).label.tolist() == [31]
    # 500, 1500 ... 4500 mm between white and black
    folder = sorted((out / "Depth/D_fold_cgy_1").iterdir())
    assert [round(cv2.imread(str(path)).mean()) for path in folder] == [255, 191, 128, 64, 0]


@pytest.mark.parametrize("videos", [False, True])
def test_jester_becomes_what_the_loader_reads(tmp_path, videos):
    source, out = write_jester(tmp_path / "in", videos), tmp_path / "out"
    assert prepare("jester", source, out) == 0
    config = config_of(out, "jester", "dataset_splits/train.txt")
    assert names(config) == [("34870", 6, 1), ("56557", 6, 0)]
    assert numbers_in(out / "34870") == [1, 2, 3, 4, 5, 6]
    assert first_batch(config).label.tolist() == [1, 0]
    assert (out / "classes.txt").read_text() == "Swiping Left\nThumb Up\nNo gesture\n"
    if not videos:
        assert tree(out / "9223") == tree(source / "20bn-jester-v1/9223")


def test_generic_videos_become_what_the_loader_reads(tmp_path):
    videos = ["wave/a b.mp4", "wave/{c}.webm", "nod/d.avi"]
    source, out = write_generic(tmp_path / "in", videos), tmp_path / "out"
    assert prepare("generic", source, out, "--eval-every", "2", "--size", "32x16") == 0
    config = config_of(out, "generic", "dataset_splits/eval.txt")
    assert names(config) == [("nod/d", 6, 0), ("wave/a b", 6, 1)]
    assert numbers_in(out / "rgb/wave/{c}") == list(range(6))
    assert cv2.imread(str(out / "rgb/nod/d/000000.jpg")).shape == (16, 32, 3)
    assert first_batch(config).label.tolist() == [0, 1]


def test_videos_have_the_frames_in_order_and_a_key_frame_every_gop(tmp_path):
    write_video(tmp_path / "in/wave/a.avi", numbered(range(20), 65, 49))
    out = tmp_path / "out"
    assert prepare("generic", tmp_path / "in", out, "--as", "videos", "--gop", "6") == 0
    path = out / "rgb/wave/a.mp4"
    images = list(decode(str(path)))
    assert [number_in(image) for image in images] == list(range(20))
    assert images[0].shape == (48, 64, 3)  # 4:2:0 has no odd sides
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    assert [i for i, packet in enumerate(packets) if packet.is_keyframe] == [0, 6, 12, 18]
    assert [packet.pts for packet in packets] == [packet.dts for packet in packets]
    assert (out / "dataset_splits/eval.txt").read_text() == "wave/a 20 0\n"


def test_16_bit_depth_stays_frames_beside_videos(tmp_path):
    source, out = write_ntu(tmp_path / "in", NTU_SAMPLES[:1]), tmp_path / "out"
    assert prepare("ntu60", source, out, "--as", "videos") == 0
    assert [p.name for p in (out / "Images").iterdir()] == [f"{NTU_SAMPLES[0]}_rgb.mp4"]
    depth = out / "nturgb+d_depth_masked" / NTU_SAMPLES[0]
    assert np.array_equal(cv2.imread(str(depth / "MDepth-00000005.png"), -1), masked_depth(64, 53))


def test_the_summary_counts_what_is_there(tmp_path):
    source, out = write_ntu(tmp_path / "in", NTU_SAMPLES, rgb=5, depth=4), tmp_path / "out"
    prepare("ntu60", source, out)
    summary = json.loads((out / "prepare.json").read_text())
    assert (summary["clips"], summary["frames"]) == (3, {"rgb": 15, "depth": 12})
    assert summary["boxes_from_neighbour"] == 3  # each fifth RGB frame has no depth frame
    images = [p.stat().st_size for p in out.rglob("*") if p.suffix in (".jpg", ".png")]
    assert summary["bytes"] == sum(images)
    assert summary["lists"]["dataset_splits/@CS/train.txt"]["clips"] == 2


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        ("ntu60", "no nturgb+d_rgb/S001C001P001R001A001_rgb.avi; give as --source the folder that"),
        ("nvgesture", "no nvgesture_train_correct_cvpr2016_v2.lst, nor in the folders in it; is"),
        ("isogd", "no train_list.txt, nor in the folders in it; is it the right --source?"),
        ("thu_read", "no clip such as RGB_wear_watch_cgy_2 (a video or a folder of frames) in it"),
        ("jester", "no jester-v1-labels.csv, nor in the folders in it; is it the right --source?"),
        ("generic", "no video such as CLASS/NAME.mp4 or train/CLASS/NAME.mp4; give as --source"),
    ],
)
def test_a_wrong_source_is_an_error_in_one_line_with_what_was_expected(
    tmp_path, capsys, dataset, expected
):
    (tmp_path / "in").mkdir()
    assert prepare(dataset, tmp_path / "in", tmp_path / "out") == 1
    message = capsys.readouterr().err
    assert message.startswith(f"error: {tmp_path}/in: {expected}") and message.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--eval-every", "3"), "--eval-every is for generic, not for ntu60"),
        (("--labels", "x=y"), "--labels is for isogd, not for ntu60"),
        (("--depth-range", "1", "2"), "--depth-range is for thu_read, not for ntu60"),
    ],
)
def test_an_option_of_another_data_set_is_an_error(tmp_path, capsys, options, expected):
    assert prepare("ntu60", tmp_path, tmp_path / "out", *options) == 1
    assert capsys.readouterr().err == f"error: {expected}\n"


def test_the_download_and_other_peoples_files_are_never_written_over(tmp_path, capsys):
    source = write_ntu(tmp_path / "in", NTU_SAMPLES[:1])
    files = tree(source)
    for out in (source, source / "prepared", tmp_path):
        assert prepare("ntu60", source, out) == 1
        assert "overlap; take a folder beside it" in capsys.readouterr().err
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").touch()
    assert prepare("ntu60", source, other) == 1
    assert "holds files but no manifest.jsonl" in capsys.readouterr().err
    assert tree(source) == files and list(other.iterdir()) == [other / "thesis.tex"]
