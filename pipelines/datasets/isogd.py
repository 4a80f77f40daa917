"""ChaLearn LAP IsoGD as downloaded: RGB (M_) and depth (K_) videos, three lists, of which the
organisers first published two without labels."""

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
    find_file_if_any,
    folders_below,
    lines_of,
    without_repeats,
)

SPLITS = ("train", "valid", "test")
LINE = re.compile(r"(\S+/M_(\d+))\.avi\s+(\S+/K_(\d+))\.avi(?:\s+(\d+))?")


def find(source: str, wishes: Wishes) -> Download:
    """The clips of the lists found in `source`: `RGB_FILE DEPTH_FILE LABEL`, labels from 1."""
    unknown = sorted(wishes.labels.keys() - set(SPLITS))
    if unknown:
        raise ValueError(f"--labels {unknown[0]}=...: the splits are {', '.join(SPLITS)}")
    clips: list[SourceClip] = []
    lists: dict[str, tuple[Line, ...]] = {}
    notes = []
    for split in SPLITS:
        path = wishes.labels.get(split) or _official_list(source, split)
        if path is None:
            notes.append(f"no {split}_list.txt in {source}: {split} is left out")
            continue
        root = _root(source, split)
        lines = [_parse(text, f"{path}:{number}", root, wishes) for number, text in lines_of(path)]
        clips += [clip for clip, _ in lines]
        if any(label is None for _, label in lines):
            notes.append(
                f"{path}: without labels, so no list of it is written; give the organisers' "
                f"labelled list: --labels {split}=FILE"
            )
            continue
        lists[f"dataset_splits/{split}.txt"] = tuple(
            Line(clip.name, label - 1, clip.name, wishes.modalities[0])
            for clip, label in lines
            if label is not None
        )
    return Download("isogd", without_repeats(clips), lists, notes=tuple(notes))


def _official_list(source: str, split: str) -> str | None:
    """The list's path; None where a phase with no training clips is not there."""
    find_it = find_file if split == "train" else find_file_if_any
    return find_it(source, rf"{split}_list\.txt", f"{split}_list.txt", depth=2)


def _root(source: str, split: str) -> str:
    """The folder that holds `train/001`."""
    for folder in folders_below(source, 2):
        if os.path.isdir(os.path.join(folder, split)):
            return folder
    raise ValueError(
        f"{source}: no {split}/001/M_00001.avi, nor in IsoGD_phase_1 or IsoGD_phase_2 in it; give "
        "as --source the folder that holds both phases"
    )


def _parse(text: str, where: str, root: str, wishes: Wishes) -> tuple[SourceClip, int | None]:
    match = LINE.fullmatch(text)
    if not match or match[2] != match[4]:
        raise ValueError(
            f"{where}: '{text}' is not 'train/001/M_00001.avi train/001/K_00001.avi LABEL'; "
            "restore the list"
        )
    files = {"rgb": match[1], "depth": match[3]}
    streams = tuple(
        Stream(modality, Video(os.path.join(root, f"{files[modality]}.avi")))
        for modality in wishes.modalities
    )
    return SourceClip(match[1], streams), int(match[5]) if match[5] else None
