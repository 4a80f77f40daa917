"""What NVDEC decodes: asked of the driver by a child process, and remembered."""

import ctypes
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import conftest
from nvdecs import GPUS, HAS_AV1, answer, driver, need, need_kind, refuse, skip_counts
from pipelines import nvdec
from pipelines.nvdec import CODECS, FORMATS, Caps, Decoders, Limits, Picture, gpu_and_driver


@pytest.fixture(autouse=True)
def with_nothing_known(nothing_known: None) -> None:
    """Every test begins with no answer."""


def test_the_question_has_the_layout_of_the_header() -> None:
    """CUVIDDECODECAPS of cuviddec.h, on 64-bit Linux."""
    offsets = {name: getattr(Caps, name).offset for name, _ in Caps._fields_}
    assert offsets == {
        "codec": 0, "chroma": 4, "bits_minus_8": 8, "reserved1": 12, "is_supported": 24,
        "num_decoders": 25, "output_formats": 26, "most_width": 28, "most_height": 32,
        "most_blocks": 36, "least_width": 40, "least_height": 42, "has_histogram": 44,
        "histogram_bits": 45, "histogram_bins": 46, "reserved3": 48,
    }  # fmt: skip
    assert ctypes.sizeof(Caps) == 88


@pytest.mark.parametrize(("name", "has_av1"), HAS_AV1.items())
def test_gpus_say_what_they_decode(name: str, has_av1: bool) -> None:
    said = answer(name)
    assert said.gpu == GPUS[name][0] and list(said.limits) == FORMATS
    assert said.limits["h264", 8] == Limits(48, 16, 4096, 4096, 65536)
    assert str(said.limits["hevc", 10]) == "144x144 to 8192x8192"
    for codec, bits in FORMATS:
        assert (said.limits[codec, bits] is not None) == (codec != "av1" or has_av1)
    assert nvdec.from_json(json.loads(json.dumps(said.as_json()))) == said


def test_a_picture_may_be_too_small_or_too_large() -> None:
    said = answer("ada")
    for width, height, fits in ((48, 16, True), (46, 16, False), (48, 14, False),
                                (4096, 4096, True), (4098, 16, False)):  # fmt: skip
        assert said.takes(Picture("h264", 8, width, height)) == fits
    # 2032 x 2032 are 16129 blocks of 16 x 16, of which MPEG-4 may have 8192.
    assert said.takes(Picture("mpeg4", 8, 2032, 1024))
    assert not said.takes(Picture("mpeg4", 8, 2032, 1040))


def test_a_driver_that_refuses_is_quoted() -> None:
    with pytest.raises(ValueError, match="cuInit of libcuda ends with error 999"):
        nvdec.ask(0, driver("ada", cuInit=lambda flags: 999))
    with pytest.raises(ValueError, match="holds the GPU exclusively, perhaps this run"):
        nvdec.ask(0, driver("ada", cuDevicePrimaryCtxRetain=lambda context, device: 46))
    with pytest.raises(ValueError, match=r"Caps of libnvcuvid\.so\.1 ends with error 801"):
        nvdec.ask(0, driver("ada", cuvidGetDecoderCaps=lambda caps: 801))


def test_an_answer_is_remembered_for_gpu_and_driver(put_gpu) -> None:
    asked = put_gpu("hopper")
    for _ in range(2):
        nvdec.decoders.cache_clear()  # as another process
        assert nvdec.decoders() == answer("hopper")
    assert len(asked) == 1
    put_gpu("hopper", "590.10")
    nvdec.decoders()
    assert len(asked) == 2
    put_gpu("ada")
    assert nvdec.decoders() == answer("ada") and len(asked) == 3
    put_gpu("hopper")
    assert nvdec.decoders() == answer("hopper") and len(asked) == 3


@pytest.mark.parametrize("damage", ["torn", "another kind", "fewer formats"])
def test_a_damaged_memory_is_asked_anew(put_gpu, tmp_path: Path, damage: str) -> None:
    asked = put_gpu("ada")
    nvdec.decoders()
    (file,) = (tmp_path / "user/rgbd-motion-engine").iterdir()
    key, value = json.loads(file.read_text())
    if damage == "torn":
        file.write_text(file.read_text()[:-9])
    else:
        value = 5 if damage == "another kind" else {**value, "formats": value["formats"][1:]}
        file.write_text(json.dumps([key, value]) + "\n")
    nvdec.decoders.cache_clear()
    assert nvdec.decoders() == answer("ada") and len(asked) == 2
    nvdec.decoders.cache_clear()
    assert nvdec.decoders() == answer("ada") and len(asked) == 2


def test_what_could_not_be_asked_is_not_remembered(put_gpu, monkeypatch) -> None:
    put_gpu("ada")
    with monkeypatch.context() as broken:
        refuse(broken, "gone")
        assert nvdec.decoders() == Decoders(problem="gone")
    nvdec.decoders.cache_clear()
    assert nvdec.decoders() == answer("ada")


