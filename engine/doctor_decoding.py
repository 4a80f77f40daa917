"""Decoders tried on small real files, made on the spot, by the paths that training takes. Runs in
the doctor's child processes (engine/doctor_probes.py); judges nothing."""

# DALI's type stubs have gaps.
# mypy: disable-error-code="attr-defined, no-any-return, arg-type, call-overload"

import ctypes
import importlib.metadata
import io
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipelines import nvdec

if TYPE_CHECKING:
    from pipelines.video import VideoInfo

Say = Callable[..., None]

WIDTH, HEIGHT, FRAMES = 160, 144, 8
"""NVDEC takes no smaller HEVC than 144 x 144."""

ENCODERS: dict[str, tuple[str, dict[str, str]]] = {
    "h264": ("libx264", {"g": "4"}),
    "hevc": ("libx265", {"x265-params": "keyint=4:log-level=none"}),
    "av1": ("libsvtav1", {"preset": "8", "crf": "20"}),
    "vp9": ("libvpx-vp9", {"auto-alt-ref": "0", "lag-in-frames": "0", "b": "1M", "cpu-used": "8"}),
    "vp8": ("libvpx", {"auto-alt-ref": "0", "lag-in-frames": "0", "b": "1M", "cpu-used": "8"}),
    "mpeg4": ("mpeg4", {"b": "2M"}),
    "mjpeg": ("mjpeg", {"qmax": "4"}),
}
CONTAINERS = {"vp9": "webm", "vp8": "webm", "mjpeg": "avi"}
"""`mp4` else. MPEG-4 too: without times, as in .avi, the GPU would not be given it."""

FRAME_STEP = 20
TOLERANCE = 9.0
"""Grey levels that the mean of a frame may be off: codecs lose some (AV1 7 at its fastest), but no
frame can pass for its neighbour."""
NVJPEG_HARDWARE = 3
"""NVJPEG_BACKEND_HARDWARE of nvjpeg.h."""

Feed = Callable[[], tuple[Any, ...]]


def probe_codec(say: Say, codec: str, device: str) -> None:
    """Frames of a small clip by FFmpeg and DALI on the CPU and, if `device` is `cuda`, by NVDEC."""
    say(doing="making a clip")
    video = clip(codec)
    if video is None:
        say(no_clip=True)
        return
    say(doing="decoding by FFmpeg")
    from pipelines.video import decode_frames
    from pipelines.video_index import probe

    info = probe(video)
    order = list(range(FRAMES))[::-1]
    say(ffmpeg=_fault(decode_frames(video, info, order), order), found=info.codec)
    if info.dali_cpu:
        say(doing="decoding by DALI on the CPU")
        say(dali_cpu=_fault(_by_dali(video, order, "cpu"), order))
    if device == "cuda":
        _probe_nvdec(say, video, info, order)


def _probe_nvdec(say: Say, video: bytes, info: "VideoInfo", order: list[int]) -> None:
    """Asks the GPU about the clip's codec, and decodes the clip by NVDEC if the GPU says it can."""
    assert info.dali_gpu and info.picture
    say(doing="asking NVDEC what it decodes", nvdec_asked=True)
    try:
        answer = nvdec.ask(0)
    except (OSError, ValueError) as error:
        say(nvdec_silent=str(error))
        return
    takes = answer.takes(info.picture)
    say(nvdec_limits=str(answer.limits[info.picture[:2]]) if takes else "")
    if takes:
        say(doing="decoding by NVDEC")
        say(nvdec=_fault(_by_dali(video, order, "gpu"), order))


def probe_ffmpeg(say: Say) -> None:
    """FFmpeg's libraries in PyAV, and the program that imageio-ffmpeg brings or finds."""
    say(doing="importing PyAV")
    import av

    say(av=av.__version__, libavcodec=".".join(map(str, av.library_versions["libavcodec"])))
    say(doing="running the ffmpeg program")
    import imageio_ffmpeg

    program = imageio_ffmpeg.get_ffmpeg_exe()
    done = subprocess.run([program, "-version"], capture_output=True, text=True, check=True)
    say(program=program, version=done.stdout.partition("\n")[0])
    video = _by_program("h264")
    say(works=video is not None)


