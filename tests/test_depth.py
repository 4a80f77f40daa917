"""16-bit depth: encodings, regions of interest, and those of a whole data set."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clips import DEPTH_NAME, depth_frames, write_clip
from pipelines import depth_boxes as module
from pipelines import reference
from pipelines.config import DataConfig
from pipelines.depth import JET, box_centre, boxes_at, metric, read_depth, wrap
from pipelines.depth_boxes import depth_boxes
from pipelines.index import ClipIndex, scan

DATA = Path(__file__).parent / "data"
EMPTY = np.zeros((48, 64), np.uint16)


def test_the_recorded_frame_is_wrapped_boxed_and_coloured_as_recorded() -> None:
    with np.load(DATA / "depth16_stages.npz") as stages:
        wrapped = wrap(stages["raw"])
        assert (wrapped == stages["wrapped"]).all()
        assert (stages["jet_lut"] == JET).all()
        centre = box_centre(wrapped)
        assert centre == (239, 207)
        left, top, width, height = boxes_at(np.array([centre]), *wrapped.shape)[0]
        region = wrapped[top : top + height, left : left + width]
        assert (region == stages["roi"]).all()
        assert (JET[region] == stages["jet"]).all()


def test_depth_wraps_every_256_millimetres_from_the_far_side() -> None:
    depth_mm = np.array([0, 1, 255, 256, 257, 2000, 65535], np.uint16)
    assert wrap(depth_mm).tolist() == [0, 255, 1, 0, 255, (-2000) % 256, 1]


def test_the_colour_of_wrapped_0_is_dark_red() -> None:
    assert JET.shape == (256, 3) and JET.dtype == np.uint8
    assert JET[0].tolist() == [128, 0, 0]
    with pytest.raises(ValueError):
        JET[0] = 0


def test_metric_depth_of_known_distances() -> None:
    depth_mm = np.array([0, 400, 500, 1500, 2500, 3500, 4500, 9000], np.uint16)
    assert metric(depth_mm, (500, 4500)).tolist() == [0, 255, 255, 191, 128, 64, 0, 0]


@given(st.integers(0, 6000), st.integers(1, 9000))
def test_metric_depth_is_the_twins_for_every_distance(near: int, span: int) -> None:
    depth_mm = np.arange(65536, dtype=np.uint16)
    expected = reference.metric(depth_mm[None], near, near + span)[0, :, 0]
    assert (metric(depth_mm, (near, near + span)) == expected).all()


def test_boxes_are_cut_at_the_frames_border() -> None:
    centres = np.array([[239, 207], [10, 10], [500, 400], [160, 120]])
    assert boxes_at(centres, height=424, width=512).tolist() == [
        [79, 87, 320, 240],
        [0, 0, 320, 240],
        [340, 280, 172, 144],
        [0, 0, 320, 240],
    ]
    assert boxes_at(np.array([[32, 24]]), height=48, width=64).tolist() == [[0, 0, 64, 48]]


def test_the_centre_takes_the_smallest_x_and_the_smallest_y_of_all_large_contours() -> None:
    wrapped = np.zeros((240, 320), np.uint8)
    wrapped[150:200, 40:80] = 90  # left and low
    wrapped[20:70, 200:260] = 90  # right and high
    wrapped[100:105, 2:7] = 90  # too small
    # Erosion takes 1 px on all sides, the even dilation adds 4 left and up, 5 right and down.
    assert box_centre(wrapped) == (60, 45)


def test_small_contours_and_empty_frames_have_no_centre() -> None:
    assert box_centre(np.zeros((48, 64), np.uint8)) is None
    speck = np.zeros((48, 64), np.uint8)
    speck[10:20, 10:20] = 90  # 17x17 after the dilation
    assert box_centre(speck) is None


def test_an_8_bit_png_where_16_is_promised_is_named(tmp_path: Path) -> None:
    path = tmp_path / "MDepth-00000001.png"
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(path)
    with pytest.raises(ValueError, match=f"{path}: 8-bit L image .* promises 16-bit depth"):
        read_depth(str(path))


def test_a_truncated_or_missing_png_is_named(tmp_path: Path) -> None:
    (path,) = write_clip(tmp_path, depth_frames(1), DEPTH_NAME)
    whole = Path(path).read_bytes()
    for length in (len(whole) // 2, 20, 0):
        Path(path).write_bytes(whole[:length])
        with pytest.raises(ValueError, match=f"{path}: damaged at byte {length}: the file "):
            read_depth(path)
    with pytest.raises(ValueError, match="No such file"):
        read_depth(f"{path}.gone")


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    return DataConfig(
        str(tmp_path), "train.txt", "", 2, layout="ntu", modality="depth",
        depth_encoding="wrapped_jet", cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip


def write_set(config: DataConfig, *clips: np.ndarray) -> ClipIndex:
    root = Path(config.root)
    for number, frames in enumerate(clips):
        write_clip(root / f"nturgb+d_depth_masked/c{number}", frames, DEPTH_NAME, first=1)
    lines = [f"c{number}_rgb {len(frames)} 0\n" for number, frames in enumerate(clips)]
    (root / "train.txt").write_text("".join(lines))
    return scan(config, "train")


def test_every_frame_has_the_box_of_its_own_contours(config: DataConfig) -> None:
    frames = depth_frames(4, 400, 300)
    boxes = depth_boxes(write_set(config, frames), config)[0]
    expected = [reference.region_of_interest(reference.wrap(frame)) for frame in frames]
    assert boxes.tolist() == [list(box) for box in expected]
    assert len(set(map(tuple, boxes.tolist()))) > 1


def test_frames_without_a_contour_take_the_nearest_frames_box_and_are_counted(
    config: DataConfig,
) -> None:
    frames = depth_frames(7, 400, 300)
    frames[[0, 2, 3, 4]] = 0
    boxes = depth_boxes(write_set(config, frames), config)
    own = {t: list(reference.region_of_interest(reference.wrap(frames[t]))) for t in (1, 5, 6)}
    # Frame 3 is as near to 1 as to 5: the earlier one.
    assert boxes[0].tolist() == [own[t] for t in (1, 1, 1, 1, 5, 5, 6)]
    assert (boxes.from_neighbour, boxes.from_centre) == (4, 0)


def test_clips_without_any_contour_take_the_middle_and_are_counted(config: DataConfig) -> None:
    empty = np.zeros((3, 424, 512), np.uint16)
    boxes = depth_boxes(write_set(config, empty), config)
    assert boxes[0].tolist() == [[96, 92, 320, 240]] * 3
    assert (boxes.from_neighbour, boxes.from_centre) == (0, 3)


def test_several_processes_give_the_boxes_of_one(config: DataConfig, tmp_path: Path) -> None:
    index = write_set(config, *(depth_frames(3, 160, 120, seed) for seed in range(4)))
    one, two = (
        depth_boxes(index, replace(config, cache_dir=str(tmp_path / f"{n}")), processes=n)
        for n in (1, 2)
    )
    assert [one[i].tolist() for i in range(4)] == [two[i].tolist() for i in range(4)]


def test_a_killed_computation_goes_on_where_it_was(
    config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = [depth_frames(2, 160, 120, seed) for seed in range(4)]
    index = write_set(config, *clips)
    read: list[str] = []

    def interrupted(path: str) -> np.ndarray:
        if len(read) == 5:  # in the middle of the third clip
            raise KeyboardInterrupt
        read.append(path)
        return read_depth(path)

    monkeypatch.setattr(module, "read_depth", interrupted)
    with pytest.raises(KeyboardInterrupt):
        depth_boxes(index, config)
    read.clear()
    boxes = depth_boxes(index, config)
    assert [Path(path).parent.name for path in read] == ["c2", "c2", "c3", "c3"]
    monkeypatch.undo()
    fresh = depth_boxes(index, replace(config, cache_dir=f"{config.cache_dir}2"))
    assert [boxes[i].tolist() for i in range(4)] == [fresh[i].tolist() for i in range(4)]


def test_only_changed_clips_are_computed_again(
    config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = [depth_frames(2, 160, 120, seed) for seed in range(2)]
    depth_boxes(write_set(config, *clips), config)
    longer = depth_frames(3, 160, 120, 1)
    index = write_set(config, clips[0], longer)
    read: list[str] = []
    monkeypatch.setattr(module, "read_depth", lambda path: read.append(path) or read_depth(path))
    assert len(depth_boxes(index, config)[1]) == 3
    assert {Path(path).parent.name for path in read} == {"c1"}


def test_what_the_cache_holds_is_plain_data(config: DataConfig) -> None:
    depth_boxes(write_set(config, EMPTY[None]), config)
    (line,) = (Path(config.cache_dir) / "depth_boxes.jsonl").read_text().splitlines()
    key, (changed_ns, num_frames, size, centres) = json.loads(line)
    assert key == "nturgb+d_depth_masked/c0/MDepth-{frame:08d}.png"
    assert changed_ns > 0 and (num_frames, size, centres) == (1, [48, 64], [-1, -1])


@pytest.mark.parametrize("processes", [1, 2])
def test_a_bad_file_stops_the_computation_by_name(config: DataConfig, processes: int) -> None:
    index = write_set(config, depth_frames(2, 160, 120), depth_frames(2, 160, 120))
    bad = index.media["depth"][1].path(1)
    Image.fromarray(np.zeros((120, 160), np.uint8)).save(bad)
    with pytest.raises(ValueError, match=f"{bad.replace('+', '.')}: 8-bit"):
        depth_boxes(index, config, processes=processes)


@pytest.mark.parametrize("odd", [0, 1, 2])
def test_a_frame_of_another_size_than_the_clips_others_is_named(
    config: DataConfig, odd: int
) -> None:
    index = write_set(config, depth_frames(3, 160, 120))
    path = index.media["depth"][0].path(odd)
    Image.fromarray(EMPTY).save(path)
    with pytest.raises(ValueError) as raised:
        depth_boxes(index, config)
    assert str(raised.value) == (
        f"{path}: 64x48 pixels, the clip's other frames have 160x120; bring them to one size"
    )
