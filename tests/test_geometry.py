"""The view of a clip on the CPU, held to the plain twin on the same decoded frames."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clips import depth_frames, rgb_frames
from lists import TINY, TURNS, assert_like_twin
from pipelines import reference
from pipelines.config import DataConfig
from pipelines.geometry import _rotate, colour_table, normalise, view_clip
from pipelines.view import View

DEPTH = replace(TINY, modality="depth", resize=(72, 54))
METRIC = replace(DEPTH, depth_encoding="metric", depth_range_mm=(2000, 2400))
JET = replace(DEPTH, depth_encoding="wrapped_jet")


def view(frames: list, view: View, config: DataConfig, boxes: np.ndarray | None = None):
    """(T, size, size, 3) of (h, w, 3) or (h, w) frames."""
    out = np.zeros((len(frames), config.size, config.size, 3), np.uint8)
    frames = [frame if frame.ndim == 3 else frame[..., None] for frame in frames]
    view_clip(frames, view, config, colour_table(config, config.modality), boxes, out)
    return out


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("shape", [
    {},                                          # 64x48 -> 48x36 -> 32
    {"resize": (64, 48)},                        # no resize
    {"resize": (72, 72), "crop": 64, "size": 64},
    {"resize": (64, 48), "crop": 30},            # 30 -> 32, as THU-READ's 200 -> 224
])  # fmt: skip
def test_colour_frames_look_as_in_the_twin(turn: View, shape: dict) -> None:
    config = replace(TINY, **shape)
    frames = list(rgb_frames(4))
    expected = reference.from_frames(frames, turn, config)
    assert_like_twin(view(frames, turn, config), expected)
    # Far inside the bound: Pillow's and torch's resize differ by one now and then, the warp never.
    assert np.abs(view(frames, turn, config).astype(int) - expected).mean() < 0.02


def test_what_needs_no_resize_is_exact() -> None:
    config = replace(TINY, resize=(64, 48))
    frames = list(rgb_frames(4))
    for turn in TURNS:
        expected = reference.from_frames(frames, turn, config)
        np.testing.assert_array_equal(view(frames, turn, config), expected)


@pytest.mark.parametrize("turn", TURNS)
def test_frames_of_several_sizes_in_one_clip_look_as_in_the_twin(turn: View) -> None:
    frames = [*rgb_frames(2), *rgb_frames(2, 80, 50)]
    assert_like_twin(view(frames, turn, TINY), reference.from_frames(frames, turn, TINY))


@pytest.mark.parametrize("turn", TURNS)
def test_metric_depth_looks_as_in_the_twin(turn: View) -> None:
    frames = list(depth_frames(4, 96, 72))
    assert_like_twin(view(frames, turn, METRIC), reference.from_frames(frames, turn, METRIC))


@pytest.mark.parametrize("turn", TURNS)
def test_wrapped_jet_with_a_box_of_its_own_per_frame_looks_as_in_the_twin(turn: View) -> None:
    frames = list(depth_frames(4, 96, 72))
    boxes = np.array([[0, 0, 72, 54], [10, 5, 72, 54], [40, 9, 56, 54], [50, 40, 46, 32]])
    expected = reference.from_frames(frames, turn, JET, boxes)
    assert_like_twin(view(frames, turn, JET, boxes), expected)


def test_every_distance_has_the_colour_of_the_twin() -> None:
    distances = np.arange(2**16, dtype=np.uint16)[None]
    jet = reference.jet(reference.wrap(distances))
    metric = reference.metric(distances, 2000, 2400)
    np.testing.assert_array_equal(colour_table(JET, "depth"), jet[0])
    np.testing.assert_array_equal(colour_table(METRIC, "depth"), metric[0])
    assert colour_table(JET, "rgb") is None and colour_table(DEPTH, "depth") is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_normalised_values_are_exact_in_every_type(dtype: torch.dtype) -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(2, 8, 16)
    out = torch.empty(pixels.shape, dtype=dtype)
    normalise(pixels, out.numpy())
    exact = (pixels.astype(np.float64) - 127.5) / 128
    np.testing.assert_array_equal(out.double().numpy(), exact)
    np.testing.assert_array_equal(out.bfloat16().double().numpy(), exact)


@given(
    height=st.integers(1, 70), width=st.integers(1, 70), angle=st.integers(-30, 30),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_a_turn_is_opencvs_to_the_last_level(height, width, angle, seed):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), angle, 1)
    expected = cv2.warpAffine(image, matrix, (width, height))
    np.testing.assert_array_equal(_rotate(image, angle, image), expected)
