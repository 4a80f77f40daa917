"""Is a file what it promises? A glance at a batch's signatures, and a slow look where that or DALI
finds fault. Decodes nothing for training."""

from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
PNG_START, PNG_END = b"\x89P", b"IEND\xaeB`\x82"
PNG_FORMAT = slice(24, 26)
"""Bytes of a PNG file that give its bits per channel and its colour type."""
GREY_16 = (16, 0)

RESTORE = "restore it or take its clip off the list"


def suspects(signatures: NDArray[np.uint8], millimetres: bool) -> list[int]:
    """(N, 34) first 26 and last 8 bytes of N files -> places of those that deserve a slow look.

    They are a JPEG or PNG without its end mark, and a 16-bit grey PNG where `millimetres` does not
    promise one, or anything else where it does. Bytes after the end mark are legal: a suspect may
    be sound. DALI is silent about wrong bits, and about more on a GPU.
    """
    start = signatures[:, :2]
    other_format = ~(_equals(start, JPEG_START) | _equals(start, PNG_START))
    ended = _equals(signatures[:, -2:], JPEG_END) | _equals(signatures[:, -8:], PNG_END)
    as_promised = (signatures[:, PNG_FORMAT] == GREY_16).all(axis=1) == millimetres
    return np.flatnonzero(~(as_promised & (ended | other_format))).tolist()


def _equals(columns: NDArray[np.uint8], expected: bytes) -> NDArray[np.bool_]:
    return (columns == np.frombuffer(expected, np.uint8)).all(axis=1)


def problem(path: str, millimetres: bool) -> tuple[str, str] | None:
    """What is wrong with this file and what to do, or None. Decodes all of it."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        return error.strerror or str(error), RESTORE
    return image_problem(data, millimetres)


def image_problem(data: bytes, millimetres: bool) -> tuple[str, str] | None:
    """The same of a file's bytes."""
    if not data:
        return "the file is empty", RESTORE
    try:
        with Image.open(BytesIO(data)) as image:
            image.load()
    except Exception as error:  # of many types: Pillow's decoders raise their own
        return f"damaged or no image ({str(error) or type(error).__name__})", RESTORE
    is_png = data.startswith(PNG_START)
    if is_png and PNG_END not in data:  # Pillow takes it, DALI does not
        return "damaged: the end of the PNG is missing", RESTORE
    is_grey_16 = is_png and tuple(data[PNG_FORMAT]) == GREY_16
    if millimetres and not is_grey_16:
        kind = (
            f"{data[PNG_FORMAT][0]}-bit {image.mode} PNG" if is_png else f"a {image.format} image"
        )
        fix = "use the depth maps in millimetres or set data.depth_encoding=color"
        return f"{kind} where data.depth_encoding promises 16-bit grey PNG", fix
    if is_grey_16 and not millimetres:
        return "16-bit depth where an image is expected", "set data.depth_encoding=metric"
    return None
