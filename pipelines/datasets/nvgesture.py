"""NvGesture (nvGesture_v1) as downloaded: colour and depth videos, of which only the annotated
window is the gesture."""

import os
import re

from pipelines.datasets.download import (
    Download,
    Line,
    SourceClip,
    Stream,
    Video,
    Wishes,
    find_file,
    lines_of,
    without_repeats,
)

SPLITS = {"train": "train", "test": "valid"}
"""Name of the official list, name of ours."""

SENSORS = {"rgb": "color", "depth": "depth"}


def find(source: str, wishes: Wishes) -> Download:
    """The clips of both official lists: `path:FOLDER SENSOR:FILE:FIRST:LAST+1 ... label:1..25`."""
    clips: list[SourceClip] = []
    lists = {}
    for split, ours in SPLITS.items():
        name = f"nvgesture_{split}_correct_cvpr2016_v2.lst"
        path = find_file(source, re.escape(name), name)
        lines = []
        for number, text in lines_of(path):
            clip, label = _parse(text, f"{path}:{number}", split, os.path.dirname(path), wishes)
            clips.append(clip)
            lines.append(Line(clip.name, label, clip.name, wishes.modalities[0]))
        lists[f"dataset_splits/{ours}.txt"] = tuple(lines)
    return Download("nvgesture", without_repeats(clips), lists)


def _parse(text: str, where: str, split: str, root: str, wishes: Wishes) -> tuple[SourceClip, int]:
    fields = dict(part.split(":", 1) for part in text.split() if ":" in part)
    try:
        folder = os.path.normpath(fields["path"])
        streams = []
        for modality in wishes.modalities:
            file, first, stop = fields[SENSORS[modality]].split(":")
            video = os.path.join(root, folder, f"{file}.avi")
            streams.append(Stream(modality, Video(video, (int(first), int(stop)))))
        label = int(fields["label"]) - 1
    except (KeyError, ValueError):
        raise ValueError(
            f"{where}: '{text}' is not 'path:FOLDER depth:FILE:FIRST:STOP color:FILE:FIRST:STOP "
            "... label:NUMBER'; restore the list"
        ) from None
    # ./Video_data/class_01/subject13_r0 -> train/class_01/subject13_r0, as in the published lists
    name = "/".join((split, *folder.split(os.sep)[-2:]))
    return SourceClip(name, tuple(streams)), label
