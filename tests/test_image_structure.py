"""Where JPEG and PNG files break, held to where the tests broke them."""

import io
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from clips import rgb_frames
from fuzz_damage import DAMAGES
from pipelines.image_structure import damage, first_break, located
from pipelines.verify import image_problem, problem

FRAME = rgb_frames(1)[0]


def encode(kind: str = "JPEG", mode: str = "RGB", **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(FRAME).convert(mode).save(file, kind, **options)
    return file.getvalue()


def changed(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


JPEG, PNG = encode(), encode("PNG")
DQT, SOF, DHT, SOS = (JPEG.index(bytes([0xFF, kind])) for kind in (0xDB, 0xC0, 0xC4, 0xDA))
PIXELS = SOS + 2 + int.from_bytes(JPEG[SOS + 2 : SOS + 4], "big")
IDAT = PNG.index(b"IDAT") - 4

EXIF = Image.Exif()
EXIF[0x010E] = "ends like a file: " + (JPEG[-2:] + JPEG).decode("latin-1")

SOUND = {
    "baseline": JPEG, "PNG": PNG, "grey": encode(mode="L"), "CMYK": encode(mode="CMYK"),
    "progressive": encode(progressive=True), "own tables": encode(optimize=True),
    "no subsampling": encode(subsampling=0, quality=100), "with Exif": encode(exif=EXIF),
    "comment": encode(comment=b"\xff\xd9" * 9), "restarts": encode(restart_marker_blocks=1),
    "two pictures": encode("MPO", save_all=True, append_images=[Image.fromarray(FRAME)]),
    "by OpenCV": cv2.imencode(".jpg", FRAME, [cv2.IMWRITE_JPEG_RST_INTERVAL, 2])[1].tobytes(),
    "PNG by OpenCV": cv2.imencode(".png", FRAME)[1].tobytes(), "palette": encode("PNG", "P"),
    "16 bit": encode("PNG", "I;16"), "fill before a marker": JPEG[:DQT] + b"\xff\xff" + JPEG[DQT:],
    "bytes after the end": JPEG + bytes(99), "PNG, the same": PNG + b"more",
    "BMP, which is not looked at": encode("BMP")[:-30],
}  # fmt: skip


@pytest.mark.parametrize("kind", SOUND)
def test_a_sound_file_breaks_nowhere(kind: str) -> None:
    assert first_break(SOUND[kind]) is None


@pytest.mark.parametrize("kind", ["baseline", "progressive", "restarts", "PNG", "16 bit"])
def test_a_file_cut_anywhere_breaks_where_it_ends(kind: str) -> None:
    data = SOUND[kind]
    for length in range(2, len(data), 3):
        at, what = first_break(data[:length])
        assert at == length and what.startswith("the file ends there, ")


def test_where_it_was_cut_is_said() -> None:
    assert first_break(b"") == (0, "the file is empty")
    assert located(JPEG[: PIXELS + 9]) == (
        f"damaged at byte {PIXELS + 9}: the file ends there, ahead of the JPEG's end mark"
    )
    assert located(JPEG[: DQT + 30]) == (
        f"damaged at byte {DQT + 30}: the file ends there, within the segment from byte {DQT} on"
    )
    assert located(PNG[: IDAT + 50]) == (
        f"damaged at byte {IDAT + 50}: the file ends there, within the chunk from byte {IDAT} on"
    )


def test_a_tail_of_zeros_breaks_where_they_begin() -> None:
    """Of a machine that went down: the length of a file is often on the disk ahead of its bytes."""
    place = next(i for i in range(PIXELS + 100, len(JPEG)) if JPEG[i - 1] not in (0, 255))
    damaged = JPEG[:place] + bytes(len(JPEG) - place)
    assert first_break(damaged) == (place, "nothing but zeros from there to the end of the file")


BROKEN: dict[str, tuple[bytes, int, str]] = {
    "a marker overwritten": (changed(JPEG, DQT, b"\x12"), DQT, "no JPEG marker where one is due"),
    "zeros between segments": (JPEG[:20] + bytes(4) + JPEG[20:], 20, "no JPEG marker"),
    "tables too long": (changed(JPEG, DHT + 2, b"\0\x20"), DHT, "a JPEG segment FF C4 of 32 bytes"),
    "tables too short": (changed(JPEG, DQT + 2, b"\0\x40"), DQT, "a JPEG segment FF DB of 64"),
    "no length": (changed(JPEG, 4, b"\0\0"), 2, "a JPEG segment FF E0 of 0 bytes"),
    "components": (changed(JPEG, SOF + 9, b"\7"), SOF, "a JPEG segment FF C0 of 17 bytes"),
    "scan header": (changed(JPEG, SOS + 4, b"\2"), SOS, "a JPEG segment FF DA of 12 bytes"),
    "past the end": (changed(JPEG, DHT + 2, b"\xff\0"), DHT, "the segment that begins there goes"),
    "no pixels": (JPEG[:SOS] + JPEG[-2:], SOS, "the JPEG's end mark ahead of any pixels"),
    "a start within": (JPEG[:DHT] + JPEG, DHT, "the JPEG marker FF D8, out of place"),
    "mangled as text": (PNG.replace(b"\r\n", b"\n"), 4, "not the signature of a PNG"),
    "a wrong bit": (changed(PNG, IDAT + 60, bytes([PNG[IDAT + 60] ^ 1])), IDAT, "a PNG chunk diff"),
    "chunk too long": (changed(PNG, IDAT, b"\7"), IDAT, "the chunk that begins there goes past"),
    "a chunk without its end": (PNG[: IDAT + 8] + PNG[IDAT + 9 :], IDAT, "a PNG chunk differs"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_structure_is_placed_to_the_byte(kind: str) -> None:
    data, expected, words = BROKEN[kind]
    at, what = first_break(data)
    assert at == expected and what.startswith(words)


def test_a_marker_that_cannot_be_among_pixels_is_placed() -> None:
    data = encode(subsampling=0, quality=100)
    at = data.index(b"\xff\0", data.index(b"\xff\xda") + 14)
    assert first_break(changed(data, at + 1, b"\x37")) == (
        at,
        "the JPEG marker FF 37, out of place",
    )


def test_what_only_a_decoder_sees_gets_no_place() -> None:
    """The words are then the decoder's."""
    values = next(i for i in range(PIXELS + 60, len(JPEG)) if JPEG[i] not in (0, 254, 255))
    assert first_break(changed(JPEG, values, bytes([JPEG[values] ^ 1]))) is None
    pixels = zlib.compress(b"\7" * 10)  # too few, rightly framed
    chunk = b"IDAT" + pixels
    framed = len(pixels).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    few = PNG[:IDAT] + framed + PNG[-12:]
    assert first_break(few) is None
    words, _ = image_problem(few, millimetres=False)
    assert words.startswith("damaged or no image (") and "byte " not in words.partition("(")[0]


def test_a_file_of_no_known_kind_is_told_by_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"<html>404 not found</html>")
    words, _ = problem(str(path), millimetres=False)
    assert words == "damaged or no image: at byte 0 it begins with b'<html>40'"
    assert damage(b"\0" * 40, UnidentifiedImageError("x")).endswith(f"begins with {bytes(8)!r}")


@pytest.mark.parametrize("harm", DAMAGES)
@pytest.mark.parametrize("kind", ["progressive", "baseline", "PNG"])
def test_whatever_happens_the_place_is_one_of_the_file(harm: str, kind: str) -> None:
    make: Callable[..., bytes] = DAMAGES[harm]
    rng = np.random.default_rng(0)
    for _ in range(60):
        data = make(SOUND[kind], rng)
        found = first_break(data)
        assert found is None or 0 <= found[0] <= len(data)


def parts(data: bytes) -> list[int]:
    """Where each segment before the pixels, or each chunk, of a sound file begins."""
    starts, at = [0], 8 if data.startswith(b"\x89P") else 2
    while at < len(data):
        starts.append(at)
        if data[at : at + 2] == b"\xff\xda":
            break
        number = data[at + 2 : at + 4] if data[at] == 0xFF else data[at : at + 4]
        at += int.from_bytes(number, "big") + (2 if data[at] == 0xFF else 12)
    return starts


@pytest.mark.parametrize("kind", ["baseline", "grey", "restarts", "PNG", "16 bit"])
def test_a_flipped_bit_is_never_placed_ahead_of_the_part_it_is_in(kind: str) -> None:
    data, rng, placed = SOUND[kind], np.random.default_rng(1), 0
    starts = parts(data)
    for _ in range(800):
        flipped = int(rng.integers(len(data)))
        found = first_break(changed(data, flipped, bytes([data[flipped] ^ 1 << rng.integers(8)])))
        in_pixels = data.startswith(b"\xff\xd8") and flipped >= starts[-1] + 14
        earliest = flipped - 1 if in_pixels else max(s for s in starts if s <= flipped)
        assert found is None or found[0] >= earliest
        placed += found is not None
    assert placed > 50
