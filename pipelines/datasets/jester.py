"""20BN-Jester as downloaded: folders of numbered JPEG frames (version 1) or .webm videos, with CSV
lists."""

import os
from collections.abc import Iterable

from pipelines.datasets.download import (
    VIDEO_SUFFIXES,
    Download,
    Images,
    Line,
    SourceClip,
    Stream,
    Video,
    Wishes,
    find_file,
    folders_below,
    lines_of,
    without_repeats,
)

SPLITS = {"train": "train", "validation": "valid"}
"""Name of the official list, name of ours."""


def find(source: str, wishes: Wishes) -> Download:
    """The clips of both lists, lines of `ID;LABEL NAME`; labels count the lines of the labels."""
    names = find_file(source, r".*labels\.csv", "jester-v1-labels.csv")
    classes = tuple(text.split(";")[0] for _, text in lines_of(names))
    labels = {name: label for label, name in enumerate(classes)}
    listed: dict[str, list[tuple[str, int]]] = {}
    for split in SPLITS:
        path = find_file(source, rf".*{split}\.csv", f"jester-v1-{split}.csv")
        listed[split] = [_parse(text, f"{path}:{n}", labels, names) for n, text in lines_of(path)]
    ids = [clip for lines in listed.values() for clip, _ in lines]
    root = _root(source, ids)
    clips, rejected = [], {}
    for clip in ids:
        frames = _frames(root, clip)
        if frames is None:
            rejected[clip] = f"no {os.path.join(root, clip)}, neither folder nor video"
        else:
            clips.append(SourceClip(clip, (Stream("rgb", frames),)))
    lists = {
        f"dataset_splits/{SPLITS[split]}.txt": tuple(Line(c, n, c, "rgb") for c, n in lines)
        for split, lines in listed.items()
    }
    return Download("jester", without_repeats(clips), lists, classes, rejected)


def _parse(text: str, where: str, labels: dict[str, int], names: str) -> tuple[str, int]:
    clip, separator, label = (part.strip() for part in text.partition(";"))
    if not separator:
        raise ValueError(f"{where}: '{text}' is not 'ID;LABEL NAME'; restore the list")
    if label not in labels:
        raise ValueError(f"{where}: label '{label}' is not in {names}; restore both lists")
    return clip, labels[label]


def _root(source: str, ids: Iterable[str]) -> str:
    """The folder that holds the clips: that of the first clip found at all."""
    folders = [
        folder for folder in folders_below(source, 1) if not os.path.basename(folder).isdigit()
    ]
    for clip in ids:
        for folder in folders:
            if _frames(folder, clip):
                return folder
    raise ValueError(
        f"{source}: no folder 20bn-jester-v1/{next(iter(ids), 'ID')} of frames, nor a video of "
        "that name; give as --source the folder that holds 20bn-jester-v1"
    )


def _frames(root: str, clip: str) -> Video | Images | None:
    path = os.path.join(root, clip)
    if os.path.isdir(path):
        return Images(path)
    videos = (path + suffix for suffix in VIDEO_SUFFIXES)
    return next((Video(video) for video in videos if os.path.isfile(video)), None)
