"""Keys, tracks and index lines: what a shard is made of."""

import re
import string

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from clips import depth_frames, rgb_frames
from packs import encode, jpegs
from pipelines.pack_format import (
    PackedClip,
    Sample,
    TrackInfo,
    depth_track,
    describe,
    image_track,
    index_text,
    key_of,
    member_header,
    read_index_text,
    shard_index,
    video_track,
)

NAMES = st.text(st.characters(blacklist_categories=["Cs"]), max_size=80)


@given(NAMES, NAMES)
@example("a/b", "a-b")
@example("clip", "CLIP")
@example("train/001/M_00001.avi", "b" * 300)
@example("bytes \udcff that are no UTF-8", "")
def test_keys_are_safe_and_differ_where_names_do(first: str, second: str) -> None:
    for name in (first, second):
        assert re.fullmatch(r"[A-Za-z0-9_-]{17,65}", key_of(name))
        assert len(member_header(f"{key_of(name)}.depth.mjpg", 1)) == 512
    assert (key_of(first).lower() == key_of(second).lower()) == (first == second)


def test_a_key_tells_the_name_to_people() -> None:
    assert key_of("a/S001.x y_rgb").startswith("a-S001-x-y_rgb-")


def test_image_files_are_kept_byte_for_byte() -> None:
    files = jpegs(3)
    track = image_track(files)
    assert track.info == TrackInfo("jpeg", 3, 48, 64)
    assert track.pieces == tuple(files)


def test_png_images_are_kept_too() -> None:
    files = [encode(frame, "PNG") for frame in rgb_frames(2)]
    assert image_track(files).info == TrackInfo("png", 2, 48, 64)


@pytest.mark.parametrize("files, message", [
    ([], "no frames"),
    ([*jpegs(2), b"<html>"], "frame 2: neither JPEG nor PNG; convert it"),
    ([*jpegs(1), b"\xff\xd8\xff"], "frame 1: damaged "),
    ([*jpegs(1), *jpegs(1, width=32)], "frame 1: jpeg of 32x48 pixels, the first frame is jpeg of "
     "64x48; bring a clip's frames to one kind and size"),
    ([*jpegs(1), encode(rgb_frames(1)[0], "PNG")], "frame 1: png of 64x48 pixels, the first"),
])  # fmt: skip
def test_what_is_no_clip_of_images_is_an_error_that_tells_the_frame(files, message) -> None:
    with pytest.raises(ValueError) as raised:
        image_track(files)
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize("depth", [
    np.zeros((2, 3), np.uint16), np.zeros((0, 2, 2), np.uint16), np.zeros((1, 2, 2), np.int32)
])  # fmt: skip
def test_depth_is_a_stack_of_16_bit_frames(depth) -> None:
    with pytest.raises(ValueError, match=r"expected \(T, H, W\) uint16"):
        depth_track(depth)


def test_depth_need_not_be_contiguous() -> None:
    depth = depth_frames(3)
    assert depth_track(depth[:, ::-1]).pieces == depth_track(depth[:, ::-1].copy()).pieces


def test_a_container_is_an_extension() -> None:
    assert video_track(b"...", "mp4", 3, 48, 64).info == TrackInfo("video", 3, 48, 64)
    with pytest.raises(ValueError, match=r"'\.mp4' is no extension"):
        video_track(b"...", ".mp4", 3, 48, 64)


EXTENSIONS = st.lists(
    st.text(string.ascii_lowercase + ".", min_size=1, max_size=9), unique=True, max_size=3
)


@given(st.lists(st.tuples(NAMES, EXTENSIONS, st.integers(0, 2**40)), max_size=5))
def test_an_index_is_read_as_it_was_written(entries) -> None:
    samples = [
        Sample(key_of(name), {e: (start + i, i) for i, e in enumerate(["json", *extensions])})
        for name, extensions, start in entries
    ]
    assert read_index_text(index_text(samples)) == samples


@pytest.mark.parametrize("text", [
    "", "v1.1 0\n", "v1.2 1\n", "v1.2 2\njson 512 3 k.json\n", "v1.2 1\njson 512 3 k.json",
    "v1.2 1\njson 512 3\n", "v1.2 1\njson five 3 k.json\n", "v1.2 1\njpg 512 3 k.jpg\n",
])  # fmt: skip
def test_half_an_index_is_an_error(text: str) -> None:
    with pytest.raises(ValueError):
        read_index_text(text)


def test_an_index_that_names_another_clip_is_an_error() -> None:
    text = describe(PackedClip("one", {"rgb": image_track(jpegs(1))}))
    members = {"json": (512, len(text)), "rgb.mjpg": (2048, len(jpegs(1)[0]))}
    assert shard_index(9999, [Sample(key_of("one"), members)], [text]).names == ["one"]
    for wrong in (Sample(key_of("two"), members), Sample(key_of("one"), {"json": (512, 9)})):
        with pytest.raises(ValueError, match=f"{wrong.key}: its members do not fit together"):
            shard_index(9999, [wrong], [text])
