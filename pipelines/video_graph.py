"""Videos as DALI operators: encoded bytes and frame numbers -> frames. Only for files that `probe`
of pipelines/video_index.py has passed; VideoInfo says which backend takes which, and the GPU what
its NVDEC decodes (pipelines/nvdec.py).

Why only those, with DALI 2.4:
- A frame number past the end gives a black frame and no error. DALI counts packets: of a VP8 file,
  the pictures that are never shown too.
- Damaged bytes can end the process, on the CPU backend too, for one where the container notes
  smaller pictures than come out. Of 300 damaged files each, one VP9 and one MJPEG ended it; of 9000
  more, none of the 3376 that `probe` lets through to it.
- Frames are found by their packets' times, which an .avi does not have: its B-frames, by DALI's
  source, come in the order of decoding. pipelines/video_copy.py makes a file with times of it.
- The rotation that a file notes is ignored.
"""

# DALI's type stubs have gaps.
# mypy: disable-error-code="attr-defined, no-any-return"

from nvidia.dali import fn
from nvidia.dali.pipeline import DataNode


def decode_video(encoded: DataNode, frames: DataNode, device: str) -> DataNode:
    """A file's bytes and T int32 numbers in any order, repeats allowed -> (T, h, w, 3) uint8 RGB,
    layout FHWC, on `device` ("cpu" or "gpu").

    The CPU backend's pixels are those of pipelines/video.py, bit for bit. NVDEC's come of the same
    matrix and interpolated chroma too; tests marked gpu hold them to 3 levels on average. Either
    decodes from the key frame ahead, one file per thread.
    """
    return fn.decoders.video(
        encoded, frames=frames, device="mixed" if device == "gpu" else "cpu", affine=False
    )
