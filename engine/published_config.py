"""The published YAML files -> our config: those of CVPR'22 through one table here, those of UMDR by
engine/published_umdr.py. Reads no files, no data."""

import json
import os
import sys
from collections.abc import Iterator
from typing import Any

from engine import published_keys, published_umdr
from engine.published_keys import DATASETS, MIN_FRAMES, UNREAD, Tree
from pipelines.typed import suggest

SECTIONS = ("common", "model", "dataset")
UNIMODAL, FUSION = "I3DWTrans", "FusionNet"

RENAMED = published_keys.RENAMED | {
    "data": "data.root",
    "sample_duration": "data.num_frames",
    "w": "data.motion_window",
    "frp": "model.motion_attention",
    "recoupling": "model.recoupling",
    "temper": "loss.recoupling_temperature",
    "learning_rate": "optim.lr",
    "learning_rate_min": "optim.min_lr",
    "momentum": "optim.momentum",
    "weight_decay": "optim.weight_decay",
    "grad_clip": "optim.clip_norm",
    "epochs": "train.epochs",
    "test_batch_size": "train.eval_batch",
}
"""Keys whose value is taken over as it is."""

ONLY = published_keys.ONLY | {
    "optim": ("SGD", "no published result was made otherwise; see optim.name for AdamW"),
    "SEHeads": (1, "the recoupling module has one head, as in all published files"),
    "Blur": (False, "no published file blurs"),
    "resume": ("", "copy the checkpoint to RUN_DIR/last.pt: the run goes on from there"),
}
"""Keys with the one value that is offered, and why."""

NO_EFFECT = published_keys.NO_EFFECT | {
    "visname": "curves are in the run directory: curves.png, tensorboard/",
    "num_workers": "decoding threads are data.workers, by default all cores",
    "metric_freq": UNREAD,
    "show_cluster_result": UNREAD,
    "mse_weight": UNREAD,
    "resume_scheduler": UNREAD,
}
"""Keys that change nothing here, and why."""

COMPUTED = (
    "dataset", "splits", "type", "Network", "low_frames", "media_frames", "high_frames",
    "scheduler", "loss", "MultiLoss", "loss_lamdb", "distill", "distill_lamdb", "sharpness", "temp",
    "batch_size", "pretrained", "rgb_checkpoint", "depth_checkpoint",
)  # fmt: skip
"""Keys of which several together make ours, in the functions below."""

PARTS = {"scheduler": ("name", "patience", "warm_up_epochs"), "loss": ("name", "labelsmooth")}
"""What stands below the keys that hold a mapping."""

UNIMODAL_ONLY = {
    **dict.fromkeys(
        ("loss", "MultiLoss", "loss_lamdb", "distill", "distill_lamdb"),
        f"the losses of {FUSION} have fixed weights",
    ),
    **dict.fromkeys(("sharpness", "temp"), f"{FUSION} divides its logits by no temperature"),
    "pretrained": "the halves start from rgb_checkpoint and depth_checkpoint; a checkpoint of the "
    "whole is train.init_from",
}
FUSION_ONLY = {key: f"only {FUSION} reads it" for key in ("rgb_checkpoint", "depth_checkpoint")}

MODALITIES = {"M": "rgb", "K": "depth"}


def is_published(tree: Tree) -> bool:
    """Whether a parsed YAML file has the sections of the published ones."""
    return "common" in tree


def read(tree: Tree, where: str, given: Tree) -> Tree:
    """A published file as ours, for the ranks that run, telling the user about it on stderr, once.

    `given` holds what our command line sets, in sections: UMDR's files leave much to theirs.
    """
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    if published_umdr.is_umdr(tree):
        ours, notes = published_umdr.translate(tree, where, ranks, given)
    else:
        ours, notes = translate(tree, where, ranks)
    if os.environ.get("RANK", "0") == "0":
        lines = [f"{where}: a published config, read as", *_as_yaml(ours), *notes]
        print(*lines, sep="\n", file=sys.stderr, flush=True)
    return ours


def translate(tree: Tree, where: str, ranks: int) -> tuple[Tree, list[str]]:
    """A parsed file of CVPR'22 -> the tree of one of ours, and a line per key without effect.

    Behaviour is the published one throughout; the published batch size is that of one GPU, so the
    global batch is `ranks` times it. Raises ValueError with one line per problem, naming the key.
    """
    keys = _merged(tree, where)
    problems = list(_problems(keys))
    if problems:
        raise ValueError("\n".join(f"{where}: {problem}" for problem in problems))
    same = published_keys.taken_over(keys, RENAMED)
    ours = published_keys.our_tree((*same, *_data(keys), *_loss(keys), *_train(keys, ranks)))
    idle = NO_EFFECT | (UNIMODAL_ONLY if keys["Network"] == FUSION else FUSION_ONLY)
    return ours, [f"{where}: {key} has no effect: {idle[key]}" for key in keys if key in idle]


def _as_yaml(tree: Tree) -> Iterator[str]:
    """One line per key, with lists in one line too, which PyYAML's writer does not do."""
    for section, values in tree.items():
        yield f"{section}:"
        yield from (f"  {key}: {json.dumps(value)}" for key, value in values.items())


def _merged(tree: Tree, where: str) -> Tree:
    """The keys of all sections; raises ValueError for another network and unknown sections."""
    keys = published_keys.merged(tree, where)
    network = keys.get("Network")
    if network not in (UNIMODAL, FUSION):
        raise ValueError(
            f"{where}: Network is {network!r}; the networks of CVPR'22 are {UNIMODAL} and "
            f"{FUSION}, that of UMDR is {published_umdr.UNIMODAL}"
        )
    published_keys.hold_to_sections(tree, SECTIONS, where)
    return keys


