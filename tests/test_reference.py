"""The plain twin, held to known values and to stages that the published loader recorded."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clips import DEPTH_NAME, depth_frames, rgb_frames, write_clip
from lists import stream_of
from pipelines import reference
from pipelines.config import DataConfig
from pipelines.view import View, eval_view

DATA = Path(__file__).parent / "data"
RGB = DataConfig("", "", "", 8, resize=(64, 48), crop=32, size=32)
DEPTH = replace(RGB, modality="depth", depth_encoding="wrapped_jet")
NTU = replace(DEPTH, resize=(320, 240), crop=224, size=224)


@pytest.fixture(scope="module")
def stages() -> dict[str, np.ndarray]:
    """Every intermediate of one 512x424 depth frame on its way through the published loader."""
    with np.load(DATA / "depth16_stages.npz") as file:
        return dict(file)


def test_each_step_of_the_depth_recipe_is_the_recorded_one(stages: dict[str, np.ndarray]) -> None:
    wrapped = reference.wrap(stages["raw"])
    assert (wrapped == stages["wrapped"]).all()
    left, top, width, height = reference.region_of_interest(wrapped)
    assert (left, top, width, height) == (79, 87, 320, 240)
    region = wrapped[top : top + height, left : left + width]
    assert (region == stages["roi"]).all()
    assert (reference.jet(region) == stages["jet"]).all()
    assert (reference.resize(stages["jet"], 320, 240) == stages["resized"]).all()


def test_a_whole_depth_frame_is_the_recorded_one(stages: dict[str, np.ndarray]) -> None:
    pixels = reference.from_frames([stages["raw"]], eval_view(NTU), NTU)
    assert (pixels[0] == stages["cropped"]).all()


def test_a_given_box_takes_the_place_of_the_frames_own(stages: dict[str, np.ndarray]) -> None:
    for left in (79, 84):
        box = np.array([[left, 87, 320, 240]])
        pixels = reference.from_frames([stages["raw"]], eval_view(NTU), NTU, box)
        assert (pixels[0] == stages["cropped"]).all() == (left == 79)


def test_depth_without_a_contour_needs_a_box() -> None:
    empty = np.zeros((48, 64), np.uint16)
    with pytest.raises(ValueError, match="without a contour"):
        reference.from_frames([empty], View(), DEPTH)
    box = np.array([[0, 0, 64, 48]])
    assert (reference.from_frames([empty], View(), DEPTH, box) == [128, 0, 0]).all()


def test_metric_depth_is_brightest_at_the_near_end_and_black_where_unmeasured() -> None:
    depth_mm = np.array([[0, 400, 500, 1500, 2500, 3500, 4500, 9000]], np.uint16)
    pixels = reference.metric(depth_mm, 500, 4500)
    assert (pixels == pixels[..., :1]).all()
    # 255 * 3 / 4 = 191.25, 255 / 2 = 127.5 goes up, 255 / 4 = 63.75
    assert pixels[0, :, 0].tolist() == [0, 255, 255, 191, 128, 64, 0, 0]


def test_a_quarter_turn_is_counter_clockwise_about_half_the_size() -> None:
    image = rgb_frames(1, 6, 6)[0]
    turned = reference.rotate(image, 90)
    # (w/2, h/2) lies half a pixel right of and below the middle: row 0 comes from outside.
    assert (turned[1:] == np.rot90(image)[:-1]).all()
    assert (turned[0] == 0).all()


def test_angle_0_and_an_equal_size_are_copies() -> None:
    image = rgb_frames(1)[0]
    assert (reference.rotate(image, 0) == image).all()
    assert (reference.resize(image, 64, 48) == image).all()


def test_the_crop_is_cut_from_the_resized_frame_and_then_mirrored() -> None:
    image = rgb_frames(1)[0]
    seen = reference.from_frames([image], View(left=5, top=3, flip=True), RGB)[0]
    assert (seen == image[3:35, 5:37][:, ::-1]).all()


def test_a_crop_of_another_size_is_resized_at_the_end() -> None:
    image = rgb_frames(1)[0]
    config = replace(RGB, crop=20)
    seen = reference.from_frames([image], View(left=5, top=3), config)[0]
    assert seen.shape == (32, 32, 3)
    assert (seen == reference.resize(image[3:23, 5:25], 32, 32)).all()


def test_files_give_the_pixels_of_their_frames(tmp_path: Path) -> None:
    depth = depth_frames(3, 160, 120)
    paths = write_clip(tmp_path / "depth", depth, DEPTH_NAME, first=1)
    view = View(angle=7, left=9, top=4)
    (from_files,) = reference.clip_pixels([stream_of(paths, view)], DEPTH)
    assert from_files.shape == (3, 32, 32, 3) and from_files.dtype == np.uint8
    assert (from_files == reference.from_frames(list(depth), view, DEPTH)).all()
    rgb = write_clip(tmp_path / "rgb", rgb_frames(3))
    (pixels,) = reference.clip_pixels([stream_of(rgb, view)], RGB)
    assert pixels.shape == (3, 32, 32, 3)


def test_grey_jpegs_are_read_as_three_channels(tmp_path: Path) -> None:
    (path,) = write_clip(tmp_path, rgb_frames(1)[..., 0])
    image = reference.read_color(path)
    assert image.shape == (48, 64, 3) and (image == image[..., :1]).all()


def test_a_truncated_jpeg_is_named(tmp_path: Path) -> None:
    (path,) = write_clip(tmp_path, rgb_frames(1))
    Path(path).write_bytes(Path(path).read_bytes()[:-500])
    with pytest.raises(ValueError, match=f"{path}: damaged or no image"):
        reference.read_color(path)


def test_normalised_pixels_are_exact() -> None:
    normalised = reference.normalise(np.array([0, 127, 128, 255], np.uint8))
    assert normalised.tolist() == [-127.5 / 128, -0.5 / 128, 0.5 / 128, 127.5 / 128]


def test_the_motion_map_of_a_square_that_lights_up() -> None:
    pixels = np.zeros((2, 6, 6, 3), np.uint8)
    pixels[1, 1:4, 1:4] = 255
    # The pooled square is 0.9999 in grey. Erosion with the upper left neighbours leaves its lower
    # right 2x2, dilation makes 4x4 of that, scaled to 1: (R + S) * S is 1.9999 where both are.
    expected = np.zeros((6, 6), np.float32)
    expected[1:5, 1:5] = 1
    expected[1:4, 1:4] += 0.9999
    assert reference.motion_maps(pixels, 2)[0].max() == 0
    np.testing.assert_allclose(reference.motion_maps(pixels, 2)[1], expected, atol=1e-6)


def test_what_goes_dark_leaves_no_motion_and_stills_have_none() -> None:
    pixels = np.zeros((4, 6, 6, 3), np.uint8)
    pixels[:2, 1:4, 1:4] = 255
    maps = reference.motion_maps(pixels, 2)
    assert maps.shape == (4, 6, 6) and maps.dtype == np.float32
    assert (maps == 0).all()
