"""What the published YAML files of CVPR'22 and of UMDR have in common. Translates no whole file."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import yaml

from pipelines.typed import suggest

Tree = dict[str, Any]

RENAMED = {
    "sample_size": "data.size",
    "resize": "data.resize",
    "crop_size": "data.crop",
    "flip": "data.flip",
    "rotated": "data.rotate",
    "angle": "data.angle",
    "knn_attention": "model.knn_ratio",
    "N": "model.num_blocks",
    "report_freq": "train.log_every",
}
"""Keys whose value is taken over as it is."""

ONLY = {"SYNC_BN": (1, "batch statistics are those of the global batch")}
"""Keys with the one value that is offered, and why."""

UNREAD = "the published trainer does not read it either"

NO_EFFECT = {
    "visdom": "curves are in the run directory: curves.png, tensorboard/",
    "vis_feature": "engine/predict.py --explain draws what it drew",
    "dist": "torchrun decides",
    "init_epochs": UNREAD,
    "DEBUG": UNREAD,
    "resumelr": "a resumed run goes on along its own schedule",
}
"""Keys that change nothing here, and why."""

DATASETS: dict[str, Tree] = {
    "NTU": {"layout": "ntu", "num_classes": 60, "frame_slack": 10},
    "NvGesture": {
        "layout": "nvgesture", "num_classes": 25, "crop_offset": [10, 32], "eval_crop": [32, 32],
    },
    "IsoGD": {"layout": "isogd", "num_classes": 249},
    "THUREAD": {"layout": "thu_read", "num_classes": 40},
    "Jester": {"layout": "jester", "num_classes": 27},
}  # fmt: skip
"""What the published code knows by the data set's name. The NTU lists count RGB frames, of which
the depth folder may have a few fewer."""

MIN_FRAMES = 17
"""The published loader drops clips of 16 frames and fewer from all lists."""


def merged(tree: Tree, where: str) -> Tree:
    """The keys of all sections in one name space, where the later section wins."""
    keys: Tree = {}
    for section, values in tree.items():
        if not isinstance(values, dict):
            raise ValueError(f"{where}: {section}: expected keys and values, found {values!r}")
        keys |= values
    return keys


def hold_to_sections(tree: Tree, sections: Iterable[str], where: str) -> None:
    """Raises ValueError naming a section that is none of these."""
    for section in tree:
        if section not in sections:
            raise ValueError(f"{where}: unknown section {section!r}{suggest(section, sections)}")


def unknown(keys: Tree, known: Iterable[str]) -> Iterator[str]:
    """A line per key that is not known."""
    for key in keys:
        if key not in known:
            yield f"unknown key {key!r}{suggest(key, known)}"


def not_offered(keys: Tree, only: Mapping[str, tuple[Any, str]]) -> Iterator[str]:
    """A line per key of a table such as ONLY that has another value."""
    for key, (value, reason) in only.items():
        if keys.get(key, value) != value:
            yield f"{key} is {keys[key]!r}; only {value!r} is offered: {reason}"


def wrong_weights(keys: Tree) -> Iterator[str]:
    """What is wrong with the weights of the merged logits' loss and of the three branches'."""
    weights = keys.get("loss_lamdb", [1, 0.5, 0.5, 0.5])
    if not isinstance(weights, list) or len(weights) != 4 or weights[0] != 1:
        yield f"loss_lamdb is {weights!r}; expected [1, b, b, b], b for each of three branches"
    elif len(set(weights[1:])) != 1:
        yield f"loss_lamdb is {weights!r}; the three branches need one weight (loss.branch_weight)"


def branch_weight(keys: Tree) -> Any:
    """The weight of each branch's loss."""
    return keys.get("loss_lamdb", [1, 0.5])[1] if keys.get("MultiLoss", True) else 0.0


def taken_over(keys: Tree, renamed: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    """(our section.key, value) of the keys of a table such as RENAMED."""
    return ((path, _value(keys[key])) for key, path in renamed.items() if key in keys)


def our_tree(values: Iterable[tuple[str, Any]]) -> Tree:
    """(section.key, value), later ones winning -> sections as in our files."""
    ours: Tree = {"data": {}, "model": {}, "loss": {}, "optim": {}, "train": {}}
    for path, value in values:
        section, key = path.split(".")
        ours[section][key] = value
    return {section: content for section, content in ours.items() if content}


def _value(value: Any) -> Any:
    """A published value as YAML would have it: tuples stand there as text, such as '(-10, 10)'."""
    if isinstance(value, str) and re.fullmatch(r"\([\d\s,.+-]*\)", value):
        return yaml.safe_load(f"[{value[1:-1]}]")
    return value
