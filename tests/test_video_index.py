"""What is found out about video files, remembered, and refused."""

import os
import wave
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from nvdecs import answer
from packs import encode
from pipelines.cache import JsonLines
from pipelines.video import VideoInfo
from pipelines.video_index import Probe, probe, probe_videos
from videos import picture, turned, write_kind, write_video


def forget(_: str) -> None:
    """Takes what a cache has to say."""


def patched(path: Path, change: Callable[[bytearray], None]) -> str:
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)
    return str(path)


def test_what_is_found_out(tmp_path: Path) -> None:
    assert probe(str(write_kind(tmp_path, "h264", 30))) == VideoInfo(
        num_frames=30, width=160, height=144, codec="h264", pixel_format="yuv420p",
        quarter_turns=0, variable_rate=False, plain=True, interlaced=False,
        seek_points=((12, 6144), (24, 12288)),
    )  # fmt: skip


@pytest.mark.parametrize(
    "kind, codec, pixel_format, cpu, gpu",
    [
        ("h264", "h264", "yuv420p", False, True),
        ("h264_avi_bframes", "h264", "yuv420p", False, False),  # FFmpeg's guess of their times
        ("h264_10bit", "h264", "yuv420p10le", False, False),  # NVDEC has no H.264 High 10
        ("hevc", "hevc", "yuv420p", False, True),
        ("hevc_10bit", "hevc", "yuv420p10le", False, True),
        ("mpeg4", "mpeg4", "yuv420p", False, True),
        ("mjpeg", "mjpeg", "yuvj420p", True, True),
        ("mjpeg_422_odd", "mjpeg", "yuvj422p", True, False),
        ("vp8", "vp8", "yuv420p", True, True),
        ("vp9", "vp9", "yuv420p", True, True),
        ("vp9_odd", "vp9", "yuv420p", True, False),
        ("av1", "av1", "yuv420p", False, True),
    ],
)
def test_which_dali_decoders_take_it(tmp_path, kind, codec, pixel_format, cpu, gpu) -> None:
    info = probe(str(write_kind(tmp_path, kind, 15)))
    assert (info.codec, info.pixel_format) == (codec, pixel_format)
    assert (info.dali_cpu, info.dali_gpu) == (cpu, gpu)


def test_a_small_or_turned_video_is_not_for_nvdec(tmp_path: Path) -> None:
    small = probe(str(write_video(tmp_path / "s.webm", 3, "libvpx-vp9", size=(96, 96))))
    assert small.dali_cpu and small.picture == ("vp9", 8, 96, 96)
    assert small.dali_gpu and not answer("ada").takes(small.picture)
    upright = write_video(tmp_path / "v.mp4", 3, "libvpx-vp9")
    (tmp_path / "t.mp4").write_bytes(turned(upright.read_bytes(), 1))
    assert probe(str(upright)).dali_cpu
    info = probe(str(tmp_path / "t.mp4"))
    assert (info.width, info.height, info.quarter_turns) == (144, 160, 3)
    assert not info.dali_cpu and not info.dali_gpu


@pytest.mark.parametrize("count", [0, 7, 31, 10**6])
def test_a_wrong_count_in_the_header_does_not_matter(tmp_path: Path, count: int) -> None:
    def change(data: bytearray) -> None:
        for place in (data.index(b"avih") + 8 + 16, data.index(b"strh") + 8 + 32):
            assert int.from_bytes(data[place : place + 4], "little") == 30
            data[place : place + 4] = count.to_bytes(4, "little")

    for kind in ("mjpeg", "mpeg4_bframes", "h264_avi"):
        path = patched(write_kind(tmp_path, kind, 30), change)
        info = probe(path)
        assert info.num_frames == 30
        assert count >= 30 or count == 0 or not info.dali_cpu  # which refuses frames past it


def test_an_avi_without_index_or_with_dropped_frames_is_counted_by_its_frames(tmp_path) -> None:
    def drop_index(data: bytearray) -> None:
        place = data.rindex(b"idx1")
        data[place : place + 4] = b"JUNK"

    assert probe(patched(write_kind(tmp_path, "mpeg4", 30), drop_index)).num_frames == 30


@pytest.mark.parametrize(
    "kind", ["h264", "h264_avi", "h264_mkv", "hevc", "mpeg4_bframes", "mjpeg", "vp8", "vp9", "av1"]
)
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, kind: str) -> None:
    whole = write_kind(tmp_path, kind, 12)
    data, path = whole.read_bytes(), tmp_path / f"cut{whole.suffix}"
    for length in np.random.default_rng(0).integers(1, len(data), 40).tolist():
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match=rf"cut{whole.suffix}: .*restore it or take its clip"):
            probe(str(path))


@pytest.mark.parametrize("kind", ["h264", "h264_avi", "mpeg4_bframes", "mjpeg", "av1"])
def test_damage_is_named_with_frame_and_byte(tmp_path: Path, kind: str) -> None:
    path = write_kind(tmp_path, kind, 30)
    with av.open(str(path)) as container:
        packets = [(p.size, p.pos) for p in container.demux(video=0) if p.size]
    size, place = max(packets[15:])

    def change(data: bytearray) -> None:
        data[place + 8 : place + size] = b"\xa5" * (size - 8)

    with pytest.raises(
        ValueError, match=rf"{path.name}: damaged after \d+ frames, near byte {place}"
    ):
        probe(patched(path, change))


