"""Asks the driver's libnvcuvid which videos a GPU's NVDEC decodes; remembers it per GPU and driver.
Decodes nothing, and gives no CUDA context to the process that wants to know."""

import contextlib
import ctypes
import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pipelines.cache import open_user_cache


class Codec(NamedTuple):
    """A format that DALI decodes by NVDEC."""

    name: str
    number: int
    """cudaVideoCodec of NVIDIA's cuviddec.h."""

    bit_depths: tuple[int, ...] = (8,)


CODECS = {
    "h264": Codec("H.264", 4),
    "hevc": Codec("HEVC", 8, (8, 10)),
    "av1": Codec("AV1", 11, (8, 10)),
    "vp9": Codec("VP9", 10, (8, 10)),
    "vp8": Codec("VP8", 9),
    "mpeg4": Codec("MPEG-4", 2),
    "mjpeg": Codec("MJPEG", 5),
}
"""Codecs by FFmpeg's names."""

FORMATS = [(codec, bits) for codec, known in CODECS.items() for bits in known.bit_depths]
"""Codecs and bits per sample that a GPU is asked about."""

CHROMA_420 = 1
"""cudaVideoChromaFormat of cuviddec.h: colour at half the width and half the height."""

TO_H264 = "python -m pipelines.prepare DATASET --source DOWNLOAD --out OUT --as videos"
LIBRARY = "libnvcuvid.so.1"
EXCLUSIVE = 46
"""CUDA_ERROR_DEVICE_UNAVAILABLE of cuda.h."""
TIMEOUT_S = 60.0
"""A first CUDA context takes about a second, on a machine with many GPUs ten."""
KILL_WAIT_S = 2.0
"""A process that waits inside of a driver cannot be killed: nobody waits for it any longer."""


class Picture(NamedTuple):
    """Format and size of a video's pictures, at a chroma of 4:2:0."""

    codec: str
    """FFmpeg's name."""

    bits: int
    width: int
    height: int


