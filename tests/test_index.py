"""Split lists, folders and their frame counts."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines import folders
from pipelines.config import LAYOUTS, DataConfig, FrameFiles
from pipelines.index import ClipIndex, scan
from pipelines.layouts import LAYOUT_FILES, clip_frames, modality_files


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    return DataConfig(str(tmp_path), "train.txt", "eval.txt", 3, cache_dir=str(tmp_path / "cache"))


def touch(root: Path, folder: str, numbers: range, name: str = "{:06d}.jpg") -> None:
    (root / folder).mkdir(parents=True, exist_ok=True)
    for number in numbers:
        (root / folder / name.format(number)).touch()


def write_list(root: Path, text: str) -> None:
    (root / "train.txt").write_bytes(text.encode())


def names(index: ClipIndex) -> list[tuple[str, int, int]]:
    return [(clip.name, clip.num_frames, clip.label) for clip in index.clips]


def problems(config: DataConfig) -> list[str]:
    with pytest.raises(ValueError) as error:
        scan(config, "train")
    return str(error.value).split("\n")


def test_the_table_has_every_layout_of_the_config() -> None:
    assert tuple(LAYOUT_FILES) == LAYOUTS


@pytest.mark.parametrize(
    ("layout", "modality", "name", "third_frame"),
    [
        ("generic", "rgb", "a/b", "rgb/a/b/000002.jpg"),
        ("generic", "depth", "a/b", "depth/a/b/000002.jpg"),
        ("ntu", "rgb", "S001_rgb", "Images/S001_rgb/000003.jpg"),
        ("ntu", "depth", "S001_rgb", "nturgb+d_depth_masked/S001/MDepth-00000003.png"),
        ("nvgesture", "depth", "c01/u1", "depth/c01/u1/000002.jpg"),
        ("isogd", "rgb", "train/001/M_00001", "rgb/train/001/M_00001/000002.jpg"),
        ("isogd", "depth", "train/001/M_00001", "depth/train/001/K_00001/000002.jpg"),
        ("isogd", "depth", "train/001/K_00001", "depth/train/001/K_00001/000002.jpg"),
        ("isogd", "rgb", "train/001/K_00001", "rgb/train/001/M_00001/000002.jpg"),
        ("thu_read", "rgb", "RGB/S1/RGB_2", "RGB/S1/RGB_2/000002.jpg"),
        ("thu_read", "depth", "RGB/S1/RGB_2", "Depth/S1/D_2/000002.jpg"),
        ("thu_read", "depth", "Depth/S1/D_2", "Depth/S1/D_2/000002.jpg"),
        ("thu_read", "rgb", "Depth/S1/D_2", "RGB/S1/RGB_2/000002.jpg"),
        ("jester", "rgb", "12", "12/00003.jpg"),
    ],
)
def test_layouts_lead_from_a_name_to_its_files(
    layout: str, modality: str, name: str, third_frame: str
) -> None:
    assert clip_frames("/r", LAYOUT_FILES[layout][modality], name).path(2) == f"/r/{third_frame}"


def test_braces_in_names_are_only_letters() -> None:
    files = FrameFiles("{name}/{frame:03d}.jpg")
    assert clip_frames("/{r}", files, "a{0}").path(1) == "/{r}/a{0}/001.jpg"


def test_a_config_describes_a_layout_of_its_own(config: DataConfig, tmp_path: Path) -> None:
    files = FrameFiles("video/{name}/img_{frame}.png", 5, ((r"^cam1_", ""), (r"-", "/")))
    touch(tmp_path, "video/wave/1", range(5, 8), "img_{}.png")
    write_list(tmp_path, "cam1_wave-1 3 0")
    index = scan(replace(config, rgb=files), "train")
    assert index.media["rgb"][0].path(0) == f"{tmp_path}/video/wave/1/img_5.png"


def test_blanks_crlf_empty_lines_and_slashes_of_a_list_are_read(
    config: DataConfig, tmp_path: Path
) -> None:
    for folder in ("a", "b c", "d"):
        touch(tmp_path, f"rgb/{folder}", range(5))
    write_list(tmp_path, "\ufeffa/ 3 0\r\n\r\n  b c 4\t1  \r\n \nd 5 2")
    index = scan(config, "train")
    assert names(index) == [("a", 3, 0), ("b c", 4, 1), ("d", 5, 2)]
    assert [clip.line for clip in index.clips] == [1, 3, 5]
    assert len(index) == 3 and index.left_out == 0
    assert index.media["rgb"][1].path(2) == f"{tmp_path}/rgb/b c/000002.jpg"


def test_more_frames_than_listed_are_allowed_and_not_used(
    config: DataConfig, tmp_path: Path
) -> None:
    touch(tmp_path, "rgb/a", range(9))
    write_list(tmp_path, "a 4 0")
    assert names(scan(config, "train")) == [("a", 4, 0)]


def test_all_problems_are_reported_at_once_with_file_line_and_remedy(
    config: DataConfig, tmp_path: Path
) -> None:
    touch(tmp_path, "rgb/short", range(3))
    touch(tmp_path, "rgb/hole", range(2))
    touch(tmp_path, "rgb/hole", range(3, 5))
    write_list(tmp_path, "short 3 3\nshort 5 0\ngone 2 1\nhole 5 1\nshort -3 1\nshort x 1\nlost")
    here = f"{tmp_path}/train.txt"
    assert problems(config) == [
        f"{here}:1: label 3 is outside 0..2; correct the label or data.num_classes; do the labels "
        "of this list start at 1? They must start at 0",
        f"{here}:2: 5 frames listed, 3 found: no {tmp_path}/rgb/short/000003.jpg; restore it, "
        "correct the list or raise data.frame_slack",
        f"{here}:3: {tmp_path}/rgb/gone: No such file or directory; correct 'gone', data.root or "
        "data.layout",
        f"{here}:4: 5 frames listed, 2 found: no {tmp_path}/rgb/hole/000002.jpg; restore it, "
        "correct the list or raise data.frame_slack",
        f"{here}:5: 'short -3 1' is not NAME num_frames label; correct the line",
        f"{here}:6: 'short x 1' is not NAME num_frames label; correct the line",
        f"{here}:7: 'lost' is not NAME num_frames label; correct the line",
    ]


def test_a_long_list_of_problems_ends_in_a_number(config: DataConfig, tmp_path: Path) -> None:
    write_list(tmp_path, "".join(f"gone{i} 5 0\n" for i in range(30)))
    lines = problems(config)
    assert len(lines) == 21
    assert lines[-1] == f"{tmp_path}/train.txt: and 10 more problems"


@pytest.mark.parametrize("text", ["", "\n \r\n"])
def test_an_empty_list_is_an_error(config: DataConfig, tmp_path: Path, text: str) -> None:
    write_list(tmp_path, text)
    assert problems(config) == [
        f"{tmp_path}/train.txt: is empty; it needs lines of NAME num_frames label"
    ]


def test_a_missing_list_names_its_key(config: DataConfig, tmp_path: Path) -> None:
    assert problems(config) == [
        f"{tmp_path}/train.txt: No such file or directory; set data.train_list to the split list"
    ]


def test_a_missing_root_names_its_key(config: DataConfig) -> None:
    assert problems(replace(config, root="/no/such")) == [
        "/no/such: no such folder; set data.root to where the data set is"
    ]


@pytest.mark.parametrize("modality", ["depth", "rgbd"])
def test_a_modality_the_layout_does_not_have_is_an_error(config: DataConfig, modality: str) -> None:
    assert problems(replace(config, layout="jester", modality=modality)) == [
        "data.modality: layout 'jester' has no depth frames; choose rgb, or say where they are in "
        "data.depth.pattern"
    ]


@pytest.mark.parametrize(
    "pattern", ["rgb/{frame}.jpg", "{name}/{fram}.jpg", "{name}/{frame}/a.jpg", "{name}/{frame:q}"]
)
def test_a_pattern_that_cannot_work_is_an_error(config: DataConfig, pattern: str) -> None:
    with pytest.raises(ValueError, match=r"data\.rgb\.pattern: .* needs \{name\} and"):
        modality_files(replace(config, rgb=FrameFiles(pattern)))


@pytest.mark.parametrize("rule", [("(", ""), ("a", r"\2")])
def test_a_rename_rule_that_cannot_work_is_an_error(
    config: DataConfig, rule: tuple[str, str]
) -> None:
    with pytest.raises(ValueError, match=r"data\.rgb\.rename"):
        modality_files(replace(config, rgb=FrameFiles("{name}/{frame}.jpg", 0, (rule,))))


def test_clips_with_too_few_frames_are_left_out_and_counted(
    config: DataConfig, tmp_path: Path
) -> None:
    touch(tmp_path, "rgb/a", range(17))
    touch(tmp_path, "rgb/b", range(16))
    write_list(tmp_path, "a 17 0\nb 16 1\nnot_even_there 5 1\nempty 0 0\n")
    index = scan(replace(config, min_frames=17), "train")
    assert names(index) == [("a", 17, 0)] and index.left_out == 3


def test_a_list_of_nothing_but_short_clips_is_an_error(config: DataConfig, tmp_path: Path) -> None:
    write_list(tmp_path, "a 5 0\nb 6 1")
    assert problems(replace(config, min_frames=17)) == [
        f"{tmp_path}/train.txt: none of its 2 clips has data.min_frames=17 frames; lower it or "
        "correct the list"
    ]


def test_frame_slack_takes_what_both_modalities_have(config: DataConfig, tmp_path: Path) -> None:
    touch(tmp_path, "rgb/a", range(10))
    touch(tmp_path, "depth/a", range(8))
    write_list(tmp_path, "a 10 0")
    for modality in ("rgb", "depth"):
        slack = replace(config, modality=modality, frame_slack=2)
        assert names(scan(slack, "train")) == [("a", 8, 0)]


def test_more_frames_missing_than_the_slack_is_an_error(config: DataConfig, tmp_path: Path) -> None:
    touch(tmp_path, "rgb/a", range(10))
    touch(tmp_path, "depth/a", range(7))
    write_list(tmp_path, "a 10 0")
    assert problems(replace(config, frame_slack=2)) == [
        f"{tmp_path}/train.txt:1: 10 frames listed, 7 found: no {tmp_path}/depth/a/000007.jpg; "
        "restore it, correct the list or raise data.frame_slack"
    ]


def test_the_other_modality_need_not_be_on_disk(config: DataConfig, tmp_path: Path) -> None:
    touch(tmp_path, "depth/a", range(9))
    write_list(tmp_path, "a 10 0")
    assert names(scan(replace(config, modality="depth", frame_slack=2), "train")) == [("a", 9, 0)]
    assert problems(replace(config, modality="depth"))[0].startswith(f"{tmp_path}/train.txt:1: 10")


@pytest.mark.parametrize(
    ("layout", "name", "rgb", "depth"),
    [
        ("ntu", "S001_rgb", "Images/S001_rgb/{:06d}.jpg",
         "nturgb+d_depth_masked/S001/MDepth-{:08d}.png"),
        ("isogd", "train/001/M_00001/", "rgb/train/001/M_00001/{:06d}.jpg",
         "depth/train/001/K_00001/{:06d}.jpg"),
        ("isogd", "train/001/K_00001", "rgb/train/001/M_00001/{:06d}.jpg",
         "depth/train/001/K_00001/{:06d}.jpg"),
        ("thu_read", "RGB/S1/RGB_2", "RGB/S1/RGB_2/{:06d}.jpg", "Depth/S1/D_2/{:06d}.jpg"),
        ("thu_read", "Depth/S1/D_2", "RGB/S1/RGB_2/{:06d}.jpg", "Depth/S1/D_2/{:06d}.jpg"),
        ("nvgesture", "c01/u1", "rgb/c01/u1/{:06d}.jpg", "depth/c01/u1/{:06d}.jpg"),
    ],
)  # fmt: skip
def test_both_modalities_of_one_entry_have_their_own_names(
    config: DataConfig, tmp_path: Path, layout: str, name: str, rgb: str, depth: str
) -> None:
    first = 1 if layout == "ntu" else 0
    for pattern, count in ((rgb, 10), (depth, 8)):
        touch(tmp_path, str(Path(pattern).parent), range(first, first + count), Path(pattern).name)
    write_list(tmp_path, f"{name} 10 0")
    index = scan(replace(config, layout=layout, modality="rgbd", frame_slack=3), "train")
    assert index.clips[0].num_frames == 8
    for modality, pattern in (("rgb", rgb), ("depth", depth)):
        path = index.media[modality][0].path(7)
        assert path == f"{tmp_path}/{pattern.format(first + 7)}" and os.path.exists(path)


def test_with_both_modalities_the_problems_of_both_are_reported_at_once(
    config: DataConfig, tmp_path: Path
) -> None:
    for folder, count in (("rgb/a", 5), ("rgb/b", 3), ("depth/b", 5), ("depth/c", 4)):
        touch(tmp_path, folder, range(count))
    write_list(tmp_path, "a 5 0\nb 5 1\nc 5 2")
    here, advice = f"{tmp_path}/train.txt", "restore it, correct the list or raise data.frame_slack"
    gone = "No such file or directory; correct"
    assert problems(replace(config, modality="rgbd")) == [
        f"{here}:1: {tmp_path}/depth/a: {gone} 'a', data.root or data.layout",
        f"{here}:2: 5 frames listed, 3 found: no {tmp_path}/rgb/b/000003.jpg; {advice}",
        f"{here}:3: {tmp_path}/rgb/c: {gone} 'c', data.root or data.layout",
        f"{here}:3: 5 frames listed, 4 found: no {tmp_path}/depth/c/000004.jpg; {advice}",
    ]


def test_a_second_scan_lists_only_folders_that_changed(
    config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("a", "b"):
        touch(tmp_path, f"rgb/{folder}", range(4))
    write_list(tmp_path, "a 4 0\nb 4 1")
    first = scan(config, "train")
    listed: list[str] = []
    listdir = os.listdir
    monkeypatch.setattr(folders.os, "listdir", lambda path: listed.append(path) or listdir(path))
    assert scan(config, "train") == first and listed == []
    (tmp_path / "rgb/b/000003.jpg").unlink()
    assert problems(config)[0].startswith(f"{tmp_path}/train.txt:2: 4 frames listed, 3 found")
    assert listed == [f"{tmp_path}/rgb/b"]
