"""The plain twin: the published CVPR'22 data path in NumPy, OpenCV and Pillow, step by step and
frame by frame. Oracle of the tests and baseline of the benchmarks: literal, not fast."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.config import DataConfig
from pipelines.depth import read_depth  # the reading alone: all arithmetic is done here again
from pipelines.source import Stream
from pipelines.view import View

Pixels = NDArray[np.uint8]
Box = tuple[int, int, int, int]
"""left, top, width, height in the frame."""


def read_color(path: str) -> Pixels:
    """(H, W, 3) R, G, B. Raises ValueError for a file that is no whole image."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except OSError as error:
        raise ValueError(f"{path}: damaged or no image ({error}); restore it") from None


def wrap(depth_mm: NDArray[np.uint16]) -> Pixels:
    """(H, W) mm -> (-mm) mod 256: 8 bits that keep fine relief and repeat every 256 mm."""
    return ((-depth_mm.astype(np.int64)) % 256).astype(np.uint8)


def region_of_interest(wrapped: Pixels) -> Box | None:
    """The 320x240 box around the person, cut at the frame's border; None without a contour."""
    mask = cv2.erode(wrapped, np.ones((3, 3), np.uint8))
    mask = cv2.dilate(mask, np.ones((10, 10), np.uint8))
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    centres = [cv2.minAreaRect(c)[0] for c in contours if cv2.contourArea(c) > 500]
    if not centres:
        return None
    left = max(min(int(x) for x, _ in centres) - 160, 0)
    top = max(min(int(y) for _, y in centres) - 120, 0)
    height, width = wrapped.shape
    return left, top, min(320, width - left), min(240, height - top)


def jet(wrapped: Pixels) -> Pixels:
    """(H, W) -> (H, W, 3) JET colours; their B, G, R order is used as if it were R, G, B."""
    return cv2.applyColorMap(wrapped, cv2.COLORMAP_JET).astype(np.uint8)


def metric(depth_mm: NDArray[np.uint16], near: int, far: int) -> Pixels:
    """(H, W) mm -> (H, W, 3) equal channels: 255 at `near` and closer, 0 at `far`, beyond and
    where nothing was measured; halves are rounded up."""
    clipped = np.clip(depth_mm.astype(np.int64), near, far)
    grey = np.floor(255 * (far - clipped) / (far - near) + 0.5)
    grey[depth_mm == 0] = 0
    return np.stack([grey.astype(np.uint8)] * 3, axis=-1)


def rotate(image: Pixels, angle: int, turned_as: tuple[int, ...] | None = None) -> Pixels:
    """(H, W, 3) turned about its middle at its own size: bilinear, black border.

    `turned_as`: height and width of another modality's frame, whose turn about its own middle is
    done to the same places of this one.
    """
    if angle == 0:
        return image
    height, width = image.shape[:2]
    matrix: Any = cv2.getRotationMatrix2D((width / 2, height / 2), angle, 1)
    if turned_as is not None and turned_as[:2] != (height, width):
        other_height, other_width = turned_as[:2]
        # Sideways and upright steps count in pixels of other proportions ...
        k = (width / height) / (other_width / other_height)
        cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
        linear = np.array([[cos, sin * k], [-sin / k, cos]])
        # ... and that frame's (w/2, h/2), counted from the middle of its first pixel, lies here.
        centre = (
            (other_width / 2 + 0.5) * width / other_width - 0.5,
            (other_height / 2 + 0.5) * height / other_height - 0.5,
        )
        matrix = np.column_stack([linear, centre - linear @ centre])
    return cv2.warpAffine(image, matrix, (width, height)).astype(np.uint8)


def resize(image: Pixels, width: int, height: int) -> Pixels:
    """(H, W, 3) -> (height, width, 3): bicubic, antialiased; a copy where the size is the same."""
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def see(
    image: Pixels, view: View, config: DataConfig, turned_as: tuple[int, ...] | None = None
) -> Pixels:
    """(H, W, 3) -> (size, size, 3): the frame through the clip's view."""
    image = resize(rotate(image, view.angle, turned_as), *config.resize)
    image = image[view.top : view.top + config.crop, view.left : view.left + config.crop]
    if view.flip:
        image = image[:, ::-1]
    return resize(np.ascontiguousarray(image), config.size, config.size)


