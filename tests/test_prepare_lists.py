"""pipelines/datasets: who is in which list, by the official protocols and the published names."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets import (
    nvgesture_line,
    write_generic,
    write_isogd,
    write_jester,
    write_ntu,
    write_nvgesture,
    write_thu_read,
)
from pipelines.datasets import DATASETS, Download, Wishes
from pipelines.datasets.ntu import TRAIN_SUBJECTS_60, TRAIN_SUBJECTS_120, lists_of
from pipelines.datasets.thu_read import ACTIONS

CS, CV, CSET = "dataset_splits/@CS", "dataset_splits/@CV", "dataset_splits/@CSet"


def members(download: Download) -> dict[str, list[tuple[str, int]]]:
    return {path: [(line.name, line.label) for line in ls] for path, ls in download.lists.items()}


def empty_ntu(root: Path, samples: list[str]) -> str:
    """Names are all that lists need."""
    for sample in samples:
        (root / "nturgb+d_rgb").mkdir(exist_ok=True)
        (root / "nturgb+d_rgb" / f"{sample}_rgb.avi").touch()
        (root / "nturgb+d_depth_masked" / sample).mkdir(parents=True)
    return str(root)


def test_the_training_subjects_are_those_of_the_two_papers():
    assert sorted(TRAIN_SUBJECTS_60) == [
        1, 2, 4, 5, 8, 9, 13, 14, 15, 16, 17, 18, 19, 25, 27, 28, 31, 34, 35, 38,
    ]  # fmt: skip
    assert len(TRAIN_SUBJECTS_120) == 53
    assert sorted(TRAIN_SUBJECTS_120 - TRAIN_SUBJECTS_60) == [
        45, 46, 47, 49, 50, 52, 53, 54, 55, 56, 57, 58, 59, 70, 74, 78, 80, 81, 82, 83, 84, 85, 86,
        89, 91, 92, 93, 94, 95, 97, 98, 100, 103,
    ]  # fmt: skip


def test_ntu60_is_split_by_subject_and_by_camera(tmp_path):
    source = empty_ntu(tmp_path, [
        "S001C001P001R001A001", "S001C002P003R002A060", "S017C003P038R001A013",
        "S001C001P006R001A002",
    ])  # fmt: skip
    assert members(DATASETS["ntu60"](source, Wishes())) == {
        f"{CS}/train.txt": [("S001C001P001R001A001_rgb", 0), ("S017C003P038R001A013_rgb", 12)],
        f"{CS}/valid.txt": [("S001C001P006R001A002_rgb", 1), ("S001C002P003R002A060_rgb", 59)],
        f"{CV}/train.txt": [("S001C002P003R002A060_rgb", 59), ("S017C003P038R001A013_rgb", 12)],
        f"{CV}/valid.txt": [("S001C001P001R001A001_rgb", 0), ("S001C001P006R001A002_rgb", 1)],
    }


def test_ntu120_is_split_by_subject_and_by_setup(tmp_path):
    source = empty_ntu(tmp_path, ["S018C001P008R001A061", "S032C003P104R002A120"])
    assert members(DATASETS["ntu120"](source, Wishes())) == {
        f"{CS}/train.txt": [("S018C001P008R001A061_rgb", 60)],
        f"{CS}/valid.txt": [("S032C003P104R002A120_rgb", 119)],
        f"{CSET}/train.txt": [("S018C001P008R001A061_rgb", 60), ("S032C003P104R002A120_rgb", 119)],
    }


def test_ntu_classes_have_the_names_of_the_authors_page(tmp_path):
    source = empty_ntu(tmp_path, ["S001C001P001R001A001"])
    classes = DATASETS["ntu120"](source, Wishes()).classes
    assert len(set(classes)) == 120
    assert {n: classes[n - 1] for n in (1, *range(10, 121, 10))} == {
        1: "drink water", 10: "clapping", 20: "put on a hat/cap", 30: "typing on a keyboard",
        40: "cross hands in front (say stop)", 50: "punching/slapping other person",
        60: "walking apart from each other", 70: "thumb down", 80: "squat down",
        90: "take something out of a bag", 100: "butt kicks (kick backward)",
        110: "shoot at other person with a gun",
        120: "finger-guessing game (playing rock-paper-scissors)",
    }  # fmt: skip
    assert DATASETS["ntu60"](source, Wishes()).classes == classes[:60]


def test_the_first_60_classes_are_taken_out_of_a_download_of_all_120(tmp_path):
    source = empty_ntu(tmp_path, ["S001C001P001R001A001", "S018C001P008R001A061"])
    download = DATASETS["ntu60"](source, Wishes())
    assert [clip.name for clip in download.clips] == ["S001C001P001R001A001_rgb"]


@given(*[st.integers(1, top) for top in (32, 3, 106, 2, 120)])
def test_every_ntu_sample_is_in_one_list_of_each_protocol(setup, camera, subject, take, action):
    name = f"S{setup:03d}C{camera:03d}P{subject:03d}R{take:03d}A{action:03d}"
    by_subject, by_view = lists_of(name, extended=False)
    assert by_subject == f"{CS}/{'train' if subject in TRAIN_SUBJECTS_60 else 'valid'}.txt"
    assert by_view == f"{CV}/{'valid' if camera == 1 else 'train'}.txt"
    by_subject, by_setup = lists_of(name, extended=True)
    assert by_subject == f"{CS}/{'train' if subject in TRAIN_SUBJECTS_120 else 'valid'}.txt"
    assert by_setup == f"{CSET}/{'valid' if setup % 2 else 'train'}.txt"


def test_samples_named_in_the_exclude_file_are_left_out(tmp_path):
    source = empty_ntu(tmp_path, ["S001C001P001R001A001", "S001C002P005R002A008"])
    listed = tmp_path / "missing.txt"
    listed.write_text("samples with missing skeletons:\n\nS001C002P005R002A008\n")
    download = DATASETS["ntu60"](source, Wishes(exclude=str(listed)))
    assert [clip.name for clip in download.clips] == ["S001C001P001R001A001_rgb"]
    listed.write_text("nothing\n")
    with pytest.raises(ValueError, match=r"missing\.txt: no sample such as S001C001P001R001A001"):
        DATASETS["ntu60"](source, Wishes(exclude=str(listed)))


def test_an_ntu_sample_without_depth_is_rejected_where_depth_is_needed(tmp_path):
    source = write_ntu(tmp_path, ["S001C001P001R001A001"])
    (source / "nturgb+d_rgb/S001C001P001R001A002_rgb.avi").touch()
    download = DATASETS["ntu60"](str(source), Wishes())
    assert download.rejected == {
        "S001C001P001R001A002_rgb": "no nturgb+d_depth_masked/S001C001P001R001A002"
    }
    assert len(DATASETS["ntu60"](str(source), Wishes("rgb", roi=False)).clips) == 2


def test_nvgesture_has_the_windows_and_labels_of_its_lists(tmp_path):
    lines = {
        "train": [nvgesture_line("class_01/subject3_r0", 1, 138, 140)],
        "test": [nvgesture_line("class_13/subject8_r2", 9, 60, 60)],
    }
    source = write_nvgesture(tmp_path, lines, frames=1)
    download = DATASETS["nvgesture"](str(source), Wishes())
    assert members(download) == {
        "dataset_splits/train.txt": [("train/class_01/subject3_r0", 0)],
        "dataset_splits/valid.txt": [("test/class_13/subject8_r2", 8)],
    }
    windows = {s.modality: s.source.window for s in download.clips[0].streams}
    assert windows == {"rgb": (140, 220), "depth": (138, 218)}


def test_isogd_lists_start_at_label_0_and_wait_for_labels_where_there_are_none(tmp_path):
    source = write_isogd(tmp_path)
    download = DATASETS["isogd"](str(source), Wishes())
    train = [("train/001/M_00001", 35), ("train/001/M_00002", 0), ("train/002/M_00201", 248)]
    assert members(download) == {"dataset_splits/train.txt": train}
    assert len(download.clips) == 5
    assert [note.partition(": ")[2] for note in download.notes] == [
        "without labels, so no list of it is written; give the organisers' labelled list: "
        f"--labels {split}=FILE" for split in ("valid", "test")
    ]  # fmt: skip
    labelled = tmp_path / "valid_labelled.txt"
    labelled.write_text("valid/001/M_00001.avi valid/001/K_00001.avi 7\n")
    download = DATASETS["isogd"](str(source), Wishes(labels={"valid": str(labelled)}))
    assert members(download)["dataset_splits/valid.txt"] == [("valid/001/M_00001", 6)]


def test_an_isogd_pair_that_is_none_is_an_error_with_its_line(tmp_path):
    source = write_isogd(tmp_path)
    path = source / "IsoGD_phase_1/train_list.txt"
    path.write_text("train/001/M_00001.avi train/001/K_00002.avi 36\n")
    with pytest.raises(ValueError, match=r"train_list\.txt:1: 'train/001/M_00001\.avi train"):
        DATASETS["isogd"](str(source), Wishes())


def test_thu_read_has_four_splits_by_pairs_of_subjects_for_each_modality(tmp_path):
    source = write_thu_read(tmp_path, ["wear_watch_cgy_2", "fold_tys_1"])
    lists = members(DATASETS["thu_read"](str(source), Wishes()))
    watch, fold = ("RGB/RGB_wear_watch_cgy_2", 8), ("RGB/RGB_fold_tys_1", 31)
    assert lists["dataset_splits/@1/train.txt"] == [fold]
    assert lists["dataset_splits/@1/valid.txt"] == [watch]
    assert lists["dataset_splits/@2/train.txt"] == [fold, watch]
    assert "dataset_splits/@2/valid.txt" not in lists
    assert lists["dataset_splits/@4/valid.txt"] == [fold]
    assert lists["dataset_splits/@1/depth_valid_lst.txt"] == [("Depth/D_wear_watch_cgy_2", 8)]
    assert lists["dataset_splits/@4/depth_train_lst.txt"] == [("Depth/D_wear_watch_cgy_2", 8)]


def test_thu_read_has_40_actions_and_rejects_what_is_none_of_them(tmp_path):
    assert len(set(ACTIONS)) == 40
    source = write_thu_read(tmp_path, ["zip_up_gs_1", "fly_gs_1", "stir_me_1"])
    (source / "RGB/RGB_stir_gs_1.avi").touch()
    assert DATASETS["thu_read"](str(source), Wishes()).rejected == {
        "RGB/RGB_fly_gs_1": "unknown action 'fly'",
        "RGB/RGB_stir_me_1": "unknown subject 'me'",
        "RGB/RGB_stir_gs_1": "no D_stir_gs_1",
    }


@pytest.mark.parametrize("videos", [False, True])
def test_jester_labels_count_the_lines_of_the_label_file(tmp_path, videos):
    source = write_jester(tmp_path, videos)
    download = DATASETS["jester"](str(source), Wishes("rgb"))
    assert members(download) == {
        "dataset_splits/train.txt": [("34870", 1), ("56557", 0)],
        "dataset_splits/valid.txt": [("9223", 2)],
    }
    assert download.classes == ("Swiping Left", "Thumb Up", "No gesture")


def test_a_jester_clip_that_was_not_downloaded_is_rejected(tmp_path):
    source = write_jester(tmp_path)
    with (source / "jester-v1-train.csv").open("a") as file:
        file.write("7;Thumb Up\n")
    rejected = DATASETS["jester"](str(source), Wishes("rgb")).rejected
    assert rejected == {"7": f"no {source}/20bn-jester-v1/7, neither folder nor video"}


def test_generic_takes_every_so_manieth_clip_of_a_class_for_evaluation(tmp_path):
    source = write_generic(tmp_path, [f"{c}/{n}.mp4" for c in ("wave", "nod") for n in "abc"])
    assert members(DATASETS["generic"](str(source), Wishes("rgb", eval_every=2))) == {
        "dataset_splits/train.txt": [("nod/b", 0), ("wave/b", 1)],
        "dataset_splits/eval.txt": [("nod/a", 0), ("nod/c", 0), ("wave/a", 1), ("wave/c", 1)],
    }


def test_generic_keeps_splits_that_are_folders_and_pairs_rgb_with_depth(tmp_path):
    names = ["train/wave/a.mp4", "train/nod/b.mp4", "eval/wave/c.mp4"]
    write_generic(tmp_path / "rgb", names)
    write_generic(tmp_path / "depth", [name.replace(".mp4", ".avi") for name in names[:2]])
    download = DATASETS["generic"](str(tmp_path), Wishes())
    assert members(download) == {
        "dataset_splits/train.txt": [("train/nod/b", 0), ("train/wave/a", 1)],
        "dataset_splits/eval.txt": [],
    }
    assert list(download.rejected) == ["eval/wave/c"]


def test_two_generic_videos_of_one_name_are_an_error(tmp_path):
    source = write_generic(tmp_path, ["wave/a.mp4", "wave/a.avi"])
    with pytest.raises(ValueError, match=r"a\.avi, .*a\.mp4: two clips are called 'wave/a'"):
        DATASETS["generic"](str(source), Wishes("rgb"))
