"""How one clip is seen: its rotation, crop and flip, equal for all its frames. No pixels here."""

from dataclasses import dataclass

import numpy as np

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


def _draw_offset(room: int, span: tuple[int, int] | None, rng: np.random.Generator) -> int:
    """Uniform in `span`, both ends included, or as published in 0..room-1 (0 without room)."""
    if span is not None:
        return int(rng.integers(span[0], span[1] + 1))
    return int(rng.integers(0, max(room, 1)))
