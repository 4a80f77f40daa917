"""UMDR's published YAML files -> our config. What they leave to the published command line is left
to ours and to NETWORK_DEFAULTS of engine/config.py. Reads no files, no data."""

from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

from engine import published_keys
from engine.published_keys import MIN_FRAMES, UNREAD, Tree
from pipelines.typed import suggest

SECTIONS = ("common", "model", "fusion", "dataset")
UNIMODAL, FUSION = "DSNV2", "FusionNet"

RENAMED = published_keys.RENAMED | {"num_classes": "data.num_classes"}
"""Keys whose value is taken over as it is."""

ONLY = published_keys.ONLY | {
    "loss": ({"name": "SoftCE", "labelsmooth": True}, "smoothing is loss.label_smoothing"),
    "frp": (False, "no published result was made with motion maps in place of frames"),
    "pretrained": ("", "first weights are train.init_from"),
}
"""Keys with the one value that is offered, and why."""

NO_EFFECT = published_keys.NO_EFFECT | {
    "scheduler": UNREAD + "; see optim.schedule",
    "recoupling": UNREAD + "; see loss.recoupling_weight",
    "sharpness": UNREAD + ", and always divides logits by temp",
    "SEHeads": UNREAD,
    "Blur": UNREAD,
    "test_batch_size": "the published trainer sets it to 1.5 of the batch; see train.eval_batch",
    "sample_window": "training clips are spread over all frames here",
}
"""Keys that change nothing here, and why."""

CHECKPOINTS = {"rgb_checkpoint": "init_rgb", "depth_checkpoint": "init_depth"}
"""Keys with a file for each value of `--FusionNet`, and those of our train section."""

FUSION_NETS = tuple(f"{split}{frames}" for split in ("cs", "cv") for frames in (16, 32, 64))

COMPUTED = ("dataset", "Network", "temp", "MultiLoss", "loss_lamdb", *CHECKPOINTS)
"""Keys of which several together make ours, in the functions below."""

UNIMODAL_ONLY = dict.fromkeys(
    ("MultiLoss", "loss_lamdb"), "the fusion learns from its two completed modalities alone"
)
FUSION_ONLY = dict.fromkeys(CHECKPOINTS, "only the fusion reads it, which is data.modality=rgbd")

OPTIONS = {
    "data": "data.root",
    "splits": "data.train_list and data.eval_list",
    "type": "data.modality",
    "batch_size": "train.global_batch",
    "epochs": "train.epochs",
    "finetune": "train.init_from",
    "save": "train.run_dir",
    "seed": "train.seed",
    "fp16": "train.precision",
    "opt": "optim.name",
    "sched": "optim.schedule",
    "lr": "optim.lr",
    "min_lr": "optim.min_lr",
    "warmup_epochs": "optim.warmup",
    "decay_epochs": "optim.decay_every",
    "momentum": "optim.momentum",
    "weight_decay": "optim.weight_decay",
    "clip_grad": "optim.clip_norm",
    "mixup": "mix.mixup",
    "shufflemix": "mix.shufflemix",
    "smprob": "mix.shufflemix_share",
    "smoothing": "loss.label_smoothing",
    "distill": "loss.recoupling_weight",
    "temper": "loss.recoupling_temperature",
    "sample_duration": "data.num_frames",
    "intar_fatcer": "data.branch_frames",
    "FusionNet": "train.init_rgb and train.init_depth",
    "scc_depth": "model.spatial_depth",
    "tcc_depth": "model.temporal_depth",
}
"""Options of the published command line and what says it on ours. The published loader takes them
from the file too, where no published file has them."""

REQUIRED = {"root": "data", "train_list": "splits", "eval_list": "splits"}
"""Keys of our data section that no file tells, and the options that did."""

DATASETS: dict[str, Tree] = published_keys.DATASETS | {
    "UCF101": {
        "layout": "generic", "num_classes": 101, "rgb": {"pattern": "{name}/{frame:06d}.jpg"},
    },
    "basic": {"layout": "generic"},
}  # fmt: skip

CLIPS_PER_GPU = 16
EVAL_CLIPS_PER_GPU = 24


def is_umdr(tree: Tree) -> bool:
    """Whether a parsed published file is one of UMDR's, and not of CVPR'22."""
    networks = [section.get("Network") for section in tree.values() if isinstance(section, dict)]
    return "fusion" in tree or UNIMODAL in networks