def test_a_frame_of_another_size_is_named_with_its_byte(tmp_path: Path) -> None:
    large, small = encode(picture(0), "JPEG"), encode(picture(0)[:96, :96], "JPEG")
    path = tmp_path / "two.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=30)
        stream.width, stream.height, stream.pix_fmt = 160, 144, "yuvj420p"
        container.start_encoding()
        for number, data in enumerate([large] * 4 + [small]):
            packet = av.Packet(data)
            packet.stream, packet.time_base = stream, Fraction(1, 30)
            packet.pts = packet.dts = number
            packet.is_keyframe = True
            container.mux(packet)
    start = path.read_bytes().index(small)
    words = r"frame 4 is \(96, 96\), those before \(160, 144\), near byte \d+; convert"
    with pytest.raises(ValueError, match=words) as caught:
        probe(str(path))
    assert start - 8 <= int(str(caught.value).split("near byte ")[1].split(";")[0]) <= start


def test_a_webm_with_damage_between_its_frames_is_refused(tmp_path: Path) -> None:
    """FFmpeg looks for the next frame that it recognises, and says nothing."""
    path = write_kind(tmp_path, "vp9", 30)
    with av.open(str(path)) as container:
        packets = [bytes(p) for p in container.demux(video=0) if p.size]
    place = path.read_bytes().index(packets[20]) - 6  # a block's mark, size, track, time and flags

    def change(data: bytearray) -> None:
        assert data[place] == 0xA3
        data[place : place + 6] = bytes(6)

    with pytest.raises(ValueError, match=rf"vp9\.webm: damaged at byte {place}"):
        probe(patched(path, change))


def test_pictures_larger_than_noted_are_not_for_dali(tmp_path: Path) -> None:
    """DALI 2.4 makes room for what the container notes, and writes what comes out."""

    def change(data: bytearray) -> None:
        place = data.index(b"\xb0\x81\xa0\xba\x81\x90")  # 160 x 144
        data[place + 2] = 0x70

    info = probe(patched(write_kind(tmp_path, "vp8", 12), change))
    assert (info.width, info.num_frames, info.plain) == (160, 12, False)
    assert not info.dali_cpu and not info.dali_gpu


def test_what_is_no_video_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.avi").touch()
    (tmp_path / "text.avi").write_text("NAME num_frames label\n" * 50)
    (tmp_path / "image.avi").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 16000, 0, "NONE", ""))
        sound.writeframes(bytes(16000))
    expected = {
        "absent.avi": "No such file or directory",
        "empty.avi": "damaged at byte 0: the file is empty",
        "text.avi": "damaged or no video: at byte 0 it begins with b'NAME num'",
        "image.avi": "damaged after 0 frames", "sound.wav": "holds no video", ".": "Is a directory",
    }  # fmt: skip
    for name, reason in expected.items():
        with pytest.raises(ValueError, match=f"{reason}.*(restore|correct)") as caught:
            probe(str(tmp_path / name))
        assert str(caught.value).startswith(f"{tmp_path / name}: ")


def test_sound_beside_the_pictures_does_not_count(tmp_path: Path) -> None:
    info = probe(str(write_video(tmp_path / "sound.avi", 20, "mpeg4", audio=True)))
    assert (info.num_frames, info.plain) == (20, True)


def test_many_files_are_probed_and_remembered(tmp_path: Path) -> None:
    paths = [str(write_kind(tmp_path, kind, 8)) for kind in ("h264", "mjpeg", "vp9")]
    cache = JsonLines(str(tmp_path / "cache.jsonl"), forget)
    found = probe_videos(paths, str(tmp_path), cache)
    assert found == {path: Probe(probe(path)) for path in paths}
    # Only a cache can know what is no longer there to be read.
    for path in paths:
        status = os.stat(path)
        Path(path).write_bytes(bytes(status.st_size))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    again = JsonLines(str(tmp_path / "cache.jsonl"), forget)
    assert probe_videos(paths, str(tmp_path), again) == found


def test_a_changed_file_is_probed_again(tmp_path: Path) -> None:
    path, cache = str(write_kind(tmp_path, "mjpeg", 8)), JsonLines(None, forget)
    assert probe_videos([path], str(tmp_path), cache)[path].info.num_frames == 8
    write_kind(tmp_path, "mjpeg", 9)
    assert probe_videos([path], str(tmp_path), cache)[path].info.num_frames == 9


def test_errors_are_collected_and_never_remembered(tmp_path: Path) -> None:
    good, bad = str(write_kind(tmp_path, "mjpeg", 8)), str(tmp_path / "bad.avi")
    Path(bad).write_text("no video")
    absent, cache = str(tmp_path / "absent.avi"), JsonLines(None, forget)
    found = probe_videos([bad, good, absent, good], str(tmp_path), cache)
    assert list(found) == [bad, good, absent] and found[good].error is None
    assert found[bad].info is None and found[bad].error.startswith(f"{bad}: damaged or no video")
    assert found[absent].error.startswith(f"{absent}: No such file")
    assert cache.get("bad.avi") is None and cache.get("mjpeg.avi") is not None
