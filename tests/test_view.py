"""How one clip is seen."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.config import DataConfig
from pipelines.view import View, draw_view, eval_view, rotation

NTU = DataConfig("", "", "", 60, resize=(320, 240), crop=224, flip=0.5, rotate=0.5, angle=(-10, 10))


def draws(config: DataConfig, count: int = 3000) -> list[View]:
    rng = np.random.default_rng(0)
    return [draw_view(config, rng) for _ in range(count)]


def test_training_crops_leave_out_the_last_offset_as_published() -> None:
    views = draws(NTU)
    assert {view.left for view in views} == set(range(96))  # 320 - 224 = 96 is never drawn
    assert {view.top for view in views} == set(range(16))


def test_a_crop_offset_is_drawn_with_both_ends() -> None:
    views = draws(replace(NTU, resize=(256, 256), crop_offset=(10, 32)))
    assert {view.left for view in views} == set(range(10, 33))
    assert {view.top for view in views} == set(range(10, 33))


@pytest.mark.parametrize("crop", [240, 239])
def test_a_crop_without_room_stays_in_the_corner(crop: int) -> None:
    assert {view.top for view in draws(replace(NTU, crop=crop), 20)} == {0}


def test_angles_are_whole_degrees_without_the_upper_end_at_the_given_rate() -> None:
    views = draws(NTU)
    assert {view.angle for view in views} == set(range(-10, 10))
    turned = np.mean([view.angle != 0 for view in views])
    assert turned == pytest.approx(0.5 * 19 / 20, abs=0.03)


@pytest.mark.parametrize(("probability", "expected"), [(0.0, {False}), (1.0, {True})])
def test_flips_come_with_their_probability(probability: float, expected: set[bool]) -> None:
    assert {view.flip for view in draws(replace(NTU, flip=probability), 50)} == expected


def test_half_the_views_are_flipped_at_one_half() -> None:
    assert np.mean([view.flip for view in draws(NTU)]) == pytest.approx(0.5, abs=0.03)


def test_no_rotation_needs_no_range_of_angles() -> None:
    assert {view.angle for view in draws(replace(NTU, rotate=0.0, angle=(0, 0)), 20)} == {0}


def test_switching_the_rotation_off_changes_no_crop_and_no_flip() -> None:
    views = [
        draw_view(config, np.random.default_rng(seed))
        for config in (NTU, replace(NTU, rotate=0.0))
        for seed in range(20)
    ]
    assert [replace(view, angle=0) for view in views[:20]] == views[20:]


def test_evaluation_sees_the_upright_centre() -> None:
    assert eval_view(NTU) == View(angle=0, left=48, top=8, flip=False)


def test_evaluation_takes_the_given_crop() -> None:
    assert eval_view(replace(NTU, resize=(256, 256), eval_crop=(32, 32))) == View(left=32, top=32)


@pytest.mark.parametrize("size", [(1920, 1080), (320, 240), (57, 43)])
def test_a_frame_that_turns_by_itself_turns_as_published_bit_for_bit(size: tuple[int, int]) -> None:
    for angle in range(-45, 45):
        published = cv2.getRotationMatrix2D((size[0] / 2, size[1] / 2), angle, 1)
        np.testing.assert_array_equal(rotation(angle, size, size), published)


SIZES = st.tuples(st.integers(16, 2000), st.integers(16, 2000))


@given(angle=st.integers(-180, 180), size=SIZES, other=SIZES,
       place=st.tuples(st.floats(0, 1), st.floats(0, 1)))  # fmt: skip
def test_one_place_of_two_frames_stays_one_place(
    angle: int, size: tuple[int, int], other: tuple[int, int], place: tuple[float, float]
) -> None:
    """In shares of width and height: the middle of pixel x is at (x + 0.5) / width."""
    ends = []
    for frame in (size, other):
        pixel = np.array(place) * frame - 0.5
        ends.append((rotation(angle, frame, other) @ [*pixel, 1] + 0.5) / frame)
    np.testing.assert_allclose(ends[0], ends[1], rtol=0, atol=1e-9)
