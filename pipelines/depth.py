"""16-bit depth in millimetres -> 8-bit images, and where in the frame to look. One frame at a time;
whole data sets are pipelines/depth_boxes.py."""

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.image_structure import damage

BOX_WIDTH, BOX_HEIGHT = 320, 240
"""Region of interest of the published NTU recipe, before the frame's border cuts it."""

SMALLEST_CONTOUR = 500
"""Area in pixels: smaller contours are noise."""

JET = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[None], cv2.COLORMAP_JET)[0].astype(np.uint8)
"""(256, 3) colours of wrapped depth. OpenCV writes B, G, R; the published loader takes that for
R, G, B, and so its networks know it: wrapped 0 is (128, 0, 0), a dark red."""
JET.setflags(write=False)


def read_depth(file: str | BinaryIO, name: str = "") -> NDArray[np.uint16]:
    """(H, W) millimetres of a 16-bit PNG, 0 where nothing was measured.

    `name` is what messages call a file without a path.

    Raises ValueError for a damaged file or one of fewer bits.
    """
    path = name or file
    try:
        with Image.open(file) as image:
            if image.mode.startswith("I"):
                return np.asarray(image).astype(np.uint16)
            bands = image.mode
    except (OSError, SyntaxError) as error:  # Pillow raises SyntaxError for broken PNG chunks
        raise ValueError(f"{path}: {_trouble(file, error)}; restore it") from None
    raise ValueError(
        f"{path}: 8-bit {bands} image where data.depth_encoding promises 16-bit depth; take the "
        "depth maps in millimetres or set data.depth_encoding=color"
    )


def _trouble(file: str | BinaryIO, error: Exception) -> str:
    try:
        if isinstance(file, str):
            return damage(Path(file).read_bytes(), error)
        file.seek(0)
        return damage(file.read(), error)
    except OSError as missing:
        return missing.strerror or str(missing)


def wrap(depth_mm: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """(H, W) -> (-mm) mod 256: 8 bits that keep fine relief and repeat every 256 mm."""
    return np.negative(depth_mm).astype(np.uint8)


def metric(depth_mm: NDArray[np.uint16], range_mm: tuple[int, int]) -> NDArray[np.uint8]:
    """Grey levels of any shape: 255 at the near end of the range and closer, falling evenly to 0 at
    the far end, halves rounded up. What was not measured (0 mm) looks far away: 0."""
    near, far = range_mm
    from_far = far - np.clip(depth_mm, near, far).astype(np.int64)
    grey = (2 * 255 * from_far + (far - near)) // (2 * (far - near))
    return np.where(depth_mm == 0, 0, grey).astype(np.uint8)


def box_centre(wrapped: NDArray[np.uint8]) -> tuple[int, int] | None:
    """Centre (cx, cy) of the region of interest, or None without a contour large enough.

    Smallest x and smallest y, each for itself, of the contours' centres (published NTU recipe).
    """
    mask = cv2.dilate(cv2.erode(wrapped, np.ones((3, 3))), np.ones((10, 10)))
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    large = [contour for contour in contours if cv2.contourArea(contour) > SMALLEST_CONTOUR]
    if not large:
        return None
    centres = [cv2.minAreaRect(contour)[0] for contour in large]
    return min(int(x) for x, _ in centres), min(int(y) for _, y in centres)


def boxes_at(centres: NDArray[np.integer], height: int, width: int) -> NDArray[np.int64]:
    """(T, 2) centres cx, cy -> (T, 4) left, top, width, height, cut at the frame's border."""
    corner = np.maximum(centres.astype(np.int64) - (BOX_WIDTH // 2, BOX_HEIGHT // 2), 0)
    size = np.minimum((BOX_WIDTH, BOX_HEIGHT), np.array([width, height]) - corner)
    return np.concatenate([corner, size], axis=1)


@dataclass(frozen=True)
class DepthBoxes:
    """The regions of interest of all clips of one list."""

    centres: tuple[NDArray[np.int16], ...]
    """(num_frames, 2) cx, cy per clip."""

    sizes: tuple[tuple[int, int], ...]
    """Height and width of each clip's frames."""

    from_neighbour: int
    """Frames without a contour that took the centre of the nearest frame with one."""

    from_centre: int
    """Frames of clips without any contour: the middle of the image."""

    def __getitem__(self, clip: int) -> NDArray[np.int64]:
        """(num_frames, 4) left, top, width, height."""
        return boxes_at(self.centres[clip], *self.sizes[clip])
