"""What a downloaded data set holds: clips, where their frames are, who is in which list. Names and
paths only; no frame is read."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

VIDEO_SUFFIXES = (".avi", ".mp4", ".webm", ".mkv", ".mov", ".m4v", ".mpg")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Video:
    """The frames of one video file."""

    path: str
    window: tuple[int, int] | None = None
    """First frame, counted from 0, and one past the last; None: all of them."""


@dataclass(frozen=True)
class Images:
    """The numbered image files of one folder."""

    path: str
    """The folder."""

    def files(self) -> list[str]:
        """All of them by number. ValueError: a hole in the numbers; OSError: no such folder."""
        names = [n for n in os.listdir(self.path) if n.lower().endswith(IMAGE_SUFFIXES)]
        numbered = sorted((_number(name), name) for name in names)
        for (number, name), (following, _) in pairwise(numbered):
            if following != number + 1:
                raise ValueError(f"{self.path}: frame {number + 1} is missing after {name}")
        return [os.path.join(self.path, name) for _, name in numbered]


@dataclass(frozen=True)
class Stream:
    """One modality of a clip."""

    modality: str
    source: Video | Images
    masks: Images | None = None
    """Masked depth frames around whose person the frames are cut."""


@dataclass(frozen=True)
class SourceClip:
    """One clip of the download: prepared as a whole or rejected as a whole."""

    name: str
    """As the layout knows it (pipelines/layouts.py)."""

    streams: tuple[Stream, ...]


@dataclass(frozen=True)
class Line:
    """One line of a split list, but for the number of frames, which preparation finds out."""

    name: str
    label: int
    clip: str
    """Name of its SourceClip."""

    modality: str
    """Whose frames are counted."""


@dataclass(frozen=True)
class Download:
    """A data set as found in --source."""

    layout: str
    """Where its frames go: a layout of pipelines/layouts.py."""

    clips: tuple[SourceClip, ...]
    lists: Mapping[str, tuple[Line, ...]]
    """By path below --out."""

    classes: tuple[str, ...] = ()
    """Names in the order of the labels, where the data set has them."""

    rejected: Mapping[str, str] = field(default_factory=dict)
    """Clips that cannot be prepared, and why."""

    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Wishes:
    """What the command line asks of the data set's module."""

    modality: str = "rgbd"
    roi: bool = True
    exclude: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    """Files with the labels of a split, by the split's name."""

    eval_every: int = 5

    @property
    def modalities(self) -> tuple[str, ...]:
        return ("rgb", "depth") if self.modality == "rgbd" else (self.modality,)


def folders_below(root: str, depth: int) -> Iterator[str]:
    """`root` and the folders at most `depth` levels below it, nearer ones first, by name."""
    level = [root]
    yield root
    for _ in range(depth):
        level = [
            entry.path
            for folder in level
            for entry in sorted(os.scandir(folder), key=lambda entry: entry.name)
            if entry.is_dir() and not entry.name.startswith(".")
        ]
        yield from level


def find_file(root: str, pattern: str, what: str, depth: int = 1) -> str:
    """The one file whose name matches the regular expression. ValueError: none, or several."""
    if found := find_file_if_any(root, pattern, what, depth):
        return found
    raise ValueError(f"{root}: no {what}, nor in the folders in it; is it the right --source?")


def find_file_if_any(root: str, pattern: str, what: str, depth: int = 1) -> str | None:
    """The one file whose name matches, or None. ValueError: several."""
    found = [
        entry.path
        for folder in folders_below(root, depth)
        for entry in os.scandir(folder)
        if re.fullmatch(pattern, entry.name) and entry.is_file()
    ]
    if len(found) > 1:
        raise ValueError(f"{root}: several {what}: {', '.join(sorted(found))}; keep one of them")
    return found[0] if found else None


def lines_of(path: str) -> list[tuple[int, str]]:
    """Number and text of each line that is not blank."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            return [(n, line.strip()) for n, line in enumerate(file, 1) if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); restore it") from None


def without_repeats(clips: Iterable[SourceClip]) -> tuple[SourceClip, ...]:
    """The clips; ValueError where two of them would go to one place."""
    by_name: dict[str, SourceClip] = {}
    for clip in clips:
        if clip.name in by_name:
            paths = ", ".join(c.streams[0].source.path for c in (by_name[clip.name], clip))
            raise ValueError(f"{paths}: two clips are called '{clip.name}'; rename or remove one")
        by_name[clip.name] = clip
    return tuple(by_name.values())


def _number(name: str) -> int:
    digits = re.findall(r"\d+", name)
    return int(digits[-1]) if digits else 0
