"""The doctor's own small clips, and decoders held to them."""

import io
import os

import av
import numpy as np
import pytest

from engine import doctor_decoding
from engine.doctor_decoding import (
    ENCODERS,
    FRAMES,
    HEIGHT,
    WIDTH,
    _by_program,
    _fault,
    clip,
    frame,
    probe_codec,
    probe_dali,
    probe_ffmpeg,
    probe_lz4,
)
from nvdecs import answer, need
from test_doctor_probes import Said, probed


@pytest.fixture
def said() -> Said:
    return Said()


@pytest.mark.parametrize("codec", ENCODERS)
@pytest.mark.parametrize("make", [clip, _by_program])
def test_clips_are_of_their_codec_and_grow_brighter(codec, make):
    scheduling = os.sched_getscheduler(0)
    with av.open(io.BytesIO(make(codec))) as container:
        assert container.streams.video[0].codec_context.codec.canonical_name == codec
        means = [picture.to_ndarray(format="rgb24").mean() for picture in container.decode(video=0)]
    assert len(means) == FRAMES and os.sched_getscheduler(0) == scheduling
    assert np.abs(np.array(means) - (50 + 20 * np.arange(FRAMES))).max() < 9


@pytest.mark.parametrize("codec", ENCODERS)
def test_every_codec_decodes_here_and_would_be_given_to_nvdec(said, codec):
    probe_codec(said, codec, "cpu")
    assert (said["ffmpeg"], said["found"]) == ("", codec)
    assert said.get("dali_cpu", "") == "" and ("dali_cpu" in said) == (
        codec in ("vp8", "vp9", "mjpeg")
    )
    from pipelines.video_index import probe

    assert probe(clip(codec)).dali_gpu


def test_where_pyav_has_no_encoder_the_program_makes_the_clip(said, monkeypatch):
    monkeypatch.setitem(ENCODERS, "h264", ("no_such_encoder", {}))
    assert clip("h264") is None
    monkeypatch.undo()
    monkeypatch.setattr(doctor_decoding, "_by_pyav", lambda codec: None)
    probe_codec(said, "h264", "cpu")
    assert (said["ffmpeg"], said["found"]) == ("", "h264")
    monkeypatch.setattr(doctor_decoding, "_by_program", lambda codec: None)
    empty = Said()
    probe_codec(empty, "h264", "cpu")
    assert empty["no_clip"] is True and "ffmpeg" not in empty


def test_wrong_frames_are_noticed():
    right = np.stack([frame(number) for number in (3, 0)])
    assert _fault(right, [3, 0]) == ""
    assert _fault(right, [3, 1]) == "frame 1 is off by 20 grey levels"
    assert _fault(np.zeros_like(right), [3, 0]) == "frame 3 is off by 110 grey levels"
    assert "shape" in _fault(right[:, :-1], [3, 0])
    green = right.copy()
    green[..., 1] = 0  # its mean over all channels would pass for a darker frame
    assert "off by" in _fault(green, [3, 0])


def test_frames_are_as_said():
    assert frame(0).shape == (HEIGHT, WIDTH, 3) and frame(0).std() > 5
    assert frame(7).mean() - frame(0).mean() == pytest.approx(140)


def test_dali_ffmpeg_and_lz4(said):
    probe_dali(said)
    assert said["cpu"] == "" and any("dali" in name for name in said["packages"])
    probe_ffmpeg(said)
    assert said["works"] is True and said["version"].startswith("ffmpeg version")
    probe_lz4(said, "cpu")
    assert said["cpu"] is True


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch):
    """Puts a GPU of tests/nvdecs.py into this machine, whose decoder gives the CPU's frames."""

    def put(name: str) -> list[str]:
        decoded: list[str] = []

        def by_dali(video, numbers, device):
            decoded.append(device)
            return np.stack([frame(number) for number in numbers])

        said = answer(name)
        monkeypatch.setattr(doctor_decoding.nvdec, "ask", lambda device_id: said)
        monkeypatch.setattr(doctor_decoding, "_by_dali", by_dali)
        return decoded

    return put


@pytest.mark.parametrize(("name", "limits"), [("hopper", ""), ("ada", "128x128 to 8192x8192")])
def test_a_clip_goes_to_nvdec_only_if_the_gpu_decodes_such(said, gpu, name, limits):
    decoded = gpu(name)
    probe_codec(said, "av1", "cuda")
    assert (said["nvdec_asked"], said["nvdec_limits"]) == (True, limits)
    assert said.get("nvdec") == ("" if limits else None) and decoded == ["gpu"] * bool(limits)


def test_a_gpu_that_does_not_say_is_given_no_clip(said, gpu, monkeypatch):
    decoded = gpu("ada")

    def ask(device_id):
        raise OSError("libnvcuvid.so.1: cannot open shared object file")

    monkeypatch.setattr(doctor_decoding.nvdec, "ask", ask)
    probe_codec(said, "h264", "cuda")
    assert said["nvdec_silent"].startswith("libnvcuvid.so.1: cannot open")
    assert "nvdec_limits" not in said and not decoded


@pytest.mark.gpu
@pytest.mark.parametrize("codec", ENCODERS)
def test_nvdec_decodes_a_clip_of_every_codec_that_the_gpu_has(codec):
    need(codec)
    assert probed("codec", codec, "cuda").get("nvdec") == ""


@pytest.mark.gpu
def test_the_gpus_other_decoders():
    assert probed("nvJPEG").get("gpu") == ""
    assert probed("LZ4", "cuda").get("gpu") is True
