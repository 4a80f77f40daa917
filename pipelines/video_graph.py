"""Videos as DALI operators: encoded bytes and frame numbers -> frames. Only for files that `probe`
of pipelines/video_index.py has passed; which backend takes which is said by VideoInfo.

Why only those, with DALI 2.4:
- A frame number past the end gives a black frame and no error.
- Damaged bytes can end the process: of 300 damaged files each, one VP9 and one MJPEG did (SIGSEGV
  on the CPU backend); `probe` refuses both.
- Frames are found by their packets' times. Where packets are not frames (VP8's hidden ones) or an
  .avi has B-frames, that is another frame, again without an error.
- The rotation that a file notes is ignored, here as in NVDEC.
"""

# DALI's type stubs have gaps.
# mypy: disable-error-code="attr-defined, no-any-return"

from nvidia.dali import fn
from nvidia.dali.pipeline import DataNode


def decode_video(encoded: DataNode, frames: DataNode, device: str) -> DataNode:
    """A file's bytes and T int32 numbers in any order, repeats allowed -> (T, h, w, 3) uint8 RGB,
    layout FHWC, on `device` ("cpu" or "gpu").

    The CPU backend's pixels are those of pipelines/video.py, bit for bit. NVDEC's differ by the
    rounding of the same formulas. Either decodes from the key frame ahead, in its own threads, one
    file per thread; NVDEC uses all of its engines.
    """
    return fn.decoders.video(
        encoded, frames=frames, device="mixed" if device == "gpu" else "cpu", affine=False
    )
