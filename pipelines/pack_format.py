"""What a clip pack is made of: tracks, keys, tar headers, a clip's JSON, a shard's index; in words,
docs/packs.md. Bytes and numbers only: files are opened elsewhere."""

import hashlib
import io
import json
import re
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import lz4.block
import numpy as np
from numpy.typing import NDArray
from PIL import Image

VERSION = 1
"""Of the layout: raise it with every change that an older reader would misread."""

MODALITIES = ("rgb", "depth")
"""In this order within a sample."""

JPEG, PNG, LZ4, VIDEO = "jpeg", "png", "lz4", "video"
EXTENSIONS = {JPEG: "mjpg", PNG: "mpng", LZ4: "lz4"}
"""Of members that hold one piece per frame; a video keeps its container's."""

IMAGE_STARTS = {b"\xff\xd8\xff": JPEG, b"\x89PNG\r\n\x1a\n": PNG}

LZ4_LEVEL = 4
"""Of LZ4's high-compression levels: 9 saves 1 to 2.5 % more and takes three times as long."""

BLOCK = 512
"""Bytes: every tar header and member begins at a multiple of it."""

SHARD_END = bytes(2 * BLOCK)
"""Ends a tar file."""

MOST_BYTES = 8**11 - 1
"""Of a member: what the header of a POSIX tar can say."""


@dataclass(frozen=True)
class TrackInfo:
    """What is known of one modality of a clip without reading its pixels."""

    encoding: str
    """`jpeg` or `png`: whole image files, one per frame; `lz4`: (height, width) little-endian
    uint16, one raw LZ4 block per frame; `video`: one file with all frames."""

    num_frames: int
    height: int
    width: int


@dataclass(frozen=True, eq=False)
class Track:
    """One modality of a clip as a pack holds it."""

    info: TrackInfo
    pieces: tuple[bytes, ...]
    """One per frame; of a video a single one."""

    container: str = ""
    """Extension of a video's file, such as `mp4`."""


@dataclass(frozen=True, eq=False)
class PackedClip:
    """One sample of a pack."""

    name: str
    """As in the split lists."""

    tracks: Mapping[str, Track]
    """By modality: `rgb`, `depth` or both."""

    listed: Sequence[tuple[str, int]] = ()
    """Split and label of each line that names the clip, such as ("train", 3): for people and for
    other readers. Training takes both from the split lists."""


def image_track(files: Sequence[bytes]) -> Track:
    """Image files of one kind and size, kept byte for byte.

    Raises ValueError, starting with the frame's number, for what is none of that.
    """
    if not files:
        raise ValueError("no frames")
    first = _image_info(0, files[0])
    for number, data in enumerate(files):
        info = _image_info(number, data)
        if info != first:
            raise ValueError(
                f"frame {number}: {info.encoding} of {info.width}x{info.height} pixels, the first "
                f"frame is {first.encoding} of {first.width}x{first.height}; bring a clip's frames "
                "to one kind and size"
            )
    return Track(replace(first, num_frames=len(files)), tuple(files))


def _image_info(number: int, data: bytes) -> TrackInfo:
    """Of one frame; opening it reads no further than its header."""
    kinds = [kind for start, kind in IMAGE_STARTS.items() if data.startswith(start)]
    if not kinds:
        raise ValueError(f"frame {number}: neither JPEG nor PNG; convert it")
    try:
        with Image.open(io.BytesIO(data)) as image:
            return TrackInfo(kinds[0], 1, image.height, image.width)
    except (OSError, SyntaxError) as error:  # Pillow raises SyntaxError for broken PNG chunks
        raise ValueError(f"frame {number}: damaged ({error}); restore it") from None


def depth_track(depth_mm: NDArray[np.uint16]) -> Track:
    """(T, H, W) millimetres, compressed without loss frame by frame."""
    if depth_mm.ndim != 3 or depth_mm.dtype != np.uint16 or 0 in depth_mm.shape:
        raise ValueError(
            f"depth of shape {depth_mm.shape} and type {depth_mm.dtype}; expected (T, H, W) uint16"
        )
    frames = np.ascontiguousarray(depth_mm, dtype="<u2")
    return Track(TrackInfo(LZ4, *frames.shape), tuple(map(compress, frames)))


def compress(frame: NDArray[np.uint16]) -> bytes:
    """One contiguous frame -> its raw LZ4 block."""
    return lz4.block.compress(
        frame, mode="high_compression", compression=LZ4_LEVEL, store_size=False
    )


def video_track(data: bytes, container: str, num_frames: int, height: int, width: int) -> Track:
    """A whole video file; `container` is its extension, such as `mp4`."""
    if not re.fullmatch(r"[a-z0-9]+", container):
        raise ValueError(f"'{container}' is no extension of a video such as 'mp4'")
    return Track(TrackInfo(VIDEO, num_frames, height, width), (data,), container)


def key_of(name: str) -> str:
    """The base name of a clip's members: unique, and of letters, digits, `_` and `-` alone.

    Its last part alone tells clips apart, also where case does not count.
    """
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return re.sub(r"[^A-Za-z0-9_]+", "-", name).strip("-")[-48:].lstrip("-") + "-" + digest


def extension_of(modality: str, track: Track) -> str:
    return f"{modality}.{track.container or EXTENSIONS[track.info.encoding]}"


def member_header(file_name: str, size: int) -> bytes:
    """The (512,) bytes before a member: nothing in them depends on when and by whom it is made."""
    if size > MOST_BYTES:
        raise ValueError(f"{file_name}: {size} bytes, more than a tar member holds; cut the clip")
    info = tarfile.TarInfo(file_name)
    info.size, info.mode = size, 0o644
    return info.tobuf(tarfile.USTAR_FORMAT)