class Limits(NamedTuple):
    """Sizes of the pictures that a decoder takes."""

    least_width: int
    least_height: int
    most_width: int
    most_height: int
    most_blocks: int
    """Blocks of 16 x 16 pixels in a picture."""

    def takes(self, width: int, height: int) -> bool:
        """Whether a picture is neither too small nor too large."""
        return (
            self.least_width <= width <= self.most_width
            and self.least_height <= height <= self.most_height
            and -(-width // 16) * -(-height // 16) <= self.most_blocks
        )

    def __str__(self) -> str:
        return f"{self.least_width}x{self.least_height} to {self.most_width}x{self.most_height}"


@dataclass(frozen=True)
class Decoders:
    """Answer of a GPU: the pictures that its NVDEC decodes."""

    gpu: str = ""
    """Name of the GPU."""

    limits: Mapping[tuple[str, int], Limits | None] = field(default_factory=dict)
    """Limits by codec and bits, for all FORMATS. None: there is no such decoder."""

    problem: str = ""
    """Reason why there is no answer; empty if there is one."""

    def takes(self, picture: Picture) -> bool:
        """Whether NVDEC decodes a picture; False where the GPU did not answer."""
        limits = self.limits.get((picture.codec, picture.bits))
        return limits is not None and limits.takes(picture.width, picture.height)

    def refusal(self, pictures: Iterable[Picture]) -> str:
        """Says in one line what NVDEC does not decode of these, what happens instead and what to
        do; empty if it decodes all."""
        refused = {p[:2]: p for p in sorted(pictures, reverse=True) if not self.takes(p)}
        if not refused:
            return ""
        if self.problem:
            return (
                f"NVDEC did not say what it decodes ({self.problem}): videos are decoded by FFmpeg "
                "on the CPU; python -m engine.doctor says how to fix it"
            )
        lacking = [f for f in sorted(refused) if self.limits.get(f) is None]
        words = [_name(*f) for f in lacking]
        words += [
            f"{_name(*f)} of {p.width}x{p.height} (it takes {self.limits[f]})"
            for f, p in sorted(refused.items()) if f not in lacking
        ]  # fmt: skip
        mend = f"; {TO_H264} makes H.264" if lacking else ""
        return (
            f"NVDEC of {self.gpu} does not decode {', '.join(words)}: all videos of a list that "
            f"holds such are decoded by FFmpeg on the CPU{mend}"
        )

    def as_json(self) -> dict[str, Any]:
        """Plain values, for `from_json`."""
        formats = [[*key, limits and list(limits)] for key, limits in self.limits.items()]
        return {"gpu": self.gpu, "formats": formats}


def from_json(value: Any) -> Decoders | None:
    """Restores what `as_json` made; None if the values are of another kind or of other formats."""
    try:
        limits = {
            (str(codec), int(bits)): None if most is None else Limits(*map(int, most))
            for codec, bits, most in value["formats"]
        }
        gpu = str(value["gpu"])
    except (KeyError, TypeError, ValueError):
        return None
    return Decoders(gpu, limits) if set(limits) == set(FORMATS) else None


@functools.cache
def decoders(device_id: int = 0) -> Decoders:
    """Returns what the CUDA device of this number decodes: remembered for its kind and driver, or
    asked by a child process, which needs about a second. Never raises."""
    key = gpu_and_driver(device_id)
    kept = open_user_cache("nvdec") if key else None
    if kept is not None and (known := from_json(kept.get(key))):
        return known
    try:
        answer = _ask_child(_command(device_id))
    except (OSError, ValueError) as error:  # to be tried again by the next run
        return Decoders(problem=str(error))
    if kept is not None:
        kept.put(key, answer.as_json())
    return answer


def gpu_and_driver(device_id: int, load: Callable[[str], Any] = ctypes.CDLL) -> str:
    """Names what an answer depends on, by NVML; empty where that is more than can be told.

    Among GPUs of several kinds, the number of a device means one of them only together with the
    variables that order and hide them.
    """
    try:
        driver, names = _nvml_facts(load("libnvidia-ml.so.1"))
    except (OSError, AttributeError):  # none, or of a driver too old
        return ""
    if not names or "" in names:
        return ""
    key = f"{', '.join(sorted(set(names)))}; driver {driver}"
    if len(set(names)) > 1:
        order = [os.environ.get(f"CUDA_{name}", "") for name in ("VISIBLE_DEVICES", "DEVICE_ORDER")]
        key += f"; device {device_id} of {', '.join(names)} by {order}"
    return key


def _nvml_facts(nvml: Any) -> tuple[str, list[str]]:
    """Version of the driver and names of the GPUs; none of them if NVML refuses."""
    if nvml.nvmlInit_v2():
        return "", []
    driver, count = ctypes.create_string_buffer(96), ctypes.c_uint()
    try:
        failed = nvml.nvmlSystemGetDriverVersion(driver, ctypes.c_uint(len(driver)))
        failed = failed or nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
        names = [] if failed else [_nvml_name(nvml, number) for number in range(count.value)]
    finally:
        nvml.nvmlShutdown()
    return driver.value.decode(errors="replace"), names


def _nvml_name(nvml: Any, number: int) -> str:
    """Name of the GPU; empty if it has none, or is shared out as MIG devices: their decoders are
    not the whole GPU's."""
    handle, name = ctypes.c_void_p(), ctypes.create_string_buffer(96)
    if nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(number), ctypes.byref(handle)):
        return ""
    now, later = ctypes.c_uint(), ctypes.c_uint()
    shared = nvml.nvmlDeviceGetMigMode(handle, ctypes.byref(now), ctypes.byref(later)) == 0
    if shared and now.value:
        return ""
    failed = nvml.nvmlDeviceGetName(handle, name, ctypes.c_uint(len(name)))
    return "" if failed else name.value.decode(errors="replace")


