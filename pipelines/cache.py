"""Results worth keeping between runs, one JSON line each. Never the only copy of anything: a cache
that cannot be read or written costs time, not the run."""

import hashlib
import json
import os
from collections.abc import Callable
from typing import Any

from pipelines.config import DataConfig


class JsonLines:
    """A dictionary in an append-only file: a kill loses at most the line being written."""

    def __init__(self, path: str | None, log: Callable[[str], None]) -> None:
        """Reads `path`, or keeps everything in memory without one. Raises OSError on no access."""
        self._path = path
        self._log = log
        self._entries = _read(path) if path else {}

    def get(self, key: str) -> Any:
        """The last value put under `key`, or None."""
        return self._entries.get(key)

    def put(self, key: str, value: Any) -> None:
        """Keeps `value` (plain JSON data) under `key`, on disk at once if the disk takes it."""
        self._entries[key] = value
        if self._path is None:
            return
        try:
            # One short appending write: several processes add whole lines side by side.
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps([key, value]) + "\n")
        except OSError as error:
            self._log(f"{self._path}: {error.strerror}; going on without this cache")
            self._path = None


def open_cache(config: DataConfig, name: str, log: Callable[[str], None]) -> JsonLines:
    """The cache `name` in the first folder that can be written; in memory alone if none can."""
    problem = ""
    for folder in _folders(config):
        path = os.path.join(folder, f"{name}.jsonl")
        try:
            os.makedirs(folder, exist_ok=True)
            return JsonLines(path, log)
        except OSError as error:
            problem = f"{path}: {error.strerror}; set data.cache_dir to a folder for such results"
    log(problem)
    return JsonLines(None, log)


def open_user_cache(name: str) -> JsonLines:
    """Opens the cache `name` of what holds for every data set; in memory alone, without a word, if
    the user's cache folder cannot be written."""
    try:
        os.makedirs(_user_folder(), exist_ok=True)
        return JsonLines(os.path.join(_user_folder(), f"{name}.jsonl"), lambda problem: None)
    except OSError:
        return JsonLines(None, lambda problem: None)


def _folders(config: DataConfig) -> list[str]:
    if config.cache_dir:
        return [os.path.expanduser(config.cache_dir)]
    root = os.path.abspath(os.path.expanduser(config.root))
    digest = hashlib.sha256(root.encode(errors="surrogateescape")).hexdigest()[:16]
    return [os.path.join(root, ".rgbd_cache"), os.path.join(_user_folder(), digest)]


def _user_folder() -> str:
    user = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(user, "rgbd-motion-engine")


def _read(path: str) -> dict[str, Any]:
    entries = {}
    # "a+" creates the file and shows now, not at the first result, that it cannot be written.
    with open(path, "a+", encoding="utf-8", errors="replace") as file:
        file.seek(0)
        text = file.read()
        if text and not text.endswith("\n"):
            file.write("\n")  # the last writer was killed: its line must not swallow the next
    for line in text.splitlines():
        try:
            key, value = json.loads(line)
            entries[key] = value
        except (ValueError, TypeError):  # torn: this result is computed again
            continue
    return entries