def translate(tree: Tree, where: str, ranks: int, given: Tree) -> tuple[Tree, list[str]]:
    """A parsed file of UMDR -> the tree of one of ours, and a line per key without effect and per
    checkpoint that cannot be told.

    `given` holds what our command line sets, in sections: it says which modality is meant, and
    whether the fusion. Behaviour is the published one throughout, with 16 clips per rank. Raises
    ValueError with one line per problem, naming the key.
    """
    keys = published_keys.merged(tree, where)
    published_keys.hold_to_sections(tree, SECTIONS, where)
    problems = list(_problems(keys, given.get("data", {})))
    if problems:
        raise ValueError("\n".join(f"{where}: {problem}" for problem in problems))
    modality = _modality(keys, given)
    halves = _halves(keys, given) if modality == "rgbd" else {}
    idle = NO_EFFECT | (UNIMODAL_ONLY if modality == "rgbd" else FUSION_ONLY)
    notes = [f"{where}: {key} has no effect: {idle[key]}" for key in keys if key in idle]
    notes += [
        f"{where}: {key} does not tell train.{ours}; set it to what --FusionNet chose there"
        for key, ours in CHECKPOINTS.items()
        if halves.get(ours) == "" and ours not in given.get("train", {})
    ]
    values = (
        *_data(keys, modality),
        *published_keys.taken_over(keys, RENAMED),
        *_training(keys, modality, given, ranks),
        *((f"train.{ours}", path) for ours, path in halves.items()),
    )
    return published_keys.our_tree(values), notes


def _problems(keys: Tree, given: Tree) -> Iterator[str]:
    """What is unknown, missing or not offered; `given` are the data section's overrides."""
    for key in keys:
        if key in OPTIONS:
            yield f"{key} is an option of the published program: set {OPTIONS[key]} instead"
    yield from published_keys.unknown(keys, [*RENAMED, *ONLY, *NO_EFFECT, *COMPUTED, *OPTIONS])
    yield from published_keys.not_offered(keys, ONLY)
    yield from published_keys.wrong_weights(keys)
    for key, choices in (("Network", (UNIMODAL, FUSION)), ("dataset", tuple(DATASETS))):
        value = keys.get(key)
        if value not in choices:
            yield f"{key} is {value!r}{suggest(str(value), choices)} (one of {', '.join(choices)})"
    classes = {"num_classes": "num-classes"}
    told = "num_classes" in keys or keys.get("dataset") != "basic"
    for key, option in (REQUIRED if told else REQUIRED | classes).items():
        if key not in given:
            yield f"data.{key} is missing: --{option} told it there; add data.{key}=... here"
    for key in CHECKPOINTS:
        files = keys.get(key, {})
        if not isinstance(files, dict) or not set(files) <= set(FUSION_NETS):
            yield f"{key} is {files!r}; expected files of {', '.join(FUSION_NETS)}"


def _modality(keys: Tree, given: Tree) -> Any:
    """rgbd for the fusion, to which the published code has another script."""
    if keys["Network"] == FUSION or given.get("model", {}).get("name") == "umdr_fusion":
        return "rgbd"
    return given.get("data", {}).get("modality", "rgb")


def _data(keys: Tree, modality: str) -> Iterator[tuple[str, Any]]:
    """Layout, classes and modality, and the network for it."""
    yield from ((f"data.{key}", value) for key, value in DATASETS[keys["dataset"]].items())
    yield from (("data.modality", modality), ("data.min_frames", MIN_FRAMES))
    yield "model.name", "umdr_fusion" if modality == "rgbd" else "umdr"
    if modality == "rgbd":
        yield "data.paired_view", False
    if keys["dataset"] == "NTU" and modality != "rgb":
        yield "data.depth_encoding", "wrapped_jet"


def _training(keys: Tree, modality: str, given: Tree, ranks: int) -> Iterator[tuple[str, Any]]:
    """Losses, temperature, batch and run directory."""
    temperature = keys.get("temp", [0.04, 0.07])
    if modality != "rgbd":
        yield "loss.branch_weight", published_keys.branch_weight(keys)
        yield "loss.teacher_gradient", True
    elif isinstance(temperature, list):  # that of trained networks
        temperature = temperature[-1:] * 2
    yield "train.temperature", temperature
    yield "train.global_batch", CLIPS_PER_GPU * ranks
    yield "train.eval_batch", EVAL_CLIPS_PER_GPU
    folders = PurePath(str(given["data"]["train_list"])).parts
    split = [folder[1:].lower() for folder in folders if folder.startswith("@")]
    kind = "fusion" if modality == "rgbd" else str(modality)
    yield "train.run_dir", "runs/" + "_".join(["umdr", keys["dataset"].lower(), *split, kind])


def _halves(keys: Tree, given: Tree) -> dict[str, str]:
    """Where the fusion's two networks start, as far as number of frames and split tell; else ""."""
    frames, train_list = given["data"].get("num_frames", 32), str(given["data"]["train_list"])
    halves = {}
    for key, ours in CHECKPOINTS.items():
        files = keys.get(key, {})
        nets = [net for net in files if net[2:] == str(frames)]
        if len(nets) > 1:
            nets = [net for net in nets if f"@{net[:2].upper()}" in train_list]
        halves[ours] = (files[nets[0]] or "") if len(nets) == 1 else ""
    return halves
