"""Files in the system's page cache and out of it, without root. Reads no image."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path


def files_below(folder: Path) -> list[Path]:
    """All files of the folder and its subfolders, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def read_in(paths: Iterable[Path]) -> None:
    """Into the page cache, as far as it has room."""
    for path in paths:
        path.read_bytes()


def drop(paths: Iterable[Path]) -> None:
    """Out of the page cache. What is in memory anyway (tmpfs) stays: `share_in_memory` tells."""
    for descriptor in _opened(paths):
        os.fsync(descriptor)  # pages not yet on the disk are not dropped
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def share_in_memory(paths: Iterable[Path]) -> float | None:
    """How many of the files, 0 to 1, begin with a page that can be read without waiting for a disk;
    None where the file system cannot tell."""
    found = []
    for descriptor in _opened(paths):
        try:
            os.preadv(descriptor, [bytearray(1)], 0, os.RWF_NOWAIT)
            found.append(True)
        except BlockingIOError:
            found.append(False)
        except OSError:  # this file system cannot read without waiting
            return None
    return sum(found) / len(found) if found else None


def _opened(paths: Iterable[Path]) -> Iterator[int]:
    """Each file's descriptor, open until the next is asked for."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            yield descriptor
        finally:
            os.close(descriptor)
