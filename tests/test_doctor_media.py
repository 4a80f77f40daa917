"""Decoders that work, and what it means where one does not."""

import pytest

from doctors import machine, named
from engine.doctor_children import Outcome
from engine.doctor_media import CODECS, codec_rows, ffmpeg_row, jpeg_rows, lz4_row
from engine.doctor_rows import ABSENT, FAIL, OK, WARN

VIDEOS = {"kind": "h264", "video": True}


def h264(row: str = "H.264", **options):
    return named(codec_rows(machine(**options)), row)


def test_every_codec_has_a_row_and_one_that_was_not_tried_says_so():
    rows = list(codec_rows(machine(gpus=1)))
    assert [row.name for row in rows] == [
        *CODECS.values(), "libnvcuvid", *(f"{name}, NVDEC" for name in CODECS.values()),
    ]  # fmt: skip
    assert named(rows, "AV1").state == ABSENT and "not checked" in named(rows, "AV1").found


def test_without_a_gpu_nvdec_is_one_row():
    assert h264("NVDEC").state == ABSENT


def test_a_codec_on_the_cpu():
    assert h264().state == OK
    assert h264(codec_h264={"dali_cpu": ""}).found == "a clip decoded by FFmpeg and DALI on the CPU"
    for broken in (
        {"ffmpeg": "frame 3 is off by 40 grey levels"},
        {"dali_cpu": "frames of shape (8, 1, 1, 3)"},
        Outcome({"doing": "decoding by FFmpeg"}, "ended by SIGSEGV while decoding by FFmpeg"),
    ):
        assert h264(codec_h264=broken).state == WARN
        assert h264(codec_h264=broken, config={}).state == FAIL  # its clips are H.264
    mend = h264(codec_h264={"ffmpeg": "x"}).mend
    assert mend == "pip install --force-reinstall av"


def test_a_codec_of_no_clip_of_the_run_is_no_failure():
    av1 = {"train": {"kinds": [{"kind": "av1", "video": True}]}, "eval": {"kinds": []}}
    assert h264(codec_h264={"ffmpeg": "x"}, config=av1).state == WARN


def test_where_nothing_encodes_a_clip_it_says_so():
    row = h264(codec_h264=Outcome({"no_clip": True}))
    assert row.state == ABSENT and row.found.startswith("not checked: neither PyAV nor")


def test_nvdec():
    row = h264("H.264, NVDEC", gpus=1)
    assert (row.state, row.found) == (OK, "a clip decoded by NVDEC; 48x16 to 4096x4096")
    crashed = Outcome(
        {"ffmpeg": "", "nvdec_asked": True, "nvdec_limits": "48x16 to 4096x4096"},
        "ended by SIGSEGV while decoding by NVDEC",
    )
    row = h264("H.264, NVDEC", gpus=1, codec_h264=crashed)
    assert row.state == WARN and "--as videos" in row.mend
    assert h264("H.264, NVDEC", gpus=1, codec_h264=crashed, config={}).state == FAIL
    # The CPU's part was sound before that.
    assert h264(gpus=1, codec_h264=crashed).state == OK
    on_cpu = h264("H.264, NVDEC", gpus=1, codec_h264=crashed, config={"wanted": "cpu"})
    assert on_cpu.state == WARN
    wrong = h264("H.264, NVDEC", gpus=1, codec_h264={"nvdec": "frame 1 is off by 99 grey levels"})
    assert wrong.state == WARN


LACKING = Outcome({"ffmpeg": "", "nvdec_asked": True, "nvdec_limits": ""})
SILENT = Outcome({"ffmpeg": "", "nvdec_asked": True, "nvdec_silent": "cannot open libnvcuvid"})
CRASHED = Outcome({"ffmpeg": "", "nvdec_asked": True}, "ended by SIGSEGV while asking NVDEC")


@pytest.mark.parametrize(
    ("outcome", "found", "mend"),
    [
        (LACKING, "this GPU has no H.264 decoder", "--as videos"),
        (SILENT, "NVDEC did not say what it decodes (cannot open libnvcuvid)", "-decode-580"),
        (CRASHED, "NVDEC did not say what it decodes (ended by SIGSEGV while asking NVDEC)",
         "-decode-580"),
    ],
)  # fmt: skip
def test_a_codec_without_a_decoder_is_for_the_cpu_and_stops_no_run(outcome, found, mend):
    row = h264("H.264, NVDEC", gpus=1, codec_h264=outcome)
    assert row.state == ABSENT
    assert row.found == f"{found}; its clips are decoded by FFmpeg on the CPU"
    needed = h264("H.264, NVDEC", gpus=1, codec_h264=outcome, config={})
    assert (needed.state, needed.found) == (WARN, found) and mend in needed.mend
    on_cpu = h264("H.264, NVDEC", gpus=1, codec_h264=outcome, config={"wanted": "cpu"})
    assert on_cpu.state == ABSENT
    assert h264(gpus=1, codec_h264=outcome).state == OK


def test_the_library_for_nvdec_that_a_container_was_not_given():
    missing = {"libnvcuvid": "libnvcuvid.so.1: cannot open shared object file"}
    for config in ({}, {"config": {}}):  # FFmpeg decodes what NVDEC does not
        row = h264("libnvcuvid", gpus=1, place="docker", driver=missing, **config)
        assert row.state == WARN and "NVIDIA_DRIVER_CAPABILITIES=compute,video,utility" in row.mend
    assert h264("libnvcuvid", gpus=1, driver=missing).mend.endswith("libnvidia-decode-580")


def test_ffmpeg():
    assert ffmpeg_row(machine()).state == OK
    for broken in ({"works": False}, Outcome({}, "ended by SIGILL")):
        assert ffmpeg_row(machine(ffmpeg=broken)).state == WARN  # training does without


def test_nvjpeg_and_its_engines():
    rows = list(jpeg_rows(machine(gpus=1)))
    assert [row.state for row in rows] == [OK, OK] and rows[1].found.startswith("7 engines")
    assert [row.state for row in jpeg_rows(machine())] == [ABSENT, ABSENT]
    none = list(jpeg_rows(machine(gpus=1, nvjpeg={"engines": 0})))
    assert [row.state for row in none] == [OK, ABSENT]
    # A run of frames needs it, one of videos does not.
    broken = Outcome({}, "ended by SIGSEGV while decoding a JPEG by nvJPEG")
    assert named(jpeg_rows(machine(gpus=1, nvjpeg=broken)), "nvJPEG").state == FAIL
    videos = machine(gpus=1, nvjpeg=broken, config={"device": "cuda"})
    assert named(jpeg_rows(videos), "nvJPEG").state == WARN


def test_lz4():
    assert lz4_row(machine()).found == "decompressed on the CPU"
    assert lz4_row(machine(gpus=1)).found == "decompressed on the CPU and on the GPU"
    assert lz4_row(machine(lz4={"cpu": False})).state == WARN
    kinds = {"train": {"kinds": [{"kind": "lz4", "video": False}]}}
    assert lz4_row(machine(lz4={"cpu": False}, config=kinds)).state == FAIL
    assert "nvidia-dali-cuda120" in lz4_row(machine(gpus=1, lz4={"gpu": False})).mend