def probe_lz4(say: Say, device: str) -> None:
    """Packed depth: compressed, and decompressed here and, if `device` is `cuda`, by DALI there."""
    say(doing="decompressing LZ4")
    import lz4.block

    depth = np.arange(48 * 64, dtype="<u2").reshape(48, 64) // 7
    data = lz4.block.compress(depth.tobytes(), store_size=False)
    raw = lz4.block.decompress(data, uncompressed_size=depth.nbytes)
    say(cpu=raw == depth.tobytes())
    if device != "cuda":
        return
    say(doing="decompressing LZ4 on the GPU")
    from nvidia.dali import fn

    from pipelines.lz4_graph import inflate_depth

    def graph() -> Any:
        packed, shape = fn.external_source(
            lambda: ([np.frombuffer(data, np.uint8)], [np.array([48, 64, 1], np.int32)]),
            num_outputs=2,
        )
        return inflate_depth(packed, shape)

    say(gpu=bool((_run(graph, "gpu")[..., 0] == depth).all()))


def probe_dali(say: Say) -> None:
    """DALI's packages, and a JPEG decoded on the CPU."""
    say(packages=_versions("nvidia-dali-"))
    say(doing="importing DALI")
    import nvidia.dali

    say(version=nvidia.dali.__version__)
    say(doing="decoding a JPEG by DALI on the CPU")
    say(cpu=_image_fault(_jpeg_by_dali("cpu")))


def probe_nvjpeg(say: Say) -> None:
    """A JPEG decoded on the GPU, and the engines that do it in hardware."""
    say(doing="decoding a JPEG by nvJPEG")
    say(gpu=_image_fault(_jpeg_by_dali("gpu")))
    say(doing="asking nvJPEG for its hardware")
    engines = _nvjpg_engines()
    if engines is not None:
        say(engines=engines)


def clip(codec: str) -> bytes | None:
    """A file of FRAMES frames, the n-th n * FRAME_STEP brighter than the first; None where nothing
    here encodes it."""
    return _by_pyav(codec) or _by_program(codec)


def frame(number: int) -> NDArray[np.uint8]:
    """(HEIGHT, WIDTH, 3) grey with a slope, so that it is more than one block."""
    slope = np.linspace(-15, 15, WIDTH) + np.linspace(-5, 5, HEIGHT)[:, None]
    grey = np.rint(50 + FRAME_STEP * number + slope).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def _by_pyav(codec: str) -> bytes | None:
    import av

    encoder, options = ENCODERS[codec]
    file = io.BytesIO()
    try:
        with (
            scheduled_as_before(),
            av.open(file, "w", format=CONTAINERS.get(codec, "mp4")) as container,
        ):
            stream: Any = container.add_stream(encoder, rate=30, options=options)
            stream.width, stream.height = WIDTH, HEIGHT
            stream.pix_fmt = _pixel_format(codec)
            stream.codec_context.thread_count = 1
            for number in range(FRAMES):
                picture = av.VideoFrame.from_ndarray(frame(number), "rgb24")
                picture.pts, picture.time_base = number, Fraction(1, 30)
                container.mux(stream.encode(picture))
            container.mux(stream.encode())
    except (av.FFmpegError, ValueError):  # this FFmpeg was built without the encoder
        return None
    return file.getvalue()


@contextmanager
def scheduled_as_before() -> Iterator[None]:
    """Gives the calling thread its scheduling back: run by root, SVT-AV1 makes the thread that
    opens it a real-time one, and so all that this thread starts: other processes stand still."""
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, *before)


