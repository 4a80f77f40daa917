from nvidia.dali import fn
from nvidia.dali.types import DALIDataType


def lz4_frames(encoded, size):
    return fn.decoders.inflate(encoded.gpu(), shape=size, dtype=DALIDataType.UINT16)
