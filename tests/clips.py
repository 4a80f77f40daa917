"""Small rendered clips and the real files they make: for tests that need frames on disk."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

RGB_NAME, DEPTH_NAME = "{:06d}.jpg", "MDepth-{:08d}.png"
MARKER = 0.03


def rgb_frames(
    num_frames: int, width: int = 64, height: int = 48, seed: int = 0
) -> NDArray[np.uint8]:
    """(T, H, W, 3): a bright disc that crosses a coloured, noisy background."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    background = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    frames = []
    for place in _path(num_frames, width, height):
        frame = cv2.circle(background.copy(), place, height // 5, (240, 220, 60), -1)
        noise = rng.integers(-4, 5, frame.shape)
        frames.append(np.clip(frame + noise, 0, 255).astype(np.uint8))
    return np.stack(frames)


def depth_frames(
    num_frames: int, width: int = 64, height: int = 48, seed: int = 0
) -> NDArray[np.uint16]:
    """(T, H, W) millimetres: a slanted, noisy body that crosses the frame; 0 around it."""
    rng = np.random.default_rng(seed)
    slope = 2000 + np.arange(width) * 2 + np.arange(height)[:, None] * 3
    frames = []
    for x, y in _path(num_frames, width, height):
        body = np.zeros((height, width), np.uint8)
        cv2.ellipse(body, (x, y), (width // 8, height // 3), 0, 0, 360, 1, -1)
        frames.append((slope + rng.integers(0, 20, slope.shape)) * body)
    return np.stack(frames).astype(np.uint16)


def marker_frames(
    places: Sequence[tuple[float, float]], width: int, height: int
) -> NDArray[np.uint8]:
    """(T, H, W, 3): per frame one white spot on black, its middle at this share of width and
    height, its spread MARKER of either."""
    x, y = (np.arange(width) + 0.5) / width, (np.arange(height)[:, None] + 0.5) / height
    spots = [np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * MARKER**2)) for px, py in places]
    return np.repeat(np.rint(250 * np.stack(spots))[..., None], 3, axis=3).astype(np.uint8)


def write_clip(
    folder: Path, frames: Sequence[NDArray], name: str = RGB_NAME, first: int = 0
) -> list[str]:
    """One file per frame, JPEG or PNG (16-bit where the frames are) by the name; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name.format(first + number) for number in range(len(frames))]
    for path, frame in zip(paths, frames, strict=True):
        Image.fromarray(frame).save(path, quality=95)
    return [str(path) for path in paths]


def _path(num_frames: int, width: int, height: int) -> list[tuple[int, int]]:
    phase = np.linspace(0, 1, num_frames)
    xs, ys = width * (0.25 + 0.5 * phase), height * (0.5 + 0.1 * np.sin(6 * phase))
    return [(int(x), int(y)) for x, y in zip(xs, ys, strict=True)]