def padding(size: int) -> bytes:
    """What follows `size` bytes up to the next block."""
    return bytes(-size % BLOCK)


def describe(clip: PackedClip) -> bytes:
    """The clip's JSON member."""
    record: dict[str, Any] = {
        "version": VERSION,
        "name": clip.name,
        "listed": sorted({(split, label) for split, label in clip.listed}),
    }
    for modality in MODALITIES:
        if track := clip.tracks.get(modality):
            record[modality] = {
                "member": extension_of(modality, track),
                "encoding": track.info.encoding,
                "num_frames": track.info.num_frames,
                "height": track.info.height,
                "width": track.info.width,
                "sizes": [len(piece) for piece in track.pieces],
                "crc32": [zlib.crc32(piece) for piece in track.pieces],
            }
    return json.dumps(record, separators=(",", ":")).encode()


@dataclass(frozen=True)
class Sample:
    """One line of a shard's `.idx`: where the members of one clip are."""

    key: str
    members: Mapping[str, tuple[int, int]]
    """Offset and size of the data by extension."""


def index_text(samples: Sequence[Sample]) -> str:
    """A shard's `.idx` as DALI's wds2idx writes it, version 1.2."""
    lines = [f"v1.2 {len(samples)}"]
    for sample in samples:
        parts = (f"{e} {at} {size} {sample.key}.{e}" for e, (at, size) in sample.members.items())
        lines.append(" ".join(parts))
    return "\n".join(lines) + "\n"


def read_index_text(text: str) -> list[Sample]:
    """Raises ValueError for anything but a whole index of version 1.2."""
    first, *lines = text.split("\n")
    if first != f"v1.2 {len(lines) - 1}" or lines[-1]:
        raise ValueError("cut short or not of version 1.2")
    samples = []
    for line in lines[:-1]:
        words = line.split(" ")
        if len(words) % 4:
            raise ValueError("a line is not of the form EXTENSION OFFSET SIZE NAME ...")
        members = {
            words[i]: (int(words[i + 1]), int(words[i + 2])) for i in range(0, len(words), 4)
        }
        if "json" not in members:
            raise ValueError(f"a sample without JSON: {line}")
        samples.append(Sample(words[3].split(".", 1)[0], members))
    return samples


TRACK_TYPE = np.dtype(
    [
        ("encoding", "U5"), ("num_frames", "i4"), ("height", "i4"), ("width", "i4"),
        ("offset", "i8"), ("first", "i8"), ("count", "i4"),
    ]
)  # fmt: skip
"""A row per clip. `offset`: where the member's data begin; `first`, `count`: its pieces in
`ShardIndex.sizes`. A modality that the clip lacks has count 0."""


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """All that a reader needs of one shard but the pixels: what its `.npz` holds."""

    num_bytes: int
    """Of the tar file."""

    names_json: NDArray[np.uint8]
    """The N names as in the split lists: bytes of a JSON list."""

    described: NDArray[np.int64]
    """(N, 3) offset, size and CRC32 of each clip's JSON."""

    rgb: NDArray[np.void]
    """(N,) of TRACK_TYPE."""

    depth: NDArray[np.void]
    sizes: NDArray[np.uint32]
    """(P,) bytes of all pieces, clip after clip, RGB before depth."""

    crc32: NDArray[np.uint32]
    """(P,) of the same."""

    @cached_property
    def names(self) -> list[str]:
        return json.loads(self.names_json.tobytes())


def shard_index(num_bytes: int, samples: Sequence[Sample], texts: Sequence[bytes]) -> ShardIndex:
    """The index of a shard whose clips have these JSON members.

    Raises ValueError, starting with the clip's key, where members and JSON disagree.
    """
    names: list[str] = []
    rows: dict[str, list[Any]] = {modality: [] for modality in MODALITIES}
    sizes: list[int] = []
    crcs: list[int] = []
    for sample, text in zip(samples, texts, strict=True):
        try:
            record = json.loads(text)
            names.append(record["name"])
            if record["version"] != VERSION or key_of(record["name"]) != sample.key:
                raise ValueError("of another version or clip")
            for modality in MODALITIES:
                rows[modality].append(_row(record.get(modality), sample, len(sizes)))
                if modality in record:
                    sizes += record[modality]["sizes"]
                    crcs += record[modality]["crc32"]
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"{sample.key}: its members do not fit together ({error})") from None
    described = [(*s.members["json"], zlib.crc32(t)) for s, t in zip(samples, texts, strict=True)]
    return ShardIndex(
        num_bytes,
        np.frombuffer(json.dumps(names).encode(), np.uint8),
        np.array(described, np.int64).reshape(-1, 3),
        np.array(rows["rgb"], TRACK_TYPE),
        np.array(rows["depth"], TRACK_TYPE),
        np.array(sizes, np.uint32),
        np.array(crcs, np.uint32),
    )


def _row(track: Mapping[str, Any] | None, sample: Sample, first: int) -> tuple[Any, ...]:
    if track is None:
        return ("", 0, 0, 0, 0, first, 0)
    offset, size = sample.members[track["member"]]
    if sum(track["sizes"]) != size or len(track["sizes"]) != len(track["crc32"]):
        raise ValueError("sizes of its frames")
    shape = (track["num_frames"], track["height"], track["width"])
    numbers = [*shape, *track["sizes"], *track["crc32"]]
    if not all(isinstance(number, int) and 0 <= number < 2**32 for number in numbers):
        raise ValueError("numbers out of range")
    if max(shape) >= 2**31 or track["encoding"] not in (*EXTENSIONS, VIDEO):
        raise ValueError("shape or encoding")
    if track["num_frames"] != len(track["sizes"]) and track["encoding"] != VIDEO:
        raise ValueError("number of frames")
    return (track["encoding"], *shape, offset, first, len(track["sizes"]))
