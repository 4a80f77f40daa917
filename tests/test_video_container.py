"""The outer structure of video files, and the picture size it notes."""

import struct
from pathlib import Path

import pytest

from pipelines.video_container import is_chained, noted_size
from videos import write_kind, write_video


@pytest.mark.parametrize("kind", ["mjpeg_422_odd", "h264_odd", "vp9_odd", "h264_mkv", "h264_avi"])
def test_the_noted_size_is_found(tmp_path: Path, kind: str) -> None:
    size = (163, 145) if kind.endswith("odd") else (160, 144)
    assert noted_size(str(write_kind(tmp_path, kind, 4))) == size


@pytest.mark.parametrize("name", ["v.avi", "v.mp4", "v.mkv"])
def test_sound_notes_no_size(tmp_path: Path, name: str) -> None:
    path = write_video(tmp_path / name, 4, "mpeg4", audio=True)
    assert noted_size(str(path)) == (160, 144)


def test_a_live_recording_need_not_say_its_length(tmp_path: Path) -> None:
    path = write_kind(tmp_path, "vp8", 12)
    data = bytearray(path.read_bytes())
    for mark, width in ((b"\x18\x53\x80\x67", 8), (b"\x1f\x43\xb6\x75", 0)):
        place = data.rindex(mark) + 4
        width = width or 9 - data[place].bit_length()
        data[place : place + width] = bytes([(1 << 9 - width) - 1]) + b"\xff" * (width - 1)
    path.write_bytes(data)
    assert noted_size(str(path)) == (160, 144)


@pytest.mark.parametrize("length", [0, 2**32 - 1])
def test_an_avi_that_was_never_closed_need_not_either(tmp_path: Path, length: int) -> None:
    path = write_kind(tmp_path, "mjpeg", 4)
    data = bytearray(path.read_bytes())
    data[4:8] = struct.pack("<I", length)
    path.write_bytes(data)
    assert noted_size(str(path)) == (160, 144)


@pytest.mark.parametrize("kind", ["mjpeg", "h264", "vp9"])
def test_a_missing_end_is_named_with_its_byte(tmp_path: Path, kind: str) -> None:
    path = write_kind(tmp_path, kind, 4)
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(ValueError, match=f"^cut short at byte {len(data) - 1} of {len(data)}$"):
        noted_size(str(path))


def test_bytes_that_are_no_element_are_damage(tmp_path: Path) -> None:
    path = write_kind(tmp_path, "vp9", 4)
    data = path.read_bytes()
    path.write_bytes(data + bytes(16))
    with pytest.raises(ValueError, match=f"^damaged at byte {len(data)}$"):
        noted_size(str(path))


def test_other_files_are_not_looked_at(tmp_path: Path) -> None:
    (tmp_path / "a.mpg").write_bytes(b"\0\0\1\xba" * 10)
    assert noted_size(str(tmp_path / "a.mpg")) is None


@pytest.mark.parametrize("place", [-200, -1])
def test_an_avi_whose_chunks_do_not_follow_each_other_is_told(tmp_path: Path, place: int) -> None:
    path = write_kind(tmp_path, "mjpeg", 5)
    assert is_chained(str(path))
    data = path.read_bytes()
    path.write_bytes(data[:place] + b"\1" * 50 + data[place:])
    assert not is_chained(str(path))
