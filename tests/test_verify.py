"""Damaged files: found by DALI or by their signature, named by a slow look, one line each."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clips import DEPTH_NAME, depth_frames, rgb_frames, write_clip
from lists import TINY, request
from pipelines.config import DataConfig
from pipelines.culprit import find_problem, passing
from pipelines.graph import decode_arrays, decode_graph, run
from pipelines.media import Way
from pipelines.verify import first_refused, problem, suspects

METRIC = replace(TINY, modality="depth", depth_encoding="metric")


def load(paths: list[str], config: DataConfig = TINY) -> list[np.ndarray]:
    """Decoded frames, as training reads them."""
    graph = partial(decode_graph, device_id=None, batch_size=8, num_threads=1)
    plan = [[request(paths, index=4)]]
    ((_, (frames,)),) = run(graph, decode_arrays, plan, config, config.modality, Way.FILES)
    return [np.asarray(frames[i]) for i in range(len(frames))]


def error_of(paths: list[str], config: DataConfig = TINY) -> str:
    with pytest.raises(ValueError) as raised:
        load(paths, config)
    return str(raised.value)


def rewrite(path: str, change) -> None:
    Path(path).write_bytes(change(Path(path).read_bytes()))


DAMAGE = {
    "cut in the middle": (lambda b: b[: len(b) // 2], "damaged"),
    "without its end mark": (lambda b: b[:-2], "damaged"),
    "empty": (lambda b: b"", "damaged at byte 0: the file is empty"),
    "a few bytes": (lambda b: b[:10], "damaged"),
    "text": (lambda b: b"<html>404</html>" * 40, "damaged"),
}


@pytest.mark.parametrize("kind", ["jpg", "png"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_colour_frame_is_named_in_one_line(
    tmp_path: Path, kind: str, damage: str
) -> None:
    paths = write_clip(tmp_path, rgb_frames(4), "{:06d}." + kind)
    change, words = DAMAGE[damage]
    rewrite(paths[2], change)
    message = error_of(paths)
    assert message.startswith(f"{paths[2]}: {words}")
    assert message.endswith("; restore it or take its clip off the list (clip c4, l:1)")
    assert "\n" not in message


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_depth_frame_is_named_in_one_line(tmp_path: Path, damage: str) -> None:
    paths = write_clip(tmp_path, depth_frames(4), DEPTH_NAME)
    rewrite(paths[1], DAMAGE[damage][0])
    message = error_of(paths, METRIC)
    assert message.startswith(f"{paths[1]}: ") and "\n" not in message


def test_a_frame_that_vanished_is_named(tmp_path: Path) -> None:
    paths = write_clip(tmp_path, rgb_frames(4))
    Path(paths[3]).unlink()
    advice = "restore it or take its clip off the list (clip c4, l:1)"
    assert error_of(paths) == f"{paths[3]}: No such file or directory; {advice}"


def test_a_folder_in_place_of_a_frame_is_named(tmp_path: Path) -> None:
    paths = write_clip(tmp_path, rgb_frames(4))
    Path(paths[0]).unlink()
    Path(paths[0]).mkdir()
    assert error_of(paths).startswith(f"{paths[0]}: Is a directory; ")


@pytest.mark.parametrize("mode, format, words", [
    ("L", "PNG", "8-bit L PNG"),
    ("RGB", "PNG", "8-bit RGB PNG"),
    ("1", "PNG", "1-bit 1 PNG"),
    ("L", "JPEG", "a JPEG image"),  # DALI 2.4 may decode a grey JPEG to 16 bit past its memory
    ("RGB", "JPEG", "a JPEG image"),
    ("I;16", "TIFF", "a TIFF image"),
])  # fmt: skip
def test_another_kind_of_file_than_promised_is_named(
    tmp_path: Path, mode: str, format: str, words: str
) -> None:
    paths = write_clip(tmp_path, depth_frames(4), DEPTH_NAME)
    Image.new(mode, (64, 48)).save(paths[2], format=format)
    assert error_of(paths, METRIC) == (
        f"{paths[2]}: {words} where data.depth_encoding promises 16-bit grey PNG; use the depth "
        "maps in millimetres or set data.depth_encoding=color (clip c4, l:1)"
    )


def test_16_bit_depth_taken_for_images_is_named(tmp_path: Path) -> None:
    paths = write_clip(tmp_path, depth_frames(4), DEPTH_NAME)
    assert error_of(paths, replace(METRIC, depth_encoding="color")) == (
        f"{paths[0]}: 16-bit depth where an image is expected; set data.depth_encoding=metric "
        "(clip c4, l:1)"
    )


def test_a_deep_tiff_taken_for_an_image_is_named(tmp_path: Path) -> None:
    """Pillow would clip its values, DALI scale them."""
    paths = write_clip(tmp_path, rgb_frames(4))
    Image.new("I;16", (64, 48)).save(paths[2], format="TIFF")
    assert error_of(paths).startswith(f"{paths[2]}: 16-bit depth where an image is expected")


def test_a_format_that_dali_does_not_know_is_named(tmp_path: Path) -> None:
    paths = write_clip(tmp_path, rgb_frames(4))
    Image.new("P", (64, 48)).save(paths[2], format="GIF")
    assert error_of(paths).startswith(f"{paths[2]}: a GIF image, which DALI does not decode")


@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_a_frame_that_was_cut_is_named_with_the_byte_where_it_ends(tmp_path, kind) -> None:
    paths = write_clip(tmp_path, rgb_frames(4), "{:06d}." + kind)
    rewrite(paths[1], lambda b: b[:1000])
    assert error_of(paths).startswith(f"{paths[1]}: damaged at byte 1000: the file ends there, ")
    Path(paths[0]).write_bytes(b"")
    assert error_of(paths).startswith(f"{paths[0]}: damaged at byte 0: the file is empty; restore")


def test_a_png_chunk_unlike_its_checksum_is_named_with_its_byte(tmp_path: Path) -> None:
    """Pillow takes wrong checksums of pixels."""
    paths = write_clip(tmp_path, depth_frames(4), DEPTH_NAME)
    data = bytearray(Path(paths[2]).read_bytes())
    start = data.index(b"IDAT") - 4
    end = start + 8 + int.from_bytes(data[start : start + 4], "big")
    data[end] ^= 1  # the first byte of its checksum
    Path(paths[2]).write_bytes(data)
    Image.open(paths[2]).load()
    assert error_of(paths, METRIC).startswith(f"{paths[2]}: damaged at byte {start}: a PNG chunk")


def test_a_jpeg_that_dali_alone_refuses_is_named(tmp_path: Path) -> None:
    paths = write_clip(tmp_path, rgb_frames(4))
    sound = [Path(path).read_bytes() for path in paths]
    rewrite(paths[2], lambda b: b[:20] + bytes(4) + b[20:])  # between two of its segments
    Image.open(paths[2]).load()
    assert problem(paths[2], millimetres=False) is None
    message, where = error_of(paths), "damaged at byte 20: no JPEG marker where one is due"
    assert message.startswith(f"{paths[2]}: DALI cannot decode it ({where}; ")
    assert "\n" not in message
    assert first_refused(sound, millimetres=False) is None
    assert first_refused([Path(path).read_bytes() for path in paths], millimetres=False) == 2


def test_bytes_after_the_end_of_a_sound_file_are_legal(tmp_path: Path) -> None:
    """Such a file looks suspicious, is looked at slowly and found sound."""
    paths = write_clip(tmp_path, rgb_frames(4))
    before = load(paths)
    rewrite(paths[1], lambda b: b + b"\0" * 20)
    np.testing.assert_array_equal(load(paths), before)


def test_formats_without_a_known_end_pass(tmp_path: Path) -> None:
    paths = write_clip(tmp_path, rgb_frames(2), "{:06d}.bmp")
    np.testing.assert_array_equal(load(paths), rgb_frames(2))


def signatures(*files: tuple[bytes, bytes]) -> np.ndarray:
    return np.array([list(head.ljust(26, b"\0") + tail.rjust(8, b"\0")) for head, tail in files])


def test_signatures_tell_which_files_to_look_at() -> None:
    png16 = b"\x89PNG\r\n\x1a\n" + b"\0" * 16 + b"\x10\x00"
    png8 = png16[:24] + b"\x08\x00"
    end = b"IEND\xaeB`\x82"
    files = signatures(
        (png16, end), (png8, end), (png16, b"cut"), (b"\xff\xd8\xff", b"\xff\xd9"),
        (b"\xff\xd8\xff", b"cut"), (b"BM", b"any"),
    )  # fmt: skip
    assert suspects(files, millimetres=True) == [1, 2, 3, 4, 5]
    assert suspects(files, millimetres=False) == [0, 2, 4]


def test_the_look_is_limited_to_the_places_given(tmp_path: Path) -> None:
    requests = [request(write_clip(tmp_path / str(i), rgb_frames(3)), index=i) for i in range(2)]
    first, second = requests[0].streams[0].paths[1], requests[1].streams[0].paths[2]
    for path in (first, second):
        Path(path).write_bytes(b"")
    assert find_problem(requests, 0, False, [0, 2, 4]) is None
    assert str(find_problem(requests, 0, False, [5])).startswith(second)
    assert str(find_problem(requests, 0, False)).startswith(first)


def test_dali_alone_takes_8_bit_for_16_without_a_word(tmp_path: Path) -> None:
    """Why bit depth is checked here: every value comes out 257 times as large."""
    (path,) = write_clip(tmp_path, [np.full((48, 64), 7, np.uint8)], "{}.png")

    def feed():
        return decode_arrays([request([path])], METRIC, "depth", Way.FILES)

    graph = decode_graph(
        feed, METRIC, "depth", Way.FILES, device_id=None, batch_size=1, num_threads=1
    )
    frames, _ = graph.run()
    assert (np.asarray(frames[0]) == 7 * 257).all()
    assert problem(path, millimetres=True) is not None


def test_what_failed_once_and_is_sound_now_is_named_by_its_clips(tmp_path: Path) -> None:
    requests = [request(write_clip(tmp_path / str(i), rgb_frames(3)), index=i) for i in range(2)]
    assert str(passing(requests, 0)) == (
        f"{tmp_path}/0 (clip c0, l:1), {tmp_path}/1 (clip c1, l:1): could not be decoded, but now "
        "can; start again, and write to no file while it is in use"
    )
