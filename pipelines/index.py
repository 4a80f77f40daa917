"""Split list -> clips checked against their folders. Names and numbers only; no image is opened."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from pipelines.cache import open_cache
from pipelines.config import DataConfig
from pipelines.damage import find_damage
from pipelines.finding import Found, find_media, wanted_modalities
from pipelines.layouts import modality_files
from pipelines.media import Media

MOST_SHOWN = 20
"""How many problems one error lists; the rest is a number."""


@dataclass(frozen=True)
class Clip:
    """One line of a split list."""

    name: str
    """As in the list, without a `/` at its end."""

    num_frames: int
    """Usable frames: at most as many as listed."""

    label: int
    line: int
    """Line of the list, from 1."""


@dataclass(frozen=True)
class ClipIndex:
    """The usable clips of one list, all of the same modalities, and where their frames are."""

    clips: tuple[Clip, ...]
    root: str
    media: dict[str, tuple[Media, ...]]
    """Per modality, what each clip's frames are taken from."""

    list_path: str
    left_out: int
    """Clips of the list with fewer than `data.min_frames` frames."""

    quarantined: tuple[str, ...] = ()
    """Bad clips that were left out: `list:line: name: what is wrong`."""

    def __len__(self) -> int:
        return len(self.clips)


Problems = list[tuple[int, str]]
"""Line of the list and what is wrong there."""


def scan(config: DataConfig, which: str, log: Callable[[str], None] = print) -> ClipIndex:
    """The clips of the "train" or "eval" list, checked against the folders.

    Raises one ValueError with every problem found, each `list:line: what is wrong and what to do`.
    `log` takes what is worth knowing but stops nothing.
    """
    modality_files(config)  # raises what is wrong with it before any file is looked for
    root, path = _list_path(config, which)
    listed, problems = _read_list(path, f"{which}_list", config.num_classes)
    long_enough = [clip for clip in listed if clip.num_frames >= config.min_frames]
    found = find_media(config, root, [clip.name for clip in long_enough], log)
    clips, media_problems = _check_media(long_enough, config, found)
    bad: dict[int, str] = {}
    if config.on_error == "quarantine":
        bad = dict(media_problems) | _damaged(clips, dict(media_problems), config, root, found, log)
        _check_share(path, bad, len(listed), config.max_bad)
        media_problems = []
    _raise_all(path, problems + media_problems)
    clips = [c for c in clips if c.num_frames >= config.min_frames and c.line not in bad]
    if not clips:
        raise ValueError(
            f"{path}: none of its {len(listed)} clips has data.min_frames={config.min_frames} "
            "frames; lower it or correct the list"
        )
    media = {
        m: tuple(media for clip in clips if (media := found[clip.name, m].media))
        for m in config.modalities
    }
    lines = {clip.line: clip.name for clip in listed}
    quarantined = tuple(f"{path}:{line}: {lines[line]}: {bad[line]}" for line in sorted(bad))
    too_short = len(listed) - len(clips) - len(bad)
    return ClipIndex(tuple(clips), root, media, path, too_short, quarantined)


def read_names(config: DataConfig, which: str) -> list[str]:
    """The names of a list's well-formed lines. Raises ValueError if it cannot be read."""
    _, path = _list_path(config, which)
    listed, _ = _read_list(path, f"{which}_list", config.num_classes)
    return [clip.name for clip in listed]


def _list_path(config: DataConfig, which: str) -> tuple[str, str]:
    """The data set's folder and the list's file."""
    root = os.path.expanduser(config.root)
    if not os.path.isdir(root):
        raise ValueError(f"{root}: no such folder; set data.root to where the data set is")
    return root, os.path.join(root, os.path.expanduser(getattr(config, f"{which}_list")))


def _raise_all(path: str, problems: Problems) -> None:
    if not problems:
        return
    lines = [f"{path}:{line}: {problem}" for line, problem in sorted(problems)[:MOST_SHOWN]]
    if len(problems) > MOST_SHOWN:
        lines.append(f"{path}: and {len(problems) - MOST_SHOWN} more problems")
    raise ValueError("\n".join(lines))


def _read_list(path: str, key: str, num_classes: int) -> tuple[list[Clip], Problems]:
    """The list's well-formed clips and the problems of the other lines."""
    clips: list[Clip] = []
    problems: Problems = []
    try:
        # Names are bytes to the file system: what is not UTF-8 still leads to its folder.
        with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    _parse(line.strip(), number, num_classes, clips, problems)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}; set data.{key} to the split list") from None
    if not clips and not problems:
        raise ValueError(f"{path}: is empty; it needs lines of NAME num_frames label")
    return clips, problems


def _parse(line: str, number: int, num_classes: int, clips: list[Clip], problems: Problems) -> None:
    """Adds the line to the clips or to the problems."""
    try:
        name, num_frames, label = line.rsplit(maxsplit=2)
        clip = Clip(name.rstrip("/"), int(num_frames), int(label), number)
        well_formed = clip.num_frames >= 0
    except ValueError:
        well_formed = False
    if not well_formed:
        problems.append((number, f"'{line}' is not NAME num_frames label; correct the line"))
        return
    if 0 <= clip.label < num_classes:
        clips.append(clip)
        return
    hint = "correct the label or data.num_classes"
    if clip.label == num_classes:
        hint += "; do the labels of this list start at 1? They must start at 0"
    problems.append((number, f"label {clip.label} is outside 0..{num_classes - 1}; {hint}"))


def _check_media(
    clips: Sequence[Clip], config: DataConfig, found: Mapping[tuple[str, str], Found]
) -> tuple[list[Clip], Problems]:
    """The clips with their usable frames, and the problems of those that have too few."""
    usable: list[Clip] = []
    problems: Problems = []
    for clip in clips:
        shortest = clip.num_frames
        for modality in wanted_modalities(config):
            seen = found[clip.name, modality]
            if seen.error and modality not in config.modalities:
                continue  # not on this disk, and not needed
            if seen.error or seen.num_frames < clip.num_frames - config.frame_slack:
                problems.append((clip.line, _complaint(clip, seen)))
            shortest = min(shortest, seen.num_frames)
        usable.append(replace(clip, num_frames=shortest))
    return usable, problems


def _damaged(
    clips: Sequence[Clip],
    known: Mapping[int, str],
    config: DataConfig,
    root: str,
    found: Mapping[tuple[str, str], Found],
    log: Callable[[str], None],
) -> dict[int, str]:
    """Line and damage of the clips that do not decode, of those not already `known` to be bad."""
    wanted = {}
    for clip in clips:
        for modality in config.modalities:
            media = found[clip.name, modality].media
            if media is not None and clip.line not in known:
                wanted[clip.line, modality] = (media, clip.num_frames, config.in_mm(modality))
    damage = find_damage(wanted, root, open_cache(config, "verified", log))
    return {line: what for (line, _), what in reversed(damage.items())}


def _check_share(path: str, bad: Mapping[int, str], num_listed: int, most: float) -> None:
    if len(bad) > most * num_listed:
        first = min(bad)
        raise ValueError(
            f"{path}: {len(bad)} of {num_listed} clips are bad, more than data.max_bad = {most:g}; "
            f"mend them or raise it; the first is line {first}: {bad[first]}"
        )


def _complaint(clip: Clip, found: Found) -> str:
    if found.error:
        return f"{found.error}; correct '{clip.name}', data.root or data.layout"
    return (
        f"{clip.num_frames} frames listed, {found.num_frames} found: {found.missing}, "
        "correct the list or raise data.frame_slack"
    )
