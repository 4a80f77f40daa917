"""What is finished in a prepared data set, and the checksums that prove it still is. Knows no data
set and decodes nothing."""

import fcntl
import json
import os
import threading
import zlib
from dataclasses import asdict, dataclass

FILE = "manifest.jsonl"


@dataclass(frozen=True)
class Entry:
    """One finished output: the folder of a clip's frames, or its video."""

    pattern: str
    """File name of a frame for str.format, such as `{frame:06d}.jpg`; empty for a video."""

    first: int
    """Number of the first frame's file."""

    frames: int
    bytes: int
    crc32: str
    """Eight hexadecimal digits per file."""

    millimetres: bool
    """Whether frames are 16-bit depth."""

    made: str
    """Of what and how: the same again need not be made."""

    boxes: tuple[int, int] = (0, 0)
    """Frames cut around the nearest frame's person, and around the middle for want of any."""

    def files(self, path: str) -> list[str]:
        """The files of the output at `path`."""
        if not self.pattern:
            return [path]
        numbers = range(self.first, self.first + self.frames)
        return [os.path.join(path, self.pattern.format(frame=number)) for number in numbers]


def checksum(data: bytes) -> str:
    return f"{zlib.crc32(data):08x}"


class Manifest:
    """The entries of one prepared folder by output path, appended as they are finished: a kill
    loses at most the one being written. One process at a time."""

    def __init__(self, out: str) -> None:
        """Opens or begins the manifest of `out`. ValueError if another process writes there."""
        self.path = os.path.join(out, FILE)
        self._file = open(self.path, "a+", encoding="utf-8")  # noqa: SIM115 - until close()
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise ValueError(f"{out}: another process prepares here; wait for it") from None
        self._entries = read(out)
        self._lock = threading.Lock()
        self._file.write("\n")  # a torn last line must not swallow the next one

    def get(self, path: str) -> Entry | None:
        return self._entries.get(path)

    def put(self, path: str, entry: Entry | None) -> None:
        """Keeps the entry, on disk at once; None: forgets it."""
        with self._lock:
            if entry is None and path not in self._entries:
                return
            self._file.write(_line(path, entry))
            self._file.flush()
            if entry is None:
                del self._entries[path]
            else:
                self._entries[path] = entry

    def close(self) -> None:
        """Leaves the entries sorted: however often the work was interrupted, the same file."""
        part = f"{self.path}.partial"
        with open(part, "w", encoding="utf-8") as file:
            file.writelines(_line(path, self._entries[path]) for path in sorted(self._entries))
        os.replace(part, self.path)
        self._file.close()


def read(out: str) -> dict[str, Entry]:
    """The finished outputs of a prepared folder by their paths below it. OSError: no manifest."""
    entries: dict[str, Entry] = {}
    with open(os.path.join(out, FILE), encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                path, fields = json.loads(line)
                if fields is None:
                    entries.pop(path, None)
                else:
                    entries[path] = Entry(**{**fields, "boxes": tuple(fields["boxes"])})
            except (ValueError, TypeError, KeyError):  # torn: this output is made again
                continue
    return entries


def _line(path: str, entry: Entry | None) -> str:
    return json.dumps([path, asdict(entry) if entry else None]) + "\n"
