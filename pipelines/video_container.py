"""The outer structure of AVI, MP4 and Matroska files: whether all of it is there, and the picture
size that it notes. Decodes nothing; other containers are not looked at.

FFmpeg reads on after damage and takes a file cut between frames for a short video; DALI 2.4 makes
room for pictures of the noted size, and has ended the process where larger ones come out.
"""

import io
import os
import struct
from typing import BinaryIO

Sizes = set[tuple[int, int]]
"""Width and height of each video track."""

SEGMENT, CLUSTER, TRACKS, TRACK, VIDEO = 0x18538067, 0x1F43B675, 0x1654AE6B, 0xAE, 0xE0
PIXEL_WIDTH, PIXEL_HEIGHT = 0xB0, 0xBA
INSIDE = frozenset({SEGMENT, CLUSTER, TRACKS, TRACK, VIDEO})
"""Matroska elements whose parts are looked at."""
OUTER = INSIDE | {
    0x1A45DFA3, 0x114D9B74, 0x1549A966, 0x1C53BB6B, 0x1043A770, 0x1254C367, 0x1941A469,  # of the
    0xEC, 0xBF,  # file and the segment: header, seeking, info, cues, chapters, tags, attachments
    0xE7, 0xA3, 0xA0, 0xA7, 0xAB, 0x5854, 0xAF,  # of clusters: time, blocks, places
}  # fmt: skip
"""Matroska elements that may stand outside a track."""


def noted_size(source: str | bytes) -> tuple[int, int] | None:
    """Width and height in the header of a file, given as path or bytes; None if it names none or
    several.

    Raises OSError, and ValueError with what is wrong if the file is empty, cut short or, where the
    format lets that be seen, damaged.
    """
    with _opened(source) as file:
        length = file.seek(0, os.SEEK_END)
        file.seek(0)
        if not length:
            raise ValueError("damaged at byte 0: the file is empty")
        head = file.read(12)
        sizes: Sizes = set()
        if head[:4] == b"RIFF" and head[8:] == b"AVI ":
            _walk_avi(file, length, sizes)
        elif head[4:8] == b"ftyp":
            _walk_mp4(file, 0, length, sizes)
        elif head[:4] == b"\x1aE\xdf\xa3":
            _walk_matroska(file, length, sizes)
    return sizes.pop() if len(sizes) == 1 else None


def is_chained(source: str | bytes) -> bool:
    """Whether the chunks of an .avi follow each other to its end; True of other containers.

    Where they do not, FFmpeg finds its way. DALI 2.4 has ended the process.
    """
    with _opened(source) as file:
        is_avi = file.read(4) == b"RIFF"
        return not is_avi or _chained(file, 0, file.seek(0, os.SEEK_END))


def _opened(source: str | bytes) -> BinaryIO:
    return open(source, "rb") if isinstance(source, str) else io.BytesIO(source)


def _cut_short(end: int, length: int) -> ValueError:
    return ValueError(f"cut short at byte {length} of {end}")


def _walk_avi(file: BinaryIO, length: int, sizes: Sizes) -> None:
    """One RIFF chunk after the other; within the first, the lists of the header."""
    start = 0
    while start + 8 <= length:
        kind, size = _chunk(file, start)
        # A recorder that was stopped leaves 0 or the largest number; then anything may follow.
        if kind != b"RIFF" or size in (0, 2**32 - 1):
            break
        end = start + 8 + size
        if end > length:
            raise _cut_short(end, length)
        start = end + size % 2
    _walk_avi_header(file, 12, length, sizes)


def _chained(file: BinaryIO, start: int, end: int) -> bool:
    """Whether AVI chunks, and those in lists of pictures, fill this part of a file."""
    while start < end:
        kind, size = _chunk(file, start)
        stop = start + 8 + size
        if start + 8 > end or stop > end or not kind.strip(b" ").isalnum():
            return False
        is_list = kind == b"RIFF" or (kind == b"LIST" and file.read(4) in (b"movi", b"rec "))
        if is_list and not _chained(file, start + 12, stop):
            return False
        start = stop + size % 2
    return True


def _walk_avi_header(file: BinaryIO, start: int, end: int, sizes: Sizes) -> None:
    is_video = False
    while start + 12 <= end:
        kind, size = _chunk(file, start)
        body = file.read(16)
        if kind == b"LIST" and body[:4] in (b"hdrl", b"strl"):
            _walk_avi_header(file, start + 12, min(start + 8 + size, end), sizes)
        elif kind == b"LIST":  # the pictures: the header is over
            return
        elif kind == b"strh":
            is_video = body[:4] == b"vids"
        elif kind == b"strf" and is_video and len(body) == 16:
            width, height = struct.unpack_from("<ii", body, 4)
            sizes.add((width, abs(height)))
        start += 8 + size + size % 2


def _chunk(file: BinaryIO, start: int) -> tuple[bytes, int]:
    file.seek(start)
    kind, size = struct.unpack("<4sI", file.read(8).ljust(8, b"\0"))
    return kind, size


def _walk_mp4(file: BinaryIO, start: int, end: int, sizes: Sizes) -> None:
    """Boxes in boxes, down to the descriptions of the tracks."""
    is_video = False
    while start + 8 <= end:
        file.seek(start)
        head = file.read(16).ljust(16, b"\0")
        size, kind, large = struct.unpack(">I4sQ", head)
        body = start + (16 if size == 1 else 8)
        stop = end if size == 0 else start + max(large if size == 1 else size, 8)
        if stop > end:
            raise _cut_short(stop, end)
        file.seek(body)
        if kind in (b"moov", b"trak", b"mdia", b"minf"):
            _walk_mp4(file, body, stop, sizes)
        elif kind == b"vmhd":  # comes before the description of samples
            is_video = True
        elif kind == b"stbl" and is_video:
            _walk_mp4(file, body, stop, sizes)
        elif kind == b"stsd" and len(description := file.read(44)) == 44:
            width, height = struct.unpack_from(">HH", description, 40)
            sizes.add((width, height))
        start = stop


def _walk_matroska(file: BinaryIO, length: int, sizes: Sizes) -> None:
    """Every element of the file; those of tracks one by one, blocks as a whole."""
    start = width = tracks_end = 0
    while start < length:
        identifier, size, body = _element(file, start)
        if identifier is None or (start >= tracks_end and identifier not in OUTER):
            raise ValueError(f"damaged at byte {start}")
        end = length if size is None else body + size  # without a size: to the end, of a live one
        if end > length:
            raise _cut_short(end, length)
        if identifier == TRACKS:
            tracks_end = end
        elif identifier in (PIXEL_WIDTH, PIXEL_HEIGHT) and start < tracks_end:
            number = int.from_bytes(file.read(end - body), "big")
            if identifier == PIXEL_HEIGHT:
                sizes.add((width, number))
            width = number
        start = body if identifier in INSIDE else end


def _element(file: BinaryIO, start: int) -> tuple[int | None, int | None, int]:
    """Identifier (None: not one), size (None: not given) and where the content starts."""
    file.seek(start)
    head = file.read(12)
    first = 9 - head[0].bit_length()
    if first > 4 or len(head) <= first:
        return None, None, start
    second = 9 - head[first].bit_length()
    digits = head[first : first + second]
    if second > 8 or len(digits) < second:
        return None, None, start
    size = int.from_bytes(digits, "big") & ~(1 << 7 * second)
    unknown = size == (1 << 7 * second) - 1
    identifier = int.from_bytes(head[:first], "big")
    file.seek(start + first + second)
    return identifier, None if unknown else size, start + first + second
