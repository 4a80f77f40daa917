"""The frames of videos by number, on real files of the codecs and containers of the data sets."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.video import VideoInfo, decode_frames
from pipelines.video_index import probe
from videos import (
    KINDS,
    number_of,
    picture,
    turned,
    write_kind,
    write_packed,
    write_video,
    write_with_hidden_frames,
)

NUM_FRAMES = 30
Video = tuple[str, VideoInfo, np.ndarray]
"""Path, probe and all (T, h, w, 3) frames in order."""


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Video]:
    """A video of each kind, written when it is first asked for."""
    folder = tmp_path_factory.mktemp("videos")
    known: dict[str, Video] = {}

    def video(kind: str) -> Video:
        if kind not in known:
            path = str(write_kind(folder, kind, NUM_FRAMES))
            info = probe(path)
            known[kind] = path, info, decode_frames(path, info, range(info.num_frames))
        return known[kind]

    return video


def numbers(frames: np.ndarray) -> list[int]:
    return [number_of(frame) for frame in frames]


@pytest.mark.parametrize("kind", KINDS)
def test_every_frame_is_found_by_its_number_in_display_order(video, kind) -> None:
    _, info, frames = video(kind)
    width, height = KINDS[kind][1].get("size", (160, 144))
    assert frames.shape == (NUM_FRAMES, height, width, 3)
    assert (info.width, info.height) == (width, height)
    assert numbers(frames) == list(range(NUM_FRAMES))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15)
@given(asked=st.lists(st.integers(0, NUM_FRAMES - 1), max_size=6))
def test_any_numbers_in_any_order_give_the_frames_of_decoding_everything(
    video, kind, asked
) -> None:
    path, info, frames = video(kind)
    np.testing.assert_array_equal(decode_frames(path, info, asked), frames[asked])


def test_a_file_in_memory_gives_the_same_frames(video) -> None:
    path, info, frames = video("h264")
    found = decode_frames(Path(path).read_bytes(), info, [29, 3, 3])
    np.testing.assert_array_equal(found, frames[[29, 3, 3]])


@pytest.mark.parametrize("kind", ["h264", "h264_open_gop", "hevc", "mpeg4_bframes", "vp9", "av1"])
def test_a_late_frame_is_decoded_from_the_key_frame_ahead(video, tmp_path, kind) -> None:
    """What comes before that is not even looked at: here it is destroyed."""
    path, info, frames = video(kind)
    start, _ = info.seek_points[-1]
    data = bytearray(Path(path).read_bytes())
    first = data.index(b"mdat") if path.endswith("mp4") else 600 if path.endswith("webm") else 5900
    damaged = slice(first + 400, first + 700)
    data[damaged] = bytes(300)
    copy = tmp_path / Path(path).name
    copy.write_bytes(data)
    late = decode_frames(str(copy), info, [start, NUM_FRAMES - 1])
    np.testing.assert_array_equal(late, frames[[start, NUM_FRAMES - 1]])
    with pytest.raises(ValueError, match=copy.name):
        decode_frames(str(copy), info, range(start))


def test_frames_of_a_variable_rate_are_counted_not_timed(tmp_path: Path) -> None:
    times = [0, 1, 2, 5, 6, 11, 12, 13, 20, 21, 30, 31]
    for name, codec in [("v.mp4", "libx264"), ("v.webm", "libvpx-vp9")]:
        path = str(write_video(tmp_path / name, len(times), codec, times=times))
        info = probe(path)
        assert info.variable_rate and info.num_frames == 12
        assert numbers(decode_frames(path, info, [11, 3, 7, 0])) == [11, 3, 7, 0]


@pytest.mark.parametrize(
    "codec, pix_fmt",
    [("libvpx", "yuv420p"), ("libvpx-vp9", "yuv420p"), ("libvpx-vp9", "yuv420p10le")],
)
def test_pictures_that_are_never_shown_do_not_count(tmp_path, codec, pix_fmt) -> None:
    path = str(write_with_hidden_frames(tmp_path / "hidden.webm", codec, 90, pix_fmt))
    info = probe(path)
    assert info.num_frames == 90 and info.pixel_format == pix_fmt
    assert numbers(decode_frames(path, info, range(90))) == list(range(90))
    assert numbers(decode_frames(path, info, [89, 61, 31, 45])) == [89, 61, 31, 45]


def test_packed_b_frames_come_out_one_by_one(tmp_path: Path) -> None:
    path = str(write_packed(tmp_path / "divx.avi", 12))
    info = probe(path)
    assert info.num_frames == 12 and not info.plain
    assert numbers(decode_frames(path, info, range(12))) == list(range(12))


@pytest.mark.parametrize("quarter_turns", range(4))
def test_a_noted_rotation_is_applied_as_opencv_does(tmp_path: Path, quarter_turns: int) -> None:
    stored = write_video(tmp_path / "stored.mp4", 3, "libx264", size=(160, 144))
    path = str(tmp_path / "turned.mp4")
    Path(path).write_bytes(turned(stored.read_bytes(), quarter_turns))
    info = probe(path)
    (frame,) = decode_frames(path, info, [2])
    (upright,) = decode_frames(str(stored), probe(str(stored)), [2])
    np.testing.assert_array_equal(frame, np.rot90(upright, -quarter_turns))
    reader = cv2.VideoCapture(path)
    for _ in range(3):
        _, bgr = reader.read()
    assert bgr.shape == frame.shape == (info.height, info.width, 3)
    assert np.abs(bgr[..., ::-1].astype(int) - frame).mean() < 3


@pytest.mark.parametrize("tags", [{}, {"colorspace": "bt709"}])
def test_colours_are_converted_by_bt601_whatever_the_tag(tmp_path: Path, tags: dict) -> None:
    path = str(write_video(tmp_path / "c.webm", 2, "libvpx-vp9", options={"b": "4M", **tags}))
    (frame,) = decode_frames(path, probe(path), [1])
    assert np.abs(frame.astype(int) - picture(1)).mean() < 3, "written by BT.601 in either case"


def test_the_range_is_that_of_the_tag(tmp_path: Path) -> None:
    options = {"b": "4M", "color_range": "pc"}
    path = str(write_video(tmp_path / "c.webm", 1, "libvpx-vp9", options=options))
    (frame,) = decode_frames(path, probe(path), [0])
    # Written in the limited range: 16 + 40 * 219 / 255, which the tag calls what is to be shown.
    assert frame[10:26, 10:30].mean() == pytest.approx(50.4, abs=1)


def test_a_number_outside_the_video_is_named(video) -> None:
    path, info, _ = video("h264")
    for frame in (-1, NUM_FRAMES):
        with pytest.raises(ValueError, match=rf"h264\.mp4: frame {frame} asked of 30"):
            decode_frames(path, info, [0, frame])


def test_a_file_that_became_shorter_than_its_probe_is_named_with_the_frame(video, tmp_path) -> None:
    _, info, _ = video("mjpeg")
    path = str(write_kind(tmp_path, "mjpeg", 20))
    with pytest.raises(ValueError, match=r"mjpeg\.avi: frame 25 of 30 is missing; restore"):
        decode_frames(path, info, [3, 25])
    with pytest.raises(ValueError, match=r"a\.avi: frame 25 of 30"):
        decode_frames(Path(path).read_bytes(), info, [25], name="a.avi")


def test_a_file_of_another_size_than_its_probe_is_named(video, tmp_path) -> None:
    _, info, _ = video("mjpeg")
    other = str(write_video(tmp_path / "other.avi", 5, "mpeg4", size=(80, 64)))
    with pytest.raises(ValueError, match=r"other\.avi: frame 2 has another size than probed"):
        decode_frames(other, info, [2])


def test_no_frames_asked_are_no_frames(video) -> None:
    path, info, _ = video("mjpeg")
    assert decode_frames(path, info, []).shape == (0, 144, 160, 3)