def _problems(keys: Tree) -> Iterator[str]:
    """What is unknown, missing or not offered."""
    yield from published_keys.unknown(keys, [*RENAMED, *ONLY, *NO_EFFECT, *COMPUTED])
    for key in ("data", "splits", "dataset", "type", "batch_size"):
        if key not in keys:
            yield f"missing key {key!r}"
    yield from published_keys.not_offered(keys, ONLY)
    yield from published_keys.wrong_weights(keys)
    yield from _wrong_parts(keys)
    yield from _wrong_choices(keys)


def _wrong_parts(keys: Tree) -> Iterator[str]:
    for key, known in PARTS.items():
        parts = keys.get(key, {})
        if not isinstance(parts, dict):
            yield f"{key}: expected {', '.join(known)}, found {parts!r}"
            continue
        for part in parts:
            if part not in known:
                yield f"{key}: unknown key {part!r}{suggest(part, known)}"


def _wrong_choices(keys: Tree) -> Iterator[str]:
    fusion = keys["Network"] == FUSION
    for key, value, choices in (
        ("dataset", keys.get("dataset", "NTU"), DATASETS),
        ("type", keys.get("type", "M"), ["M"] if fusion else MODALITIES),
        ("scheduler.name", _part(keys, "scheduler", "name", "cosin"), ["cosin", "ReduceLR"]),
        ("loss.name", _part(keys, "loss", "name", "CE"), ["CE"]),
    ):
        if value not in list(choices):
            yield f"{key} is {value!r}{suggest(str(value), choices)} (one of {', '.join(choices)})"
    for key, value in (
        ("batch_size", keys.get("batch_size", 1)),
        ("scheduler.warm_up_epochs", _part(keys, "scheduler", "warm_up_epochs", 3)),
    ):
        if type(value) is not int:
            yield f"{key}: expected a whole number, found {value!r}"


def _data(keys: Tree) -> Iterator[tuple[str, Any]]:
    """Lists, classes, layout, modality, and the network for it."""
    dataset, modality = keys["dataset"], MODALITIES[keys["type"]]
    yield from ((f"data.{key}", value) for key, value in DATASETS[dataset].items())
    own_lists = dataset == "THUREAD" and modality == "depth"
    file = "depth_{}_lst.txt" if own_lists else "{}.txt"
    for key, phase in (("train_list", "train"), ("eval_list", "valid")):
        yield f"data.{key}", os.path.join(str(keys["splits"]), file.format(phase))
    if keys["Network"] == FUSION:
        yield from (("model.name", "decoupled_fusion"), ("data.modality", "rgbd"))
        yield "data.paired_view", False
    else:
        yield from (("model.name", "decoupled"), ("data.modality", modality))
    if dataset == "NTU" and (modality == "depth" or keys["Network"] == FUSION):
        yield "data.depth_encoding", "wrapped_jet"
    yield "data.min_frames", MIN_FRAMES
    branches = [keys.get(f"{rate}_frames") for rate in ("low", "media", "high")]
    if None not in branches:
        yield "data.branch_frames", branches


def _loss(keys: Tree) -> Iterator[tuple[str, Any]]:
    """Weights, and the temperature of the logits. The published recoupling loss is a sum over the
    clips of one GPU; the fusion trainer applies it from the first epoch on."""
    yield "loss.recoupling_scale", keys["batch_size"]
    if keys["Network"] == FUSION:
        yield "loss.recoupling_delay", 0
        yield from (("train.temperature", [1.0, 1.0]), ("train.temperature_epochs", 1))
        return
    yield "loss.recoupling_delay", max(_part(keys, "scheduler", "warm_up_epochs", 3) - 1, 0)
    yield "loss.recoupling_weight", keys.get("distill", keys.get("distill_lamdb", 1.0))
    yield "loss.label_smoothing", 0.1 if _part(keys, "loss", "labelsmooth", True) else 0.0
    yield "loss.branch_weight", published_keys.branch_weight(keys)
    if keys.get("sharpness", True):
        yield "train.temperature", keys.get("temp", [0.04, 0.07])
        yield "train.temperature_epochs", 30
    else:
        yield from (("train.temperature", [1.0, 1.0]), ("train.temperature_epochs", 1))


def _train(keys: Tree, ranks: int) -> Iterator[tuple[str, Any]]:
    """Schedule, batch, run directory and first weights."""
    schedule = _part(keys, "scheduler", "name", "cosin")
    yield "optim.schedule", {"cosin": "cosine", "ReduceLR": "plateau"}[schedule]
    yield "optim.warmup", _part(keys, "scheduler", "warm_up_epochs", 3)
    yield "optim.patience", _part(keys, "scheduler", "patience", 4)
    yield "train.global_batch", keys["batch_size"] * ranks
    split = os.path.basename(str(keys["splits"]).rstrip("/"))
    parts = [DATASETS[keys["dataset"]]["layout"]]
    parts += [split[1:].lower()] if split.startswith("@") else []
    if keys["Network"] == FUSION:
        yield "train.run_dir", f"runs/{'_'.join([*parts, 'fusion'])}"
        yield "train.init_rgb", keys.get("rgb_checkpoint") or ""
        yield "train.init_depth", keys.get("depth_checkpoint") or ""
    else:
        yield "train.run_dir", f"runs/{'_'.join([*parts, MODALITIES[keys['type']]])}"
        yield "train.init_from", keys.get("pretrained") or ""


def _part(keys: Tree, key: str, part: str, default: Any) -> Any:
    """One entry of a key that holds a mapping."""
    mapping = keys.get(key)
    return mapping.get(part, default) if isinstance(mapping, dict) else default
