"""Is a file what it promises? A glance at a batch's signatures, and a slow look where that or DALI
finds fault. Decodes nothing for training."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import fn
from nvidia.dali.pipeline import Pipeline
from PIL import Image

from pipelines import transforms
from pipelines.image_structure import damage, located

JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
PNG_START, PNG_END = b"\x89P", b"IEND\xaeB`\x82"
TIFF_II, TIFF_MM = b"II*\0", b"MM\0*"
PNG_FORMAT = slice(24, 26)
"""Bytes of a PNG file that give its bits per channel and its colour type."""
GREY_16 = (16, 0)

DALI_FORMATS = frozenset({"JPEG", "MPO", "PNG", "BMP", "TIFF", "PPM", "JPEG2000", "WEBP"})
"""Pillow's names of the formats that DALI's image decoder knows."""

RESTORE = "restore it or take its clip off the list"


def suspects(signatures: NDArray[np.uint8], millimetres: bool) -> list[int]:
    """(N, 34) first 26 and last 8 bytes of N files -> places of those that deserve a slow look.

    They are a JPEG or PNG without its end mark, and a 16-bit grey PNG where `millimetres` does not
    promise one, or anything else where it does; and TIFF, whose depth shows further on. Bytes after
    the end mark are legal: a suspect may be sound. DALI is silent about wrong bits, and about more
    on a GPU.
    """
    start = signatures[:, :2]
    may_be_deep = _equals(signatures[:, :4], TIFF_II) | _equals(signatures[:, :4], TIFF_MM)
    other_format = ~(_equals(start, JPEG_START) | _equals(start, PNG_START))
    ended = _equals(signatures[:, -2:], JPEG_END) | _equals(signatures[:, -8:], PNG_END)
    as_promised = (signatures[:, PNG_FORMAT] == GREY_16).all(axis=1) == millimetres
    return np.flatnonzero(~(as_promised & (ended | other_format)) | may_be_deep).tolist()


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
    try:
        with Image.open(BytesIO(data)) as image:
            deep = image.mode[0] in "IF"
            image.load()
    except Exception as error:  # of many types: Pillow's decoders raise their own
        return damage(data, error), RESTORE
    is_png = data.startswith(PNG_START)
    if is_png and (where := located(data)):  # Pillow takes it, DALI does not
        return where, RESTORE
    is_grey_16 = is_png and tuple(data[PNG_FORMAT]) == GREY_16
    if millimetres and not is_grey_16:
        kind = (
            f"{data[PNG_FORMAT][0]}-bit {image.mode} PNG" if is_png else f"a {image.format} image"
        )
        fix = "use the depth maps in millimetres or set data.depth_encoding=color"
        return f"{kind} where data.depth_encoding promises 16-bit grey PNG", fix
    if image.format not in DALI_FORMATS:
        return f"a {image.format} image, which DALI does not decode", "make it a JPEG or PNG"
    if (is_grey_16 or deep) and not millimetres:
        return "16-bit depth where an image is expected", "set data.depth_encoding=metric"
    return None


def dali_refuses(data: bytes) -> str:
    """What is wrong with an image that DALI alone does not decode, and what to do."""
    where = f" ({where})" if (where := located(data)) else ""
    return f"DALI cannot decode it, though others can{where}: write it anew with another program"


def first_refused(images: Sequence[bytes], millimetres: bool) -> int | None:
    """The first of these images, sound as far as Pillow can tell, that DALI does not decode on the
    CPU."""
    if not images or _decodes(images, millimetres):
        return None
    return next((i for i, data in enumerate(images) if not _decodes([data], millimetres)), None)


def _decodes(images: Sequence[bytes], millimetres: bool) -> bool:
    decode = transforms.decode_depth if millimetres else transforms.decode_color
    pipeline = Pipeline(
        batch_size=len(images), num_threads=1, device_id=None, prefetch_queue_depth=1
    )
    with pipeline:
        data = [np.frombuffer(image, np.uint8) for image in images]
        pipeline.set_outputs(decode(fn.external_source(lambda: data), "cpu"))
    try:
        pipeline.run()
    except RuntimeError:
        return False
    return True