def colour(depth_mm: NDArray[np.uint16], config: DataConfig, box: Box | None) -> Pixels:
    """(H, W) mm -> an image in `config.depth_encoding`: (h, w, 3) of the box for wrapped_jet."""
    if config.depth_encoding == "metric":
        return metric(depth_mm, *config.depth_range_mm)
    wrapped = wrap(depth_mm)
    box = box or region_of_interest(wrapped)
    if box is None:
        raise ValueError("a depth frame without a contour needs the box of another one")
    left, top, width, height = box
    return jet(wrapped[top : top + height, left : left + width])


def from_frames(
    frames: Sequence[NDArray[Any]],
    view: View,
    config: DataConfig,
    boxes: NDArray[np.int64] | None = None,
    turned_as: Sequence[NDArray[Any]] | None = None,
) -> Pixels:
    """T decoded frames, (H, W, 3) uint8 or (H, W) uint16 mm -> (T, size, size, 3) uint8.

    boxes (T, 4) left, top, width, height of wrapped_jet; by default each frame's own.
    turned_as: the T frames of another modality, whose turns these take over (`rotate`).
    """
    images = []
    for t, frame in enumerate(frames):
        if frame.dtype == np.uint16:
            frame = colour(frame, config, None if boxes is None else tuple(boxes[t].tolist()))
        images.append(see(frame, view, config, None if turned_as is None else turned_as[t].shape))
    return np.stack(images)


def clip_pixels(streams: Sequence[Stream], config: DataConfig) -> list[Pixels]:
    """T files of each modality -> (T, size, size, 3) uint8 of each: what the network sees, before
    `normalise`. With `config.paired_view` the modalities turn as the first."""
    frames: list[list[NDArray[Any]]] = []
    pixels: list[Pixels] = []
    for modality, stream in zip(config.modalities, streams, strict=True):
        read = read_depth if config.in_mm(modality) else read_color
        frames.append([read(path) for path in stream.paths])
        turned_as = frames[0] if config.paired_view and len(frames) > 1 else None
        pixels.append(from_frames(frames[-1], stream.view, config, stream.boxes, turned_as))
    return pixels


def normalise(pixels: Pixels) -> NDArray[np.float32]:
    """0..255 -> (v - 127.5) / 128, exact in float32."""
    return ((pixels.astype(np.float32) - 127.5) / 128).astype(np.float32)


def motion_maps(pixels: Pixels, window: int) -> NDArray[np.float32]:
    """(T, H, W, 3) uint8 -> (T, H, W) in [0, 2]: rank pooling of the `window` frames up to each
    (CVPR'22, motion attention); the first window - 1 maps are zero."""
    frames = normalise(pixels)
    maps = np.zeros(pixels.shape[:3], np.float32)
    for t in range(window - 1, len(frames)):
        maps[t] = _motion_map(frames[t - window + 1 : t + 1])
    return maps


def _motion_map(frames: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, H, W, 3) normalised frames of one window -> (H, W)."""
    pooled = np.zeros(frames.shape[1:], np.float32)
    for i, frame in enumerate(frames, start=1):
        pooled += (2 * i - len(frames) - 1) * frame
    pooled = _to_unit(np.maximum(pooled, 0))
    grey = 0.2989 * pooled[..., 0] + 0.587 * pooled[..., 1] + 0.114 * pooled[..., 2]
    salient: Any = np.where(grey > grey.mean(), grey, np.float32(0))
    salient = cv2.erode(salient, np.ones((2, 2), np.uint8), anchor=(1, 1))
    salient = _to_unit(cv2.dilate(salient, np.ones((3, 3), np.uint8)))
    return (grey + salient) * salient


def _to_unit(values: Any) -> NDArray[np.float32]:
    """Moved and scaled to [0, 1]."""
    values = values - values.min()
    scaled: NDArray[np.float32] = values / np.float32(values.max() or 1e-5)
    return scaled
