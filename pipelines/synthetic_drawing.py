"""Pixels of the sample clips: RGB and depth frames of a scene, clean or as sensors see them.
OpenCV and NumPy drawing; no files.

Both modalities show the same balls through the same camera: the point (x, y) of the frame is at
(x * width, y / ASPECT * height) of either image, so they are registered up to scale.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from pipelines.synthetic_scene import ASPECT, Camera, Colour, Part, contrasting_colour

Image = NDArray[np.uint8]
Depth = NDArray[np.uint16]
Size = tuple[int, int]
"""Width, height in pixels."""

RGB_LAYERS = ((1.0, 0.74), (0.84, 0.94), (0.55, 1.06))
"""Radius and brightness of the nested hulls that make a part look round."""

LIGHT = 0.12
"""How far the inner hulls move to the upper left, where the light comes from, in radii."""

DEPTH_LAYERS = (1.0, 0.85, 0.6, 0.3)
"""Radius of the nested hulls; each lies as near as a ball's surface would."""

DEPTH_STEP = 0.05
"""Metres: most by which the distance changes along one piece of a limb."""

SHIFT = 4
"""cv2 draws at 1/16 pixel."""

MARGIN = 32
"""Pixels by which a clip's noise is larger than its frames: each frame takes another window."""

_ANGLES = np.arange(16) * (np.pi / 8)
_CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)


@dataclass(frozen=True)
class Sensors:
    """How both sensors of one clip distort its clean frames."""

    tone: NDArray[np.uint8]
    """(256, 1, 3) exposure, contrast and colour cast: clean level -> seen level."""

    grain: NDArray[np.int16]
    """(H + MARGIN, W + MARGIN, 3) noise in grey levels."""

    ripple: NDArray[np.float32]
    """(H + MARGIN, W + MARGIN) depth noise in millimetres per metre of distance."""

    holes: NDArray[np.bool_]
    """(H + MARGIN, W + MARGIN) where the depth sensor gets no echo."""


def draw_sensors(rng: np.random.Generator, size: Size, depth_size: Size) -> Sensors:
    levels = np.arange(256)[:, None, None] / 255
    gain = rng.uniform(0.75, 1.15) * rng.uniform(0.93, 1.07, 3)
    tone = 255 * np.clip(gain * levels ** rng.uniform(0.85, 1.2), 0, 1)
    height, width = size[1] + MARGIN, size[0] + MARGIN
    grain = rng.normal(0, rng.uniform(0.5, 2), (height, width, 3))
    height, width = depth_size[1] + MARGIN, depth_size[0] + MARGIN
    ripple = rng.normal(0, rng.uniform(0.3, 0.9), (height, width))
    blobs = cv2.GaussianBlur(rng.normal(0, 1, (height, width)), (0, 0), 1.0)
    holes = blobs > np.quantile(blobs, 1 - rng.uniform(0.0, 0.03))
    return Sensors(
        tone.round().astype(np.uint8),
        grain.round().astype(np.int16),
        ripple.astype(np.float32),
        holes,
    )


def blinded(sensors: Sensors, rgb: bool, depth: bool) -> Sensors:
    """The sensors where the light is out (RGB gives only noise), or where the depth sensor gets no
    echo at all (depth is 0 everywhere)."""
    return replace(
        sensors,
        tone=np.zeros_like(sensors.tone) if rgb else sensors.tone,
        holes=np.ones_like(sensors.holes) if depth else sensors.holes,
    )


