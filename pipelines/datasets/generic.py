"""Your own videos in class folders. Splits by folder where there are `train` and `eval`, else every
so-manieth clip of a class is for evaluation."""

import os

from pipelines.datasets.download import (
    VIDEO_SUFFIXES,
    Download,
    Line,
    SourceClip,
    Stream,
    Video,
    Wishes,
    without_repeats,
)

SPLITS = ("train", "eval")
Videos = dict[str, str]
"""Path of each video by its path below the modality's folder, without suffix."""


def find(source: str, wishes: Wishes) -> Download:
    """Clips from `[train|eval/]CLASS/NAME.SUFFIX`; with depth from `rgb/...` and `depth/...`."""
    both = len(wishes.modalities) > 1
    roots = {m: os.path.join(source, m) if both else source for m in wishes.modalities}
    videos = {modality: _videos(root) for modality, root in roots.items()}
    for modality, root in roots.items():
        if not videos[modality]:
            raise ValueError(
                f"{root}: no video such as CLASS/NAME.mp4 or train/CLASS/NAME.mp4; give as "
                f"--source the folder of the class folders"
                + (", which are in rgb and depth" if both else "")
            )
    first = videos[wishes.modalities[0]]
    classes = sorted({_class(name) for name in first})
    clips, rejected = [], {}
    lists: dict[str, list[Line]] = {f"dataset_splits/{split}.txt": [] for split in SPLITS}
    seen = dict.fromkeys(classes, 0)
    for name in sorted(first):
        missing = [m for m in wishes.modalities if name not in videos[m]]
        if missing:
            rejected[name] = f"no {os.path.join(roots[missing[0]], name)} of any kind"
            continue
        streams = tuple(Stream(m, Video(videos[m][name])) for m in wishes.modalities)
        clips.append(SourceClip(name, streams))
        is_eval = name.startswith("eval/") if _split(name) else (
            seen[_class(name)] % wishes.eval_every == 0
        )  # fmt: skip
        seen[_class(name)] += 1
        line = Line(name, classes.index(_class(name)), name, wishes.modalities[0])
        lists[f"dataset_splits/{'eval' if is_eval else 'train'}.txt"].append(line)
    return Download(
        "generic", without_repeats(clips), {k: tuple(v) for k, v in lists.items()},
        tuple(classes), rejected,
    )  # fmt: skip


def _videos(root: str) -> Videos:
    found: Videos = {}
    for folder, below, files in os.walk(root):
        below.sort()
        for file in sorted(files):
            stem, suffix = os.path.splitext(os.path.join(folder, file))
            name = os.path.relpath(stem, root).replace(os.sep, "/")
            if suffix.lower() not in VIDEO_SUFFIXES or "/" not in name:
                continue
            if name in found:
                raise ValueError(f"{found[name]}, {stem}{suffix}: two clips are called '{name}'")
            found[name] = stem + suffix
    return found


def _split(name: str) -> str | None:
    first, _, rest = name.partition("/")
    return first if first in SPLITS and "/" in rest else None


def _class(name: str) -> str:
    split = _split(name)
    return name.removeprefix(f"{split}/").split("/")[0] if split else name.split("/")[0]
