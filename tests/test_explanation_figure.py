"""engine/explanation_figure.py: the pictures show the numbers they are given."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.ImageSequence import Iterator

from engine.explain import Attention, Explanation
from engine.explanation_figure import draw, overlay, still

TOP = [{"label": 1, "name": "wave", "probability": 0.75},
       {"label": 0, "name": "point", "probability": 0.25}]  # fmt: skip


def explanation(
    modality: str = "rgb", recoupling: bool = True, maps: bool = True, frames: int = 10
) -> Explanation:
    rng = np.random.default_rng(0)
    activation = rng.random((frames, 4, 4)).astype(np.float32) / 4
    activation[-3, 2, 1] = 1.0
    return Explanation(
        modality=modality,
        frames=rng.integers(0, 256, (frames, 32, 32, 3), dtype=np.uint8),
        motion=rng.random((frames, 32, 32)).astype(np.float32) if maps else None,
        activation=activation,
        stage="inception3c",
        attention=(
            Attention(np.array([2, frames - 3]), np.array([0.25, 0.5], np.float32), 0.25),
            Attention(np.array([1, 4, 6, 9]) * frames // 10, np.full(4, 0.25, np.float32), 0.0),
        ),
        frame_weight=rng.random(frames).astype(np.float32) if recoupling else None,
        channel_weight=rng.random(64).astype(np.float32) if recoupling else None,
    )


def axes_of(figure) -> list:
    """All axes, whatever subfigure they are in, and what is written at them."""
    return figure.get_axes() or [a for part in figure.subfigs for a in axes_of(part)]


def by_label(figure, text: str):
    (axis,) = [axis for axis in axes_of(figure) if text in axis.get_ylabel()]
    return axis


def test_attention_stands_at_the_frames_that_its_branch_sees() -> None:
    figure = still([explanation()], TOP, "clips/a")
    for text, frames, percent in (
        ("2-frame branch", [2, 7], [25, 50]), ("4-frame branch", [1, 4, 6, 9], [25] * 4),
    ):  # fmt: skip
        bars = by_label(figure, text).patches
        assert [bar.get_x() + bar.get_width() / 2 for bar in bars] == pytest.approx(frames)
        assert [bar.get_height() for bar in bars] == pytest.approx(percent)
    notes = [text.get_text() for text in by_label(figure, "2-frame branch").texts]
    assert notes == ["on the class token itself: 25%"]


def test_weights_and_activation_over_time_are_those_of_the_explanation() -> None:
    given = explanation()
    figure = still([given], TOP, "clips/a")
    (line, *_) = by_label(figure, "frame weight").lines
    np.testing.assert_array_equal(line.get_ydata(), given.frame_weight)
    shares = [bar.get_height() for bar in by_label(figure, "share of class").patches]
    per_frame = given.activation.sum((1, 2))
    np.testing.assert_allclose(shares, per_frame / per_frame.sum() * 100, rtol=1e-5)
    (channels,) = [a for a in axes_of(figure) if a.get_title() == "channel weights, sorted"]
    np.testing.assert_array_equal(
        channels.lines[0].get_ydata(), sorted(given.channel_weight, reverse=True)
    )


def test_class_activation_is_relative_to_that_of_all_modalities() -> None:
    strong, weak = explanation("rgb"), explanation("depth")
    weak.activation[:] = strong.activation / 3
    figure = still([strong, weak], TOP, "clips/a")
    axes = [axis for axis in axes_of(figure) if "share of class" in axis.get_ylabel()]
    sums = [sum(bar.get_height() for bar in axis.patches) for axis in axes]
    assert sums == pytest.approx([75, 25], rel=1e-4)
    shown = [axis.images[0].get_array() for axis in axes_of(figure)
             if "class activation\n(" in axis.get_ylabel()]  # fmt: skip
    t = int(next(a.get_title() for a in axes_of(figure) if "frame" in a.get_title()).split()[1])
    scale = strong.activation.max()
    for given, frame in zip((strong, weak), shown, strict=True):
        expected = overlay(given.frames, given.activation / scale)[t]
        np.testing.assert_array_equal(frame, expected)


def test_the_title_names_clip_class_and_probability_and_each_row_its_modality() -> None:
    figure = still([explanation("rgb"), explanation("depth")], TOP, "clips/a")
    assert figure.get_suptitle() == "wave  (75.0%)\nclips/a"
    labels = [axis.get_ylabel() for axis in axes_of(figure)]
    long = still([explanation()], TOP, "x" * 200 + "/clip_7").get_suptitle().split("\n")[1]
    assert len(long) == 110 and long.startswith("...x") and long.endswith("x/clip_7")
    rows = [label for label in labels if "class activation\n(4 x 4 cells)" in label]
    assert [row.split(",")[0] for row in rows] == ["RGB", "depth"]


def test_shown_frames_are_those_of_most_activation_in_equal_parts_of_the_clip() -> None:
    one, other = explanation("rgb"), explanation("depth")
    one.activation[:] = other.activation[:] = 0
    # The first two of eight parts have two of the ten frames each.
    one.activation[[0, 1, 3], 0, 0] = [4, 6, 90]
    other.activation[[0, 1, 2], 0, 0] = [5, 2, 5]
    for given, expected in (([one], [1, 3]), ([other], [0, 2]), ([one, other], [0, 3])):
        titles = [axis.get_title() for axis in axes_of(still(given, TOP, "clips/a"))]
        shown = [int(title.split()[1]) for title in titles if title.startswith("frame ")]
        assert shown == [*expected, 4, 5, 6, 7, 8, 9] * len(given)


def test_the_overlay_leaves_frames_without_activation_as_they_are() -> None:
    frames = np.full((2, 32, 32, 3), 90, np.uint8)
    activation = np.zeros((2, 4, 4), np.float32)
    np.testing.assert_array_equal(overlay(frames, activation), frames)
    activation[1, 0, 3] = 1.0
    seen = overlay(frames, activation).astype(int)
    np.testing.assert_array_equal(seen[0], frames[0])
    changed = np.abs(seen[1] - 90).sum(2)
    row, column = np.unravel_index(changed.argmax(), changed.shape)
    assert row < 8 and column >= 24, "brightest in the cell of the activation"
    assert not changed[16:].any() and not changed[:, :16].any()


@pytest.mark.parametrize("recoupling", [True, False])
def test_a_moving_picture_has_a_picture_per_frame(tmp_path: Path, recoupling: bool) -> None:
    given = explanation(recoupling=recoupling, maps=recoupling, frames=5)
    draw([given], TOP, "clips/a", tmp_path / "seen.gif")
    with Image.open(tmp_path / "seen.gif") as image:
        assert image.n_frames == 5 and image.info["duration"] == 120
        first, *others = (np.asarray(each.convert("RGB")) for each in Iterator(image))
    assert all((other != first).any() for other in others)


def test_a_still_picture_is_a_png(tmp_path: Path) -> None:
    draw([explanation("rgb"), explanation("depth", maps=False)], TOP, "a", tmp_path / "seen.png")
    with Image.open(tmp_path / "seen.png") as image:
        assert image.format == "PNG" and image.size == (1300, 1580)