def draw_background(rng: np.random.Generator, size: Size, gloves: Colour) -> Image:
    """(H, W, 3) BGR, out of focus: a wall unlike the gloves, furniture, pictures and a floor."""
    width, height = size
    wall = np.array(contrasting_colour(rng, gloves, vivid=0.45))
    across, down = rng.uniform(-0.3, 0.3, 2)
    shade = 1 + across * np.linspace(-1, 1, width) + down * np.linspace(-1, 1, height)[:, None]
    room = wall * shade[..., None]
    if rng.uniform() < 0.6:
        room[int(height * rng.uniform(0.7, 0.95)) :] *= rng.uniform(0.5, 0.8)
    for _ in range(rng.integers(3, 10)):
        tone = (wall * rng.uniform(0.5, 1.4) + rng.normal(0, 22, 3)).tolist()
        x, y = rng.uniform(0, 1, 2) * size
        w, h = rng.uniform(0.05, 0.35, 2) * width
        if rng.uniform() < 0.7:
            corners = cv2.boxPoints(((x, y), (w, h), 0.0)).astype(np.int32)
            cv2.fillConvexPoly(room, corners, tone)
        else:
            cv2.ellipse(room, ((x, y), (w, h), rng.uniform(0, 180)), tone, -1)
    room = cv2.GaussianBlur(room, (0, 0), rng.uniform(0.004, 0.012) * width)
    grain = rng.normal(0, rng.uniform(1, 6), (height // 8 + 1, width // 8 + 1))
    room += cv2.resize(grain, size, interpolation=cv2.INTER_CUBIC)[..., None]
    return np.clip(room, 0, 255).astype(np.uint8)


def draw_rgb(parts: Sequence[Part], camera: Camera, background: Image) -> Image:
    """Clean (H, W, 3) BGR frame: the body before the background."""
    image = background.copy()
    scales, brightness = zip(*RGB_LAYERS, strict=True)
    size = (image.shape[1], image.shape[0])
    outlines = _outlines([part.balls for part in parts], scales, LIGHT, camera, size)
    for part, layers in zip(parts, outlines, strict=True):
        for layer, factor in zip(layers, brightness, strict=True):
            colour = tuple(min(channel * factor, 255.0) for channel in part.colour)
            cv2.fillConvexPoly(image, cv2.convexHull(layer), colour, cv2.LINE_AA, SHIFT)
    return image


def draw_depth(parts: Sequence[Part], camera: Camera, size: Size) -> Depth:
    """Clean (H, W) depth of the body in millimetres; 0 around it."""
    image = np.zeros((size[1], size[0]), np.float32)
    pieces = [piece for part in parts for piece in _pieces(part.balls)]
    outlines = _outlines(pieces, DEPTH_LAYERS, 0.0, camera, size)
    rises = np.sqrt(1 - np.square(DEPTH_LAYERS))
    for balls, layers in zip(pieces, outlines, strict=True):
        _, _, far, radius = 1000.0 * balls.mean(axis=0)
        for layer, near in zip(layers, far - radius * rises, strict=True):
            cv2.fillConvexPoly(image, cv2.convexHull(layer), near, cv2.LINE_8, SHIFT)
    smooth = cv2.blur(image, (3, 3))  # levels the steps between hulls, not the body's edges
    return np.where(np.abs(smooth - image) < 40, smooth, image).astype(np.uint16)


def _pieces(balls: NDArray) -> list[NDArray]:
    """The balls of a part; of a limb towards the camera several short pieces, farthest first."""
    if len(balls) != 2:
        return [balls]
    far, near = balls[np.argsort(-balls[:, 2])]
    count = int((far[2] - near[2]) / DEPTH_STEP) + 1
    chain = far + (near - far) * np.linspace(0, 1, count + 1)[:, None]
    return [chain[i : i + 2] for i in range(count)]


def _outlines(
    pieces: Sequence[NDArray], scales: Sequence[float], light: float, camera: Camera, size: Size
) -> list[NDArray[np.int32]]:
    """Per piece of (n, 4) balls (layers, 16 n, 2): points around its discs in cv2's fixed-point
    pixels, for each layer with the radii times its scale. All at once, as NumPy calls are slow."""
    x, y, z, radius = np.concatenate(pieces).T
    zoom = camera.focal / z
    discs = np.stack([0.5 + x * zoom, ASPECT / 2 + y * zoom], axis=1)
    radii = (radius * zoom)[:, None, None] * np.asarray(scales)[:, None, None, None]
    lit = light * (radii - radii / np.asarray(scales)[:, None, None, None])
    rims = discs[:, None] + lit + radii * _CIRCLE
    pixels = rims * (size[0], size[1] / ASPECT) - 0.5  # cv2 has pixel centres at whole numbers
    fixed = np.rint(pixels * (1 << SHIFT)).astype(np.int32)
    ends = np.cumsum([len(piece) for piece in pieces])[:-1]
    return [part.reshape(len(scales), -1, 2) for part in np.split(fixed, ends, axis=1)]


def seen_rgb(image: Image, sensors: Sensors, window: tuple[int, int]) -> Image:
    """Clean (H, W, 3) -> what the camera gives; `window` is the place in the noise, 0 to MARGIN."""
    grain = _window(sensors.grain, window, image.shape)
    return np.asarray(cv2.add(cv2.LUT(image, sensors.tone), grain, dtype=cv2.CV_8U), np.uint8)


def seen_depth(depth: Depth, sensors: Sensors, window: tuple[int, int]) -> Depth:
    """Clean (H, W) millimetres -> with noise, holes and frayed edges; the background stays 0."""
    ripple = _window(sensors.ripple, window, depth.shape)
    blurred = cv2.blur(depth.astype(np.float32), (3, 3))
    frayed = (np.abs(blurred - depth) > 60) & (ripple > 0.5)
    lost = _window(sensors.holes, window, depth.shape) | frayed | (depth == 0)
    noisy = depth * (1 + 0.001 * ripple)
    return np.where(lost, 0, np.rint(noisy)).astype(np.uint16)


def _window(noise: NDArray, window: tuple[int, int], shape: tuple[int, ...]) -> NDArray:
    top, left = window
    return noise[top : top + shape[0], left : left + shape[1]]
