"""Packed 16-bit depth as a step of a DALI graph: LZ4 blocks in, frames on the GPU out. Not for the
CPU, where DALI has no such operator and `Pack.depth_frames` gives the same frames."""

# DALI's type stubs have gaps.
# mypy: disable-error-code="attr-defined, call-overload, return-value"

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import fn
from nvidia.dali.pipeline import DataNode
from nvidia.dali.types import DALIDataType

from pipelines.pack_format import LZ4, TrackInfo


def inflate_depth(encoded: DataNode, shape: DataNode) -> DataNode:
    """(n,) bytes of one frame as `Pack.encoded` gives them, and its (3,) shape h, w, 1, both on the
    CPU -> (h, w, 1) uint16 on the GPU.

    Only compressed bytes cross the bus. A frame is a sample, as everywhere in the graphs: `shape`
    may differ from frame to frame, and no chunks are named. The operator does not hold its input to
    the shape (it can, at the price of waiting for the GPU in each batch): that is done before, by
    the CRC32 of bytes whose shape their writer knew.
    """
    return fn.decoders.inflate(
        encoded.gpu(), shape=shape, dtype=DALIDataType.UINT16, layout="HWC", algorithm="LZ4"
    )


def inflate_shapes(infos: Sequence[TrackInfo], num_frames: int) -> NDArray[np.int32]:
    """(N, 3) shapes of T frames of each clip, clip after clip."""
    assert all(info.encoding == LZ4 for info in infos)
    return np.repeat(
        np.array([(info.height, info.width, 1) for info in infos], np.int32), num_frames, axis=0
    )
