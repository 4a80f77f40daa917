"""THU-READ as downloaded: clips called RGB_ACTION_SUBJECT_TAKE and D_ACTION_SUBJECT_TAKE, wherever
in the folder, each a video or a folder of frames."""

import os
import re
from collections.abc import Iterator

from pipelines.datasets.download import (
    VIDEO_SUFFIXES,
    Download,
    Images,
    Line,
    SourceClip,
    Stream,
    Video,
    Wishes,
    without_repeats,
)

NAME = re.compile(r"(RGB|D)_(\w+)_([a-z]+)_(\d+)")
PREFIXES = {"rgb": "RGB", "depth": "D"}

TEST_SUBJECTS = (("cgy", "cwx"), ("fjw", "gs"), ("lhh", "lzy"), ("tys", "wyy"))
"""Initials of the two held-out subjects of splits 1 to 4, as in the published lists."""

ACTIONS = (
    "zip_up", "close_drawer", "open_laptop", "use_mobilephone", "cut_paper", "draw_paper", "stir",
    "open_drawer", "wear_watch", "water_plant", "clean_table", "cut_fruit", "use_mouse",
    "push_button", "bounce_ball", "manicure", "fetch_water", "wear_glove", "use_chopstick",
    "sweep_floor", "tear_paper", "open_door", "wave_hand", "throw_paperplane", "clap_hand",
    "tie_shoelaces", "use_stapler", "write", "twist_towel", "lift_weights", "wash_fruit", "fold",
    "umbrella", "wash_hand", "squeeze_toothpaste", "insert_tube", "plug", "thumb", "knock_door",
    "read_book",
)  # fmt: skip
"""In the order of the labels of the published lists."""


def find(source: str, wishes: Wishes) -> Download:
    found = {prefix: dict(_entries(source, prefix)) for prefix in PREFIXES.values()}
    for modality in wishes.modalities:
        if not found[PREFIXES[modality]]:
            example = f"{PREFIXES[modality]}_wear_watch_cgy_2"
            raise ValueError(
                f"{source}: no clip such as {example} (a video or a folder of frames) in it or "
                "below; give as --source the folder of THU-READ"
            )
    clips: list[SourceClip] = []
    rejected = {}
    for key in sorted(found[PREFIXES[wishes.modalities[0]]]):
        name = f"RGB/RGB_{key}"
        missing = [p for m, p in PREFIXES.items() if m in wishes.modalities and key not in found[p]]
        if _action(key) not in ACTIONS:
            rejected[name] = f"unknown action '{_action(key)}'"
        elif _subject(key) not in {subject for pair in TEST_SUBJECTS for subject in pair}:
            rejected[name] = f"unknown subject '{_subject(key)}'"
        elif missing:
            rejected[name] = f"no {missing[0]}_{key}"
        else:
            streams = tuple(Stream(m, found[PREFIXES[m]][key]) for m in wishes.modalities)
            clips.append(SourceClip(name, streams))
    lists = _lists([clip.name.removeprefix("RGB/RGB_") for clip in clips], wishes)
    return Download("thu_read", without_repeats(clips), lists, ACTIONS, rejected)


def _lists(keys: list[str], wishes: Wishes) -> dict[str, tuple[Line, ...]]:
    """Four splits; each modality has lists of its own, for its own numbers of frames."""
    lists: dict[str, list[Line]] = {}
    forms = {"rgb": ("RGB/RGB_", "{}.txt"), "depth": ("Depth/D_", "depth_{}_lst.txt")}
    for key in keys:
        for split, held_out in enumerate(TEST_SUBJECTS, start=1):
            which = "valid" if _subject(key) in held_out else "train"
            for modality in wishes.modalities:
                prefix, form = forms[modality]
                path = f"dataset_splits/@{split}/{form.format(which)}"
                label = ACTIONS.index(_action(key))
                line = Line(f"{prefix}{key}", label, f"RGB/RGB_{key}", modality)
                lists.setdefault(path, []).append(line)
    return {path: tuple(lines) for path, lines in lists.items()}


def _entries(source: str, prefix: str) -> Iterator[tuple[str, Video | Images]]:
    """ACTION_SUBJECT_TAKE and where its frames are."""
    for folder, below, files in os.walk(source):
        for name in below:
            if (match := NAME.fullmatch(name)) and match[1] == prefix:
                yield name.removeprefix(f"{prefix}_"), Images(os.path.join(folder, name))
        for name in files:
            stem, suffix = os.path.splitext(name)
            match = NAME.fullmatch(stem)
            if match and match[1] == prefix and suffix.lower() in VIDEO_SUFFIXES:
                yield stem.removeprefix(f"{prefix}_"), Video(os.path.join(folder, name))


def _action(key: str) -> str:
    return key.rsplit("_", 2)[0]


def _subject(key: str) -> str:
    return key.rsplit("_", 2)[1]