def _by_program(codec: str) -> bytes | None:
    """By the ffmpeg program; into a pipe, where an .mp4 could not be written."""
    import imageio_ffmpeg

    encoder, options = ENCODERS[codec]
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24",
        "-s", f"{WIDTH}x{HEIGHT}", "-r", "30", "-i", "-", "-c:v", encoder,
        "-pix_fmt", _pixel_format(codec),
        *(part for key, value in options.items() for part in (f"-{key}", value)),
        "-f", "matroska", "-",
    ]  # fmt: skip
    raw = b"".join(frame(number).tobytes() for number in range(FRAMES))
    done = subprocess.run(command, input=raw, capture_output=True, check=False)
    return done.stdout if done.returncode == 0 and done.stdout else None


def _pixel_format(codec: str) -> str:
    return "yuvj420p" if codec == "mjpeg" else "yuv420p"


def _fault(frames: NDArray[np.uint8], numbers: list[int]) -> str:
    """What is wrong with decoded (T, h, w, 3) frames of these numbers; empty if nothing is."""
    if frames.shape != (len(numbers), HEIGHT, WIDTH, 3):
        return f"frames of shape {frames.shape}"
    for number, found in zip(numbers, frames, strict=True):
        off = float(np.abs(found.astype(float).mean((0, 1)) - frame(number).mean()).max())
        if off > TOLERANCE:
            return f"frame {number} is off by {off:.0f} grey levels"
    return ""


def _by_dali(video: bytes, numbers: list[int], device: str) -> NDArray[np.uint8]:
    from nvidia.dali import fn

    from pipelines.video_graph import decode_video

    def graph() -> Any:
        encoded, wanted = fn.external_source(
            lambda: ([np.frombuffer(video, np.uint8)], [np.array(numbers, np.int32)]),
            num_outputs=2,
        )
        return decode_video(encoded, wanted, device)

    return _run(graph, device)


def _jpeg_by_dali(device: str) -> NDArray[np.uint8]:
    from nvidia.dali import fn
    from PIL import Image

    from pipelines.transforms import decode_color

    file = io.BytesIO()
    Image.fromarray(frame(0)).save(file, "JPEG", quality=95)
    data = np.frombuffer(file.getvalue(), np.uint8)
    return _run(lambda: decode_color(fn.external_source(lambda: [data]), device), device)


def _run(graph: Callable[[], Any], device: str) -> NDArray[Any]:
    """The only sample of a graph's only output, on the CPU."""
    from nvidia.dali import pipeline_def

    gpu = device == "gpu"
    build = pipeline_def(
        graph, batch_size=1, num_threads=1, device_id=0 if gpu else None, prefetch_queue_depth=1
    )
    (output,) = build().run()
    return np.array((output.as_cpu() if gpu else output).at(0))


def _image_fault(image: NDArray[np.uint8]) -> str:
    off = np.abs(image.astype(int) - frame(0)).max() if image.shape == frame(0).shape else 255
    return "" if off <= TOLERANCE else f"pixels are off by {off} grey levels"


def _versions(prefix: str) -> dict[str, str]:
    """Installed packages by name."""
    names = {(found.metadata["Name"] or "").lower(): found.version
             for found in importlib.metadata.distributions()}  # fmt: skip
    return {name: version for name, version in sorted(names.items()) if name.startswith(prefix)}


def _nvjpg_engines() -> int | None:
    """0: this GPU has none; None: nvJPEG could not be asked."""
    import nvidia

    folders = [Path(folder) for folder in nvidia.__path__]
    for path in sorted(file for f in folders for file in f.glob("*/lib/libnvjpeg.so.*")):
        library = ctypes.CDLL(str(path))
        handle, engines, cores = ctypes.c_void_p(), ctypes.c_uint(), ctypes.c_uint()
        made = library.nvjpegCreateEx(
            NVJPEG_HARDWARE, None, None, ctypes.c_uint(0), ctypes.byref(handle)
        )
        if made != 0:
            return 0
        asked = getattr(library, "nvjpegGetHardwareDecoderInfo", None)
        if asked and asked(handle, ctypes.byref(engines), ctypes.byref(cores)) == 0:
            return engines.value
    return None
