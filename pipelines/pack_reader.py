"""Sampled frames of any clip of a pack, by offset. Decodes no image: depth alone is decompressed.

Files are read, not mapped: a mapped file that shrinks, or whose disk fails, kills the process with
SIGBUS, and a page fault on a cold file makes all other Python threads wait (docs/packs.md).
"""

import io
import os
import struct
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import lz4.block
import numpy as np
from numpy.typing import NDArray

from pipelines.pack_format import (
    LZ4,
    MODALITIES,
    VIDEO,
    Sample,
    ShardIndex,
    TrackInfo,
    read_index_text,
    shard_index,
)

PARTIAL = ".partial"
"""Ends the names of files that are not whole yet."""

Frames = Sequence[int] | NDArray[np.integer]
"""0-based numbers in any order; repeats are read once."""


class Pack:
    """The clips of a folder of shards, by the names of the split lists.

    Shards are opened when first needed; threads may share a pack, and other processes get their own
    files by pickling it or by fork. All bytes are held to their CRC32 before they are handed out.
    """

    def __init__(self, folder: Path, shards: Sequence[Path], indices: Sequence[ShardIndex]) -> None:
        self.folder = folder
        self.shards = tuple(shards)
        self._indices = tuple(indices)
        self._open: dict[int, io.FileIO] = {}
        self._places = {
            name: (shard, row)
            for shard, index in enumerate(indices)
            for row, name in enumerate(index.names)
        }

    @classmethod
    def open(cls, folder: str | Path) -> "Pack":
        """Reads the indices alone: those of shards from elsewhere are made now, and kept.

        Raises ValueError naming the shard whose index is missing or does not fit it.
        """
        shards = find_shards(Path(folder))
        if not shards:
            raise ValueError(f"{folder}: holds no shard-000000.tar; is it the folder of a pack?")
        return cls(Path(folder), shards, list(map(load_index, shards)))

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, clip: object) -> bool:
        return clip in self._places

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    @property
    def names(self) -> tuple[str, ...]:
        """In the order of the shards."""
        return tuple(self._places)

    def modalities(self, clip: str) -> tuple[str, ...]:
        shard, row = self._place(clip)
        return tuple(m for m in MODALITIES if getattr(self._indices[shard], m)[row]["count"])

    def info(self, clip: str, modality: str) -> TrackInfo:
        _, track = self._track(clip, modality)
        shape = (int(track[key]) for key in ("num_frames", "height", "width"))
        return TrackInfo(str(track["encoding"]), *shape)

    def shard_of(self, clip: str) -> Path:
        return self.shards[self._place(clip)[0]]

    def stored_bytes(self, clip: str, modality: str) -> int:
        """Of all frames, as they are in the shard."""
        return int(self._sizes(*self._track(clip, modality)).sum())

    def crc32(self, clip: str, modality: str) -> NDArray[np.uint32]:
        """(T,) of each frame's bytes; of a video one."""
        shard, track = self._track(clip, modality)
        return self._indices[shard].crc32[track["first"] : track["first"] + track["count"]]

    def extents(self, clip: str, modality: str, frames: Frames) -> NDArray[np.int64]:
        """(T, 2) offset in the clip's shard and size of each frame; one frame 0 for a video."""
        shard, track = self._track(clip, modality)
        sizes = self._sizes(shard, track)
        wanted = np.asarray(frames, np.int64)
        if len(wanted) and not 0 <= wanted.min() <= wanted.max() < len(sizes):
            raise ValueError(
                f"{self.shards[shard]}: clip '{clip}' has {modality} frames 0 to {len(sizes) - 1}, "
                f"not {wanted.min() if wanted.min() < 0 else wanted.max()}; correct its split list"
            )
        ends = np.cumsum(sizes) + track["offset"]
        return np.stack([(ends - sizes)[wanted], sizes[wanted]], axis=1)

    def encoded(self, clip: str, modality: str, frames: Frames) -> list[NDArray[np.uint8]]:
        """The bytes of each frame: views of one buffer, read-only, into which they were read.

        Raises ValueError naming shard, clip and frame whose bytes are not those of the index.
        """
        if not len(frames):
            return []
        shard, track = self._track(clip, modality)
        unique, places = np.unique(np.asarray(frames, np.int64), return_inverse=True)
        extents = self.extents(clip, modality, unique).tolist()
        buffer = np.empty(sum(size for _, size in extents), np.uint8)
        self._read(shard, clip, extents, buffer.data)
        buffer.setflags(write=False)
        expected = self._indices[shard].crc32[track["first"] + unique].tolist()
        views, at = [], 0
        for frame, (start, size), crc in zip(unique.tolist(), extents, expected, strict=True):
            views.append(buffer[at : at + size])
            if zlib.crc32(views[-1].data) != crc:
                piece = "video" if track["encoding"] == VIDEO else f"frame {frame}"
                what = f"{modality} {piece} differs (bytes {start} to {start + size - 1})"
                raise ValueError(self._damaged(shard, clip, what))
            at += size
        return [views[place] for place in places.tolist()]

    def video(self, clip: str, modality: str) -> NDArray[np.uint8]:
        """The bytes of a video file, read-only."""
        assert self.info(clip, modality).encoding == VIDEO
        return self.encoded(clip, modality, [0])[0]

    def depth_frames(
        self, clip: str, frames: Frames, out: NDArray[np.uint16] | None = None
    ) -> NDArray[np.uint16]:
        """(T, H, W) millimetres of these frames, into `out` where it is given.

        Decompression leaves the interpreter to other threads. Raises ValueError as `encoded`.
        """
        info = self.info(clip, "depth")
        assert info.encoding == LZ4, f"depth of clip '{clip}' is {info.encoding}: decode `encoded`"
        shape = (info.height, info.width)
        out = np.empty((len(frames), *shape), np.uint16) if out is None else out
        assert out.shape == (len(frames), *shape) and out.dtype == np.uint16
        encoded = self.encoded(clip, "depth", frames)
        for place, data in enumerate(encoded):
            if place and data is encoded[place - 1]:  # short clips repeat frames side by side
                out[place] = out[place - 1]
                continue
            try:
                raw = lz4.block.decompress(data, uncompressed_size=out[place].nbytes)
                out[place] = np.frombuffer(raw, "<u2").reshape(shape)
            except ValueError as error:  # LZ4BlockError among them
                what = f"depth frame {int(frames[place])} is no LZ4 of {shape[1]}x{shape[0]} pixels"
                raise ValueError(
                    self._damaged(self._place(clip)[0], clip, f"{what} ({error})")
                ) from None
        return out

    def check_shards(self) -> None:
        """Raises ValueError naming the first shard that is not of its index's length."""
        for shard, index in enumerate(self._indices):
            if index.names:
                self._file(shard, index.names[0])

    def _place(self, clip: str) -> tuple[int, int]:
        """Number of the shard, row in its index."""
        try:
            return self._places[clip]
        except KeyError:
            raise ValueError(
                f"{self.folder}: no clip '{clip}' in its {len(self.shards)} shards; correct the "
                "split list or add the clip to the pack"
            ) from None

    def _track(self, clip: str, modality: str) -> tuple[int, np.void]:
        shard, row = self._place(clip)
        track = getattr(self._indices[shard], modality)[row]
        if not track["count"]:
            raise ValueError(
                f"{self.shards[shard]}: clip '{clip}' has no {modality}; set data.modality to what "
                "the pack holds, or write it with both"
            )
        return shard, track

    def _sizes(self, shard: int, track: np.void) -> NDArray[np.int64]:
        first = track["first"]
        return self._indices[shard].sizes[first : first + track["count"]].astype(np.int64)

    def _read(
        self, shard: int, clip: str, extents: Sequence[Sequence[int]], memory: memoryview
    ) -> None:
        """Extents in ascending order -> memory; neighbours in one read."""
        file = self._file(shard, clip)
        runs: list[list[int]] = []
        for offset, size in extents:
            if runs and runs[-1][1] == offset:
                runs[-1][1] += size
            else:
                runs.append([offset, offset + size])
        for offset, stop in runs:
            while offset < stop:
                try:
                    got = os.preadv(file.fileno(), [memory[: stop - offset]], offset)
                except OSError as error:  # the system's message has no file name
                    raise OSError(error.errno, error.strerror, str(file.name)) from None
                if not got:
                    end = os.fstat(file.fileno()).st_size
                    what = f"it was cut short at byte {end} while in use"
                    raise ValueError(self._damaged(shard, clip, what))
                offset, memory = offset + got, memory[got:]

    def _file(self, shard: int, clip: str) -> io.FileIO:
        if shard in self._open:
            return self._open[shard]
        file = io.FileIO(self.shards[shard])
        size, expected = os.fstat(file.fileno()).st_size, self._indices[shard].num_bytes
        if size != expected:
            file.close()
            what = f"it has {size} bytes, {expected} when its index was made"
            if size < expected:
                what = f"it is cut short at byte {size} of {expected}"
            raise ValueError(self._damaged(shard, clip, what))
        return self._open.setdefault(shard, file)  # of two threads, the first wins

    def _damaged(self, shard: int, clip: str, what: str) -> str:
        path = self.shards[shard]
        return (
            f"{path}: clip '{clip}': {what}; the shard was damaged or replaced: restore it, or "
            f"delete {path.with_suffix('.npz').name} if it was replaced on purpose"
        )


