"""The driver's libraries as they answer on several GPUs, and what tests ask of the GPU that is
here."""

import ctypes
import struct
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines import nvdec
from pipelines.nvdec import CODECS, Decoders

LACKING = "NVDEC of this GPU does not decode"
"""How the reason of a skip begins; tests/conftest.py counts these."""

H264, HEVC, AV1, VP9, VP8, MPEG4, JPEG = 4, 8, 11, 10, 9, 2, 5
"""cudaVideoCodec of cuviddec.h."""
SIZES = {
    MPEG4: (48, 16, 2032, 2032, 8192),
    H264: (48, 16, 4096, 4096, 65536),
    JPEG: (64, 64, 32768, 16384, 67108864),
    HEVC: (144, 144, 8192, 8192, 262144),
    VP8: (48, 16, 4096, 4096, 65536),
    VP9: (128, 128, 8192, 8192, 262144),
    AV1: (128, 128, 8192, 8192, 262144),
}
"""Least and most width and height, and most macroblocks, where there is a decoder."""
TEN_BIT = (HEVC, VP9, AV1)

WITHOUT_AV1 = frozenset(SIZES) - {AV1}
GPUS = {
    "hopper": ("NVIDIA H200", WITHOUT_AV1),
    "ga100": ("NVIDIA A100-SXM4-80GB", WITHOUT_AV1),
    "ga10x": ("NVIDIA A10", frozenset(SIZES)),
    "ada": ("NVIDIA L40S", frozenset(SIZES)),
}
"""Names and decoders by the NVDEC application note 13.0, table 1."""

HAS_AV1 = {"hopper": False, "ga100": False, "ga10x": True, "ada": True}


def driver(gpu: str, **broken: Callable[..., int]) -> Callable[[str], Any]:
    """Stands in for ctypes.CDLL; `broken` replaces functions of the libraries by their names.

    The answer is written into the caller's memory at the offsets of the header, not by ours.
    """
    name, decoded = GPUS[gpu]

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
    def get_decoder_caps(address: int) -> int:
        memory = (ctypes.c_ubyte * 88).from_address(address)
        codec, chroma, minus_8 = struct.unpack_from("<iiI", memory, 0)
        supported = chroma == 1 and codec in decoded
        supported &= minus_8 == 0 or (minus_8 == 2 and codec in TEN_BIT)
        least_w, least_h, most_w, most_h, blocks = SIZES[codec] if supported else (0,) * 5
        struct.pack_into("<BBH", memory, 24, supported, 7 if supported else 0, 3)
        struct.pack_into("<IIIHH", memory, 28, most_w, most_h, blocks, least_w, least_h)
        return 0

    def get_name(buffer: Any, size: Any, device: Any) -> int:
        buffer.value = name.encode()
        return 0

    sound = ("cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuCtxSetCurrent")
    cuda = dict.fromkeys(sound, lambda *arguments: 0) | {"cuDeviceGetName": get_name}
    libraries = {
        "libcuda.so.1": SimpleNamespace(**(cuda | broken)),
        "libnvcuvid.so.1": SimpleNamespace(**({"cuvidGetDecoderCaps": get_decoder_caps} | broken)),
    }
    return libraries.__getitem__


def answer(gpu: str) -> Decoders:
    """What a GPU of GPUS says."""
    return nvdec.ask(0, driver(gpu))


def refuse(monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    """Lets every question end with an OSError."""

    def ask_child(command):
        raise OSError(reason)

    monkeypatch.setattr(nvdec, "_ask_child", ask_child)


def need(*formats: tuple[str, int] | str) -> None:
    """Skips a test where the GPU says that it decodes no such codec, or none of so many bits (8).
    A GPU that does not say is no reason: the test goes on, and fails."""
    said = nvdec.decoders()
    wanted = [(each, 8) if isinstance(each, str) else each for each in formats]
    lacking = [] if said.problem else [f for f in wanted if said.limits[f] is None]
    if lacking:
        names = [codec if bits == 8 else f"{codec} of {bits} bits" for codec, bits in lacking]
        pytest.skip(f"{LACKING} {', '.join(names)}")


def need_kind(kind: str) -> None:
    """`need` for a kind of tests/videos.py."""
    codec = kind.partition("_")[0]
    assert codec in CODECS
    need((codec, 10 if "10bit" in kind else 8))


def skip_counts(reasons: Iterable[str]) -> list[str]:
    """`3 tests skipped: NVDEC of this GPU does not decode av1`: a line per reason of `need`."""
    ours = [reason.removeprefix("Skipped: ") for reason in reasons]
    ours = [reason for reason in ours if reason.startswith(LACKING)]
    counts = {reason: ours.count(reason) for reason in sorted(set(ours))}
    return [f"{n} test{'s' * (n > 1)} skipped: {reason}" for reason, n in counts.items()]
