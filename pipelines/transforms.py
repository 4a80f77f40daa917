"""The steps of the recipe as DALI operators on single frames, each held to pipelines/reference.py.
Their order, and the graphs made of them, are in pipelines/graph.py."""

# DALI's type stubs have gaps.
# mypy: disable-error-code="attr-defined, call-overload, return-value, arg-type"

import numpy as np
from nvidia.dali import fn
from nvidia.dali.pipeline import DataNode
from nvidia.dali.types import DALIDataType, DALIImageType, DALIInterpType

from pipelines.depth import JET, metric

HARDWARE_SHARE = 1.0
"""Share of a batch's JPEG files that a GPU's hardware decoder takes, its CUDA kernels the others.
The two differ in single pixels: a file must always meet the same one."""

HEADER, TRAILER = 26, 8
"""Bytes of a file kept by `signature`."""


def read(path: DataNode) -> DataNode:
    """(N,) path bytes -> the file's bytes, read in C++."""
    # Plain reads: a mapped file that shrinks or a network disk that goes kills the process.
    return fn.io.file.read(path, dont_use_mmap=True)


def signature(encoded: DataNode) -> DataNode:
    """(34,) bytes that tell a whole PNG or JPEG from a cut one (pipelines/verify.py)."""
    return fn.cat(encoded[:HEADER], encoded[-TRAILER:])


def no_signature() -> DataNode:
    """(0,) of samples that were found sound before."""
    return fn.constant(idata=[], shape=[0], dtype=DALIDataType.UINT8)


def decode_color(encoded: DataNode, device: str) -> DataNode:
    """Any image -> (h, w, 3) uint8 RGB as it is stored, on `device`."""
    return fn.decoders.image(
        encoded,
        device="mixed" if device == "gpu" else "cpu",
        output_type=DALIImageType.RGB,
        adjust_orientation=False,  # the published loader ignores EXIF
        jpeg_fancy_upsampling=True,  # colour planes are enlarged as libjpeg does
        hw_decoder_load=HARDWARE_SHARE,
    )


def decode_depth(encoded: DataNode, device: str) -> DataNode:
    """16-bit PNG -> (h, w, 1) uint16 on `device`; DALI decodes PNG on the CPU in any case."""
    # Not ANY_DATA, the other exact way: on a grey JPEG, DALI 2.4 then writes past its memory, and
    # the process dies before pipelines/verify.py can tell why.
    depth = fn.decoders.image(encoded, output_type=DALIImageType.GRAY, dtype=DALIDataType.UINT16)
    return depth.gpu() if device == "gpu" else depth


def cut(depth: DataNode, box: DataNode) -> DataNode:
    """The part of each frame inside its `box` (left, top, width, height)."""
    return fn.slice(depth, start=box[:2], shape=box[2:], axis_names="WH")


def wrapped_jet(depth: DataNode) -> DataNode:
    """(h, w, 1) millimetres -> (h, w, 3): (-mm) mod 256 in the published colours."""
    wrapped = fn.cast(-depth & 255, dtype=DALIDataType.UINT8)
    return fn.cat(*(_look_up(wrapped, JET[:, channel]) for channel in range(3)), axis=2)


def metric_grey(depth: DataNode, near_far_mm: tuple[int, int]) -> DataNode:
    """(h, w, 1) millimetres -> (h, w, 3) equal channels, 255 at the near end, 0 at the far."""
    levels = metric(np.arange(near_far_mm[1] + 1, dtype=np.uint16), near_far_mm)
    grey = _look_up(depth, levels)
    return fn.cat(grey, grey, grey, axis=2)


def _look_up(frames: DataNode, table: np.ndarray) -> DataNode:
    """`table[frames]`, its last value beyond its end."""
    return fn.lookup_table(
        frames,
        keys=list(range(len(table))),
        values=table.tolist(),
        default_value=float(table[-1]),
        dtype=DALIDataType.UINT8,
    )


def rotate(frames: DataNode, angle: DataNode, turned_as: DataNode | None = None) -> DataNode:
    """Counter-clockwise by `angle` degrees at the frame's own size, bilinear, black outside.

    OpenCV turns about (w/2, h/2) counted from the middle of the first pixel, DALI counts from its
    corner: half a pixel more. Angle 0 is an exact copy. With `turned_as`, width and height of
    frames of another modality, what those and these show at one place stays at one place
    (pipelines/view.py).
    """
    shape = frames.shape(dtype=DALIDataType.FLOAT)
    size = fn.stack(shape[-2], shape[-3])  # of (h, w, C) and of (T, h, w, C)
    if turned_as is None:
        matrix = fn.transforms.rotation(angle=angle, center=size / 2 + 0.5)
    else:
        matrix = fn.transforms.scale(scale=turned_as / size)
        matrix = fn.transforms.rotation(matrix, angle=angle, center=turned_as / 2 + 0.5)
        matrix = fn.transforms.scale(matrix, scale=size / turned_as)
    return fn.warp_affine(frames, matrix=matrix, fill_value=0)


def resize(frames: DataNode, width: int, height: int) -> DataNode:
    """Pillow's bicubic resize: antialiased; columns, rounded to uint8, then rows.

    In one step DALI keeps fractions between the axes: 0.14 grey levels from Pillow on a photo and
    more than 2 on 0.2 % of a JET frame; in two steps 0.001, and none. Same size: an exact copy.
    Shrunk to a third or less, the outermost pixels differ visibly (up to 16 levels at 320x240 ->
    72x72, 0.1 % of the values): beyond the border DALI repeats it, Pillow sees nothing.
    """
    return _stretch(_stretch(frames, resize_x=width), resize_y=height)


def _stretch(frames: DataNode, **side: int) -> DataNode:
    """Gives one side a new length and leaves the other."""
    return fn.resize(
        frames, mode="stretch", interp_type=DALIInterpType.INTERP_CUBIC, antialias=True, **side
    )


def crop_and_flip(frames: DataNode, corner: DataNode, side: int, flip: DataNode) -> DataNode:
    """The square of `side` at `corner` (left, top), mirrored left to right where `flip` is 1."""
    square = fn.slice(frames, start=corner, shape=(side, side), axis_names="WH")
    return fn.flip(square, horizontal=flip)


def normalise(pixels: DataNode, dtype: DALIDataType, layout: str) -> DataNode:
    """(v - 127.5) / 128 in FLOAT or FLOAT16: multiples of 1/256 below 1, exact in both."""
    return fn.crop_mirror_normalize(
        pixels, mean=127.5, std=128.0, dtype=dtype, output_layout=layout
    )