def find_shards(folder: Path) -> list[Path]:
    """The complete shards, in order."""
    return sorted(folder.glob(f"shard-{'[0-9]' * 6}.tar"))


TORN = (
    OSError, EOFError, ValueError, KeyError, TypeError, RuntimeError, OverflowError, MemoryError,
    BadZipFile, zlib.error, struct.error,
)  # fmt: skip
"""What NumPy and zipfile raise for the many ways in which an .npz can be damaged."""


def load_index(shard: Path) -> ShardIndex:
    """What was kept beside the shard; where that is missing, made from the shard and kept."""
    try:
        with np.load(shard.with_suffix(".npz")) as arrays:
            kept = {field.name: arrays[field.name] for field in fields(ShardIndex)}
            return ShardIndex(**{**kept, "num_bytes": int(kept["num_bytes"])})
    except TORN:
        index = build_index(shard)  # none, or torn: the shard has it all
    with suppress(OSError):  # in a folder that cannot be written it is made anew each time
        save_index(shard, index)
    return index


def save_index(shard: Path, index: ShardIndex) -> None:
    """Keeps the index beside the shard, atomically."""
    path = shard.with_suffix(".npz")
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    with partial.open("wb") as file:
        np.savez(file, **{field.name: getattr(index, field.name) for field in fields(index)})
    os.replace(partial, path)


def build_index(shard: Path) -> ShardIndex:
    """From the `.idx` and the JSON members alone.

    Raises ValueError naming the shard, and the clip's key where one is at fault.
    """
    samples = read_samples(shard)
    try:
        with shard.open("rb", buffering=0) as file:
            length = os.fstat(file.fileno()).st_size
            for sample in samples:
                if any(not 0 <= at <= at + size <= length for at, size in sample.members.values()):
                    raise ValueError(f"{sample.key}: its members lie outside of {length} bytes")
            texts = [os.pread(file.fileno(), s.members["json"][1], s.members["json"][0])
                     for s in samples]  # fmt: skip
            return shard_index(length, samples, texts)
    except (ValueError, KeyError) as error:
        raise ValueError(f"{shard}: {error}; restore the shard and its .idx") from None


def read_samples(shard: Path) -> list[Sample]:
    """The clips of a shard by its `.idx`."""
    path = shard.with_suffix(".idx")
    try:
        return read_index_text(path.read_text())
    except OSError as error:
        what = error.strerror
    except ValueError as error:
        what = str(error)
    raise ValueError(f"{path}: {what}; restore it, or make it: wds2idx {shard} {path}") from None