class Caps(ctypes.Structure):
    """CUVIDDECODECAPS of cuviddec.h: a question above, its answer below."""

    _fields_ = [
        ("codec", ctypes.c_int),
        ("chroma", ctypes.c_int),
        ("bits_minus_8", ctypes.c_uint),
        ("reserved1", ctypes.c_uint * 3),
        ("is_supported", ctypes.c_ubyte),
        ("num_decoders", ctypes.c_ubyte),
        ("output_formats", ctypes.c_ushort),
        ("most_width", ctypes.c_uint),
        ("most_height", ctypes.c_uint),
        ("most_blocks", ctypes.c_uint),
        ("least_width", ctypes.c_ushort),
        ("least_height", ctypes.c_ushort),
        ("has_histogram", ctypes.c_ubyte),
        ("histogram_bits", ctypes.c_ubyte),
        ("histogram_bins", ctypes.c_ushort),
        ("reserved3", ctypes.c_uint * 10),
    ]


def ask(device_id: int, load: Callable[[str], Any] = ctypes.CDLL) -> Decoders:
    """Asks the device. This process keeps a CUDA context by it: for child processes alone.

    Raises OSError where a library of the driver is missing, ValueError where it refuses.
    """
    cuvid, cuda = load(LIBRARY), load("libcuda.so.1")
    device, context = ctypes.c_int(), ctypes.c_void_p()
    name = ctypes.create_string_buffer(256)
    calls: list[tuple[str, tuple[Any, ...]]] = [
        ("cuInit", (ctypes.c_uint(0),)),
        ("cuDeviceGet", (ctypes.byref(device), ctypes.c_int(device_id))),
        ("cuDeviceGetName", (name, ctypes.c_int(len(name)), device)),
        ("cuDevicePrimaryCtxRetain", (ctypes.byref(context), device)),
        ("cuCtxSetCurrent", (context,)),
    ]
    for call, arguments in calls:
        status = getattr(cuda, call)(*arguments)
        if status == EXCLUSIVE:
            raise ValueError(
                "another process holds the GPU exclusively, perhaps this run; "
                "sudo nvidia-smi --compute-mode=DEFAULT"
            )
        if status:
            raise ValueError(f"{call} of libcuda ends with error {status}")
    limits: dict[tuple[str, int], Limits | None] = {}
    statuses = []
    for codec, bits in FORMATS:
        caps = Caps(codec=CODECS[codec].number, chroma=CHROMA_420, bits_minus_8=bits - 8)
        statuses.append(cuvid.cuvidGetDecoderCaps(ctypes.byref(caps)))
        decodes = statuses[-1] == 0 and caps.is_supported
        limits[codec, bits] = _limits(caps) if decodes else None
    if all(statuses):  # some: a driver too old to know the codec
        raise ValueError(f"cuvidGetDecoderCaps of {LIBRARY} ends with error {statuses[0]}")
    return Decoders(name.value.decode(errors="replace"), limits)


def _limits(caps: Caps) -> Limits:
    return Limits(
        caps.least_width, caps.least_height, caps.most_width, caps.most_height, caps.most_blocks
    )


def _name(codec: str, bits: int) -> str:
    name = CODECS[codec].name if codec in CODECS else codec
    return name if bits == 8 else f"{name} of {bits} bits"


def _command(device_id: int) -> list[str]:
    return [sys.executable, "-m", "pipelines.nvdec", str(device_id)]


def _ask_child(command: Sequence[str]) -> Decoders:
    """Returns the answer that a process prints. Raises OSError or ValueError if there is none."""
    root = Path(__file__).resolve().parents[1]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, errors="replace", cwd=root,
    )  # fmt: skip
    try:
        out, err = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=KILL_WAIT_S)
        raise ValueError(f"no answer within {TIMEOUT_S:g} s") from None
    if process.returncode < 0:
        raise ValueError(f"asking ended by {signal.Signals(-process.returncode).name}")
    lines = (out if process.returncode == 0 else err).strip().splitlines() or [""]
    if process.returncode:
        raise ValueError(lines[-1] or f"asking ended with status {process.returncode}")
    with contextlib.suppress(ValueError):
        if answer := from_json(json.loads(lines[-1])):
            return answer
    raise ValueError(f"asking printed {lines[-1][:80]!r}")


def main(arguments: Sequence[str]) -> int:
    """Asks the device of this number. Exit status 0 after a line of JSON, or 1 after a reason."""
    try:
        print(json.dumps(ask(int(arguments[0])).as_json()))
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(status)  # what was answered stays so, whatever the driver does at its end
