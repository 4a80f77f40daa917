"""How one clip is seen: its rotation, crop and flip, equal for all its frames. No pixels here."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pipelines.config import DataConfig


@dataclass(frozen=True)
class View:
    """Rotation of the frame at its own size, then, after the resize, crop and flip."""

    angle: int = 0
    """Degrees, counter-clockwise about (w/2, h/2) as in cv2.getRotationMatrix2D."""

    left: int = 0
    """First column of the crop in the resized frame."""

    top: int = 0
    """First row of the crop in the resized frame."""

    flip: bool = False
    """Mirror left and right, after the crop."""


def draw_view(config: DataConfig, rng: np.random.Generator) -> View:
    """A random training view (CVPR'22, published loader; per clip)."""
    width, height = config.resize
    left = _draw_offset(width - config.crop, config.crop_offset, rng)
    top = _draw_offset(height - config.crop, config.crop_offset, rng)
    flip = bool(rng.random() < config.flip)
    angle = int(rng.integers(*config.angle)) if rng.random() < config.rotate else 0
    return View(angle, left, top, flip)


def eval_view(config: DataConfig) -> View:
    """The fixed view of evaluation: upright, `eval_crop` or the centre."""
    width, height = config.resize
    left, top = config.eval_crop or ((width - config.crop) // 2, (height - config.crop) // 2)
    return View(left=left, top=top)


def rotation(angle: int, size: tuple[int, int], turned_as: tuple[int, int]) -> NDArray[np.float64]:
    """(2, 3) matrix for cv2.warpAffine: the turn of a frame of size `turned_as` (width, height)
    about its middle, in the pixels of a frame of `size` that shows the same.

    A frame turned as itself turns as published. One of other proportions is sheared, too: both are
    resized to one size later, and two plain turns would come apart there.
    """
    width, height = turned_as
    turn = np.asarray(cv2.getRotationMatrix2D((width / 2, height / 2), angle, 1), np.float64)
    if size == turned_as:
        return turn
    x, y = size[0] / width, size[1] / height
    # Pixels of the one -> pixels of the other: both count from the middle of their first pixel.
    to_own = np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]])
    return (to_own @ [*turn, [0, 0, 1]] @ np.linalg.inv(to_own))[:2]


def _draw_offset(room: int, span: tuple[int, int] | None, rng: np.random.Generator) -> int:
    """Uniform in `span`, both ends included, or as published in 0..room-1 (0 without room)."""
    if span is not None:
        return int(rng.integers(span[0], span[1] + 1))
    return int(rng.integers(0, max(room, 1)))