CHILD = """
import sys
sys.path.insert(0, "tests")
import nvdecs
from pipelines import nvdec
print("a line of the driver's own")
real = nvdec.ask
nvdec.ask = lambda device_id: real(device_id, nvdecs.driver("ga100"))
sys.exit(nvdec.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("program", "problem"),
    [
        (CHILD, ""),
        ("import os; os.abort()", "asking ended by SIGABRT"),
        ("import time; time.sleep(60)", "no answer within 1 s"),
        ("import sys; sys.exit('lib.so: cannot open')", "lib.so: cannot open"),
        ("import sys; sys.exit(3)", "asking ended with status 3"),
        ("print('hello')", "asking printed 'hello'"),
        ("print('{\"gpu\": 1}')", "asking printed '{\"gpu\": 1}'"),
        ("print('{')", "asking printed '{'"),
    ],
)
def test_a_child_is_asked_and_whatever_befalls_it_is_one_line(
    monkeypatch, program: str, problem: str
) -> None:
    monkeypatch.setattr(nvdec, "TIMEOUT_S", 1.0 if "sleep" in program else 60.0)
    monkeypatch.setattr(nvdec, "gpu_and_driver", lambda device_id: "")
    monkeypatch.setattr(nvdec, "_command", lambda number: [sys.executable, "-c", program, "0"])
    said = nvdec.decoders()
    assert said == (Decoders(problem=problem) if problem else answer("ga100"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU answers")
def test_where_the_library_is_missing_the_real_child_says_so() -> None:
    assert nvdec.decoders().problem.startswith("libnvcuvid.so.1: cannot open shared object file")
    assert gpu_and_driver(0) == ""


def nvml(*names: str, mig: bool = False):
    """Stands in for ctypes.CDLL of a machine with these GPUs."""

    def write(place, value):
        place._obj.value = value
        return 0

    def text(buffer, value):
        buffer.value = value.encode()
        return 0

    functions = {
        "nvmlInit_v2": lambda: 0,
        "nvmlShutdown": lambda: 0,
        "nvmlSystemGetDriverVersion": lambda buffer, size: text(buffer, "580.65.06"),
        "nvmlDeviceGetCount_v2": lambda count: write(count, len(names)),
        "nvmlDeviceGetHandleByIndex_v2": lambda i, handle: write(handle, i.value + 1),
        "nvmlDeviceGetMigMode": lambda handle, now, later: write(now, mig),
        "nvmlDeviceGetName": lambda handle, buffer, size: text(buffer, names[handle.value - 1]),
    }
    return lambda name: SimpleNamespace(**functions)


def test_gpu_and_driver_are_named_without_a_context(monkeypatch) -> None:
    assert gpu_and_driver(0, nvml("NVIDIA H200")) == "NVIDIA H200; driver 580.65.06"
    same = nvml("NVIDIA H200", "NVIDIA H200")
    assert gpu_and_driver(0, same) == gpu_and_driver(1, same) == "NVIDIA H200; driver 580.65.06"
    mixed = nvml("NVIDIA H200", "NVIDIA L40S")
    assert gpu_and_driver(0, mixed) != gpu_and_driver(1, mixed)
    before = gpu_and_driver(0, mixed)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert gpu_and_driver(0, mixed) != before
    # A part of a GPU may have no decoder: every process asks its own.
    assert gpu_and_driver(0, nvml("NVIDIA H200", mig=True)) == ""
    assert gpu_and_driver(0, nvml()) == ""
    assert gpu_and_driver(0, lambda name: SimpleNamespace(nvmlInit_v2=lambda: 0)) == ""


def test_a_refusal_names_each_codec_once_and_the_sizes_that_fit() -> None:
    said = answer("hopper")
    pictures = [Picture("av1", 10, 640, 480), Picture("av1", 10, 320, 240),
                Picture("vp9", 8, 96, 96), Picture("h264", 8, 640, 480)]  # fmt: skip
    assert said.refusal(pictures[3:]) == ""
    assert said.refusal(pictures).startswith(
        "NVDEC of NVIDIA H200 does not decode AV1 of 10 bits, VP9 of 96x96 (it takes 128x128 to "
        "8192x8192): all videos"
    )
    assert "makes H.264" not in said.refusal(pictures[2:])  # which has its limits too


def test_skips_for_want_of_a_decoder_are_counted(put_gpu, capsys) -> None:
    put_gpu("ga100")
    reasons = []
    for kind in ("h264", "av1", "av1_odd", "hevc_10bit"):
        try:
            need_kind(kind)
        except pytest.skip.Exception as skip:
            reasons.append(f"Skipped: {skip}")
    assert skip_counts([*reasons, "Skipped: needs an NVIDIA GPU"]) == [
        "2 tests skipped: NVDEC of this GPU does not decode av1"
    ]
    reports = [SimpleNamespace(longrepr=("test_x.py", 7, reason)) for reason in reasons]
    conftest.pytest_terminal_summary(
        SimpleNamespace(stats={"skipped": reports}, write_line=lambda line, **style: print(line))
    )
    assert capsys.readouterr().out == "2 tests skipped: NVDEC of this GPU does not decode av1\n"


def test_a_gpu_that_does_not_say_skips_nothing(monkeypatch) -> None:
    refuse(monkeypatch, "libnvcuvid.so.1: gone")
    need("av1", ("hevc", 10))


@pytest.mark.gpu
def test_this_gpu_says_what_it_decodes() -> None:
    said = nvdec.decoders()
    assert not said.problem and said.gpu == torch.cuda.get_device_name(0)
    limits = said.limits["h264", 8]
    assert limits is not None and limits.takes(1920, 1080)
    assert set(CODECS) == {codec for codec, _ in said.limits}
