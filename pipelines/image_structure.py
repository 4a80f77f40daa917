"""At which byte the structure of a JPEG or PNG breaks: its segments or chunks, walked once. Decodes
nothing: wrong bits that only a decoder meets have no place here, and none is made up."""

import zlib
from collections.abc import Iterator

from PIL import UnidentifiedImageError

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_LAST = b"IEND\xaeB`\x82"
JPEG_FIRST, JPEG_LAST = b"\xff\xd8", b"\xff\xd9"
SOI, EOI, SOS, DQT, DHT = 0xD8, 0xD9, 0xDA, 0xDB, 0xC4
SOF = frozenset(range(0xC0, 0xD0)) - {DHT, 0xC8, 0xCC}
RESTARTS = range(0xD0, 0xD8)
ALONE = frozenset({0x00, *range(0x01, 0xC0), *RESTARTS, SOI})
"""No segment begins with these."""

LEAST_ZEROS = 16
"""At the end of a file: of a disk that had no time to write, not of any picture."""

Break = tuple[int, str]
"""Byte, counted from 0, and what is wrong there."""


def first_break(data: bytes) -> Break | None:
    """Where a file stops being an image, or None where its structure holds from end to end or is
    that of a format which is not known here. Bytes after the end are no break."""
    if not data:
        return 0, "the file is empty"
    if data.startswith(JPEG_FIRST):
        return _jpeg_break(data)
    if data.startswith(PNG_SIGNATURE[:2]):
        return _png_break(data)
    return None


def located(data: bytes) -> str:
    """Where a file's structure breaks, for messages; empty where it does not."""
    found = first_break(data)
    return "damaged at byte {}: {}".format(*found) if found else ""


def damage(data: bytes, error: Exception) -> str:
    """What is wrong with a file that a decoder refuses with this `error`: where its structure
    breaks, otherwise the decoder's words."""
    if where := located(data):
        return where
    if isinstance(error, UnidentifiedImageError):  # names no more than an object in memory
        return f"damaged or no image: at byte 0 it begins with {data[:8]!r}"
    return f"damaged or no image ({str(error) or type(error).__name__})"


def _png_break(data: bytes) -> Break | None:
    for at, (byte, expected) in enumerate(zip(data, PNG_SIGNATURE, strict=False)):
        if byte != expected:
            return at, "not the signature of a PNG"
    at = len(PNG_SIGNATURE)
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if end > len(data):
            return _past_the_end(data, at, "chunk", data.endswith(PNG_LAST))
        # Pillow does not ask this of the pixels; DALI does.
        if zlib.crc32(data[at + 4 : end - 4]).to_bytes(4, "big") != data[end - 4 : end]:
            return at, "a PNG chunk differs from its checksum"
        if data[at + 4 : at + 8] == PNG_LAST[:4]:
            return None
        at = end
    return _ended(data, f"where a PNG chunk from byte {at} on is missing")


def _jpeg_break(data: bytes) -> Break | None:
    at, has_pixels = len(JPEG_FIRST), False
    while at + 1 < len(data):
        if data[at] != 0xFF:
            return at, "no JPEG marker where one is due"
        marker = data[at + 1]
        if marker == 0xFF:  # fill
            at += 1
            continue
        if marker == EOI:
            return None if has_pixels else (at, "the JPEG's end mark ahead of any pixels")
        if marker in ALONE:
            return at, f"the JPEG marker FF {marker:02X}, out of place"
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        end = at + 2 + length
        if at + 4 > len(data) or end > len(data):
            return _past_the_end(data, at, "segment", data.endswith(JPEG_LAST))
        if not _holds_together(marker, data[at + 4 : end], length):
            return at, f"a JPEG segment FF {marker:02X} of {length} bytes that do not fit together"
        at = end
        if marker == SOS:
            at, has_pixels = _scan_end(data, end), True
    return _ended(data, "ahead of the JPEG's end mark")


def _scan_end(data: bytes, at: int) -> int:
    """Where the first marker after coded pixels is: in these FF comes before 00 or a restart."""
    while (at := data.find(b"\xff", at)) >= 0:
        if at + 1 < len(data) and data[at + 1] and data[at + 1] not in RESTARTS:
            return at
        at += 2 if at + 1 < len(data) else 1
    return len(data)


def _holds_together(marker: int, body: bytes, length: int) -> bool:
    """Whether a segment is as long as its own numbers say."""
    if length < 2:
        return False
    if marker in SOF:
        return len(body) > 5 and len(body) == 6 + 3 * body[5]
    if marker == SOS:
        return len(body) > 0 and len(body) == 4 + 2 * body[0]
    if marker in (DQT, DHT):
        return sum(_table_sizes(marker, body)) == len(body) > 0
    return True


def _table_sizes(marker: int, body: bytes) -> Iterator[int]:
    at = 0
    while at < len(body):
        # One byte of kind and number; 64 values of 8 or 16 bits, or 16 counts and their values.
        size = 65 + 64 * (body[at] >> 4 > 0) if marker == DQT else 17 + sum(body[at + 1 : at + 17])
        yield size
        at += size


def _past_the_end(data: bytes, at: int, part: str, is_ended: bool) -> Break:
    """Of a part longer than what is left. Its length is wrong where the file ends as it should."""
    if is_ended:
        return at, f"the {part} that begins there goes past the end of the file"
    return _ended(data, f"within the {part} from byte {at} on")


def _ended(data: bytes, where: str) -> Break:
    written = len(data.rstrip(b"\0"))
    if len(data) - written >= LEAST_ZEROS:
        return written, "nothing but zeros from there to the end of the file"
    return len(data), f"the file ends there, {where}"
