"""Small packs made of small rendered clips: for tests of what writes, reads and checks them."""

import io
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from clips import depth_frames, rgb_frames
from pipelines.pack_format import PackedClip, depth_track, image_track
from pipelines.pack_reader import Pack
from pipelines.pack_writer import PackWriter

FRAMES = 5


def jpegs(num_frames: int = FRAMES, seed: int = 0, **size: int) -> list[bytes]:
    """Encoded frames of a clip."""
    return [encode(frame, "JPEG") for frame in rgb_frames(num_frames, seed=seed, **size)]


def encode(frame, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, kind)
    return file.getvalue()


def rgbd_clip(number: int, name: str | None = None) -> PackedClip:
    """64x48 RGB and 16-bit depth, some 13 kB of them."""
    tracks = {
        "rgb": image_track(jpegs(seed=number)),
        "depth": depth_track(depth_frames(FRAMES, seed=number)),
    }
    return PackedClip(name or f"set/c {number}.x", tracks, [("train", number)])


def write_pack(folder: Path, clips: Iterable[PackedClip], shard_bytes: int = 2**20) -> Pack:
    with PackWriter(folder, shard_bytes) as writer:
        for clip in clips:
            writer.add(clip)
    return Pack.open(folder)


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a pack that carry clips."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("shard-*"))}


def assert_same_shards(folder: Path, expected: Path) -> None:
    """But for the reader's own index, whose container keeps the time."""
    one, other = contents(folder), contents(expected)
    assert one.keys() == other.keys()
    for name in one:
        assert name.endswith(".npz") or one[name] == other[name], name


def flip_bit(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
