"""Clips -> the shards of a pack: whole, in order, the same bytes each time. Decodes and compresses
nothing: pipelines/pack_format.py makes tracks, in as many threads as the caller has."""

import fcntl
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from pipelines.pack_format import (
    MODALITIES,
    SHARD_END,
    PackedClip,
    Sample,
    describe,
    extension_of,
    index_text,
    key_of,
    member_header,
    padding,
    shard_index,
)
from pipelines.pack_reader import PARTIAL, Pack, find_shards, load_index, save_index

SHARD_BYTES = 2**30
"""Large enough for long reads, small enough to copy one by one; 100 GB are 100 shards."""


class PackWriter:
    """Adds clips to the pack in a folder, new or existing. A context manager.

    A shard appears under its name when it is whole. A kill, or an error inside the `with`, loses
    the clips of the shard in work; the same clips added again in the same order give the bytes of
    an undisturbed run, and those in complete shards are not written again.
    """

    def __init__(self, folder: str | Path, shard_bytes: int = SHARD_BYTES) -> None:
        """A clip that would take its shard beyond `shard_bytes` starts the next one."""
        if shard_bytes < 1:
            raise ValueError(f"shard_bytes is {shard_bytes}; it must be at least 1")
        self.folder = Path(folder)
        self.shard_bytes = shard_bytes
        self._held = ExitStack()
        self._shard: _Shard | None = None

    def __enter__(self) -> "PackWriter":
        """Raises ValueError where another process writes or a complete shard is damaged."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            _claim(self.folder, stack)
            for path in self.folder.glob(f"*{PARTIAL}"):
                path.unlink()  # of a writer that was killed
            shards = find_shards(self.folder)
            self._pack = Pack(self.folder, shards, list(map(load_index, shards)))
            self._pack.check_shards()
            self._held = stack.pop_all()
        self._added: dict[str, dict[str, int]] = {}
        self._number = 1 + max((int(path.stem[-6:]) for path in self._pack.shards), default=-1)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._held:
            shard, self._shard = self._shard, None
            if shard is not None:
                shard.discard() if kind else shard.finish()

    def holds(self, name: str, num_frames: Mapping[str, int]) -> bool:
        """Whether the pack has the clip, with so many frames of these modalities.

        Raises ValueError if it has it with others.
        """
        found = self._added.get(name) or {
            modality: self._pack.info(name, modality).num_frames
            for modality in (self._pack.modalities(name) if name in self._pack else ())
        }
        if found and found != dict(num_frames):
            raise ValueError(
                f"{self.folder}: holds clip '{name}' with frames {found}, not {dict(num_frames)}; "
                "write the pack into a new folder"
            )
        return bool(found)

    def add(self, clip: PackedClip) -> bool:
        """Appends the clip; False where the pack holds it already."""
        num_frames = {m: clip.tracks[m].info.num_frames for m in MODALITIES if m in clip.tracks}
        if not num_frames:
            raise ValueError(f"clip '{clip.name}' has neither RGB nor depth")
        if self.holds(clip.name, num_frames):
            return False
        members = _members(clip)
        if self._shard and self._shard.size + _tar_bytes(members) > self.shard_bytes:
            self._shard.finish()
            self._shard = None
        if self._shard is None:
            self._shard = _Shard(self.folder / f"shard-{self._number:06d}.tar")
            self._number += 1
        self._shard.add(key_of(clip.name), members)
        self._added[clip.name] = num_frames
        return True


def _members(clip: PackedClip) -> list[tuple[str, Sequence[bytes]]]:
    """Extension and pieces of each."""
    tracks = [(m, clip.tracks[m]) for m in MODALITIES if m in clip.tracks]
    return [("json", (describe(clip),)), *((extension_of(m, t), t.pieces) for m, t in tracks)]


def _tar_bytes(members: Sequence[tuple[str, Sequence[bytes]]]) -> int:
    sizes = [sum(map(len, pieces)) for _, pieces in members]
    return sum(size + len(padding(size)) + len(member_header("", size)) for size in sizes)


class _Shard:
    """The tar file in work."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self._file: BinaryIO = _partial(path).open("wb")
        self._samples: list[Sample] = []
        self._texts: list[bytes] = []

    def add(self, key: str, members: Sequence[tuple[str, Sequence[bytes]]]) -> None:
        places = {}
        for extension, pieces in members:
            size = sum(map(len, pieces))
            self._write(member_header(f"{key}.{extension}", size))
            places[extension] = (self.size, size)
            for piece in pieces:
                self._write(piece)
            self._write(padding(size))
        self._samples.append(Sample(key, places))
        self._texts.append(members[0][1][0])

    def _write(self, data: bytes) -> None:
        with _named(self._file):
            self._file.write(data)
        self.size += len(data)

    def finish(self) -> None:
        """The tar's own name comes last: a shard that has it is whole and has its indices."""
        self._write(SHARD_END)
        with _named(self._file):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        index_path = self.path.with_suffix(".idx")
        _partial(index_path).write_text(index_text(self._samples))
        os.replace(_partial(index_path), index_path)
        save_index(self.path, shard_index(self.size, self._samples, self._texts))
        os.replace(_partial(self.path), self.path)

    def discard(self) -> None:
        with suppress(OSError):  # of a full disk: what is still in the buffer goes, too
            self._file.close()
        _partial(self.path).unlink()


@contextmanager
def _named(file: BinaryIO) -> Iterator[None]:
    """A full disk: the system's message has no file name."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, file.name) from None


def _partial(path: Path) -> Path:
    return path.with_name(path.name + PARTIAL)


def _claim(folder: Path, stack: ExitStack) -> None:
    """Keeps other writers out of the folder until `stack` closes."""
    lock = stack.enter_context((folder / "lock").open("a"))
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"{folder}: another process writes this pack; wait for it") from None
    except OSError as error:  # a file system without locks
        print(f"{folder}/lock: cannot be locked ({error.strerror}): make sure that no other "
              "process writes this pack", file=sys.stderr)  # fmt: skip
