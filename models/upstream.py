"""Published checkpoints of the CVPR'22 networks: their names and order, to ours and back.

One table per network; both directions and the order of the parameters come from it. Shapes are
equal: nothing is transposed or reshaped. Reading files is left to the caller.
"""

import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from models.cross_complement import CrossComplement
from models.decoupled import DecoupledNetwork
from models.fusion import FusionNetwork
from models.umdr import UmdrNetwork

BRANCHES = ("small", "media", "large")
UNITS = {"conv1": "Conv3d_1a_7x7", "conv2b": "Conv3d_2b_1x1", "conv2c": "Conv3d_2c_3x3"}
UMDR_UNITS = {"conv1": "stem.0", "conv2b": "stem.2", "conv2c": "stem.3"}
PATHS = {
    "point": "b0",
    "reduce_a": "b1a",
    "conv_a": "b1b",
    "reduce_b": "b2a",
    "conv_b": "b2b",
    "pooled": "b3b",
}
BLOCK = {
    "attention_norm": "0.norm",
    "attention.qkv": "0.fn.to_qkv",
    "attention.out": "0.fn.to_out.0",
    "feed_forward_norm": "1.norm",
    "feed_forward.0": "1.fn.fc1",
    "feed_forward.3": "1.fn.fc2",
}
CROSS_BLOCK = {
    "query": "q",
    "key": "k",
    "value": "v",
    "norm": "norm",
    "feed_forward_norm": "ffn.norm",
    "feed_forward.0": "ffn.fn.fc1",
    "feed_forward.3": "ffn.fn.fc2",
}
RECOUPLING = {
    "query": "q",
    "key": "k",
    "squeeze": "project.0",
    "excite": "project.2",
    "norm": "project.3",
    "student": "linear",
}
RGB_PREFIX = "Modalit_rgb."
"""Before the names of the RGB network inside a published fusion network."""

UNUSED = re.compile(r"(^|\.)dtn\.multi_scale_transformers\.[1-9]\d*\.Mixed_(small|media|large)\.")
INTERACTION = {"reduce": "0", "norm": "1", "out": "3"}

CLASSIFIERS = ("heads.", "classifier.")
"""Begins our names of what depends on the number of classes."""

Rows = list[tuple[str, str]]
"""Our module or parameter and the published one, in the published order of registration."""


def table(model: nn.Module) -> Rows:
    """The rows of this network. Raises ValueError where it has no published counterpart."""
    if isinstance(model, FusionNetwork):
        return _fusion_rows(model)
    if isinstance(model, UmdrNetwork):
        return _umdr_rows(model)
    if isinstance(model, CrossComplement):
        return _cross_rows(model)
    if isinstance(model, DecoupledNetwork):
        if len(model.branches) == len(BRANCHES):
            return _unimodal_rows(model.num_blocks)
        raise ValueError(
            f"published networks have {len(BRANCHES)} branches, this one {len(model.branches)}"
        )
    raise ValueError(f"no published layout is known for {type(model).__name__}")


def _fusion_rows(model: FusionNetwork) -> Rows:
    rows = [
        ("encoder", "fusion_model.encoder.enconv"),
        ("decoder", "fusion_model.decoder.deconv"),
        ("classifier", "fusion_model.efc"),
        ("discriminator", "fc"),
    ]
    for trunk, published in ((model.rgb, "Modalit_rgb"), (model.depth, "Modalit_depth")):
        name = published.removeprefix("Modalit_")
        rows += [(f"{name}.{ours}", f"{published}.{theirs}") for ours, theirs in table(trunk)]
    for ours, published in (
        ("spatial_interaction", "crossFusion"),
        ("temporal_interaction", "crossFusionT"),
    ):
        rows += [(f"{ours}.{o}", f"{published}.{p}") for o, p in INTERACTION.items()]
    for i in range(len(model.heads)):
        rows += [(f"heads.{i}.norm", f"classifier{i + 1}.0")]
        rows += [(f"heads.{i}.linear", f"classifier{i + 1}.1")]
    return rows


def _unimodal_rows(num_blocks: int) -> Rows:
    rows = [("spatial.token_norm", "LinearMap.0"), ("spatial.token_linear", "LinearMap.1")]
    for ours, published in UNITS.items():
        rows += _unit(f"spatial.{ours}", published)
    for name in ("3b", "3c", "4b", "4c", "5b", "5c"):
        rows += _inception(f"spatial.inception{name}", f"Mixed_{name}")
    for i, size in enumerate(BRANCHES):
        rows.append((f"branches.{i}.position", f"dtn.pos_embedding_{size}"))
        rows.append((f"branches.{i}.class_token", f"dtn.cls_token_{size}"))
    for block in range(num_blocks):
        stage = f"dtn.multi_scale_transformers.{block}"
        for i, size in enumerate(BRANCHES):
            layer = f"{stage}.transformer_enc_{size}.layers.0"
            rows += [(f"branches.{i}.blocks.{block}.{o}", f"{layer}.{p}") for o, p in BLOCK.items()]
        if block == 0:
            for i, size in enumerate(BRANCHES):
                rows += _inception(f"branches.{i}.inception", f"{stage}.Mixed_{size}")
    rows += [(f"recoupling.{ours}", f"dtn.rcm.{theirs}") for ours, theirs in RECOUPLING.items()]
    for i, size in enumerate(BRANCHES):
        rows.append((f"heads.{i}.norm", f"dtn.mlp_head_{size}.0"))
        rows.append((f"heads.{i}.linear", f"dtn.mlp_head_{size}.1"))
    rows.append(("spatial.motion_attention", "frp_module.rpconv1d"))
    return rows


def _umdr_rows(model: UmdrNetwork) -> Rows:
    rows: Rows = []
    for ours, published in UMDR_UNITS.items():
        rows += _unit(f"spatial.{ours}", published)
    for stage, number in enumerate("345"):
        for pair, letter in enumerate("bc"):
            layer = f"SMS_layers.{(0, 2, 4)[stage]}.Mixed{pair + 1}"
            rows += _inception(f"spatial.inception{number}{letter}", layer)
        layer = f"SMS_layers.{(1, 3, 6)[stage]}"
        names = (
            (ours, theirs.replace("project", "TM_project")) for ours, theirs in RECOUPLING.items()
        )
        rows += [
            (f"spatial.recouplings.{stage}.{ours}", f"{layer}.{theirs}") for ours, theirs in names
        ]
    rows += [("spatial.token_norm", "LinearMap.1"), ("spatial.token_linear", "LinearMap.2")]
    for i in range(len(model.branches)):
        rows.append((f"branches.{i}.class_token", f"dtn.cls_tokens.{i}.cls_token"))
        rows.append((f"branches.{i}.position", f"dtn.cls_tokens.{i}.pos_embedding"))
    for i in range(len(model.branches)):
        layer = f"dtn.multi_scale_transformers.{i}"
        rows += _inception(f"branches.{i}.inception", f"{layer}.0")
        for block in range(model.num_blocks):
            rows += [
                (f"branches.{i}.blocks.{block}.{ours}", f"{layer}.2.layers.{block}.{theirs}")
                for ours, theirs in BLOCK.items()
            ]
        rows += [(f"heads.{i}.norm", f"{layer}.3.0"), (f"heads.{i}.linear", f"{layer}.3.2")]
    return rows


def _cross_rows(model: CrossComplement) -> Rows:
    rows = [("positions.0", "pos_embedding_M"), ("positions.1", "pos_embedding_K")]
    for i in range(len(model.spatial.layers)):
        ours, published = f"spatial.layers.{i}", f"SCC_Module.att_nets.{i}"
        rows += _enhancement(f"{ours}.enhancement", f"{published}.0")
        rows += _cross_block(f"{ours}.rgb", f"{published}.1")
        rows += _cross_block(f"{ours}.depth", f"{published}.2")
    rows.append(("spatial.norm", "SCC_Module.norm"))
    rows += _enhancement("enhancement", "temp_enhance_module")
    for i in range(len(model.temporal.layers)):
        rows += _cross_block(f"temporal.layers.{i}.rgb", f"TimesFormer.att_nets.{i}.0")
        rows += _cross_block(f"temporal.layers.{i}.depth", f"TimesFormer.att_nets.{i}.1")
    rows.append(("temporal.norm", "TimesFormer.norm"))
    for what, published in (("heads", "classifier"), ("norms", "norm")):
        rows += [(f"{what}.{i}", f"{published}{i + 1}") for i in range(2)]
    return rows


def _enhancement(ours: str, published: str) -> Rows:
    names = {"rgb": "mlp_rgb", "depth": "mlp_depth", "norm": "norm"}
    return [(f"{ours}.{o}", f"{published}.{p}") for o, p in names.items()]


def _cross_block(ours: str, published: str) -> Rows:
    return [(f"{ours}.{o}", f"{published}.{p}") for o, p in CROSS_BLOCK.items()]


def _unit(ours: str, published: str) -> Rows:
    return [(f"{ours}.conv", f"{published}.conv3d"), (f"{ours}.norm", f"{published}.bn")]


def _inception(ours: str, published: str) -> Rows:
    rows = []
    for path, published_path in PATHS.items():
        rows += _unit(f"{ours}.{path}", f"{published}.{published_path}")
    return rows


def published_names(model: nn.Module, prefix: str = "") -> "OrderedDict[str, str]":
    """Our key -> published key of every entry of the state dict, in the published order.

    `prefix` comes before the published names. Raises ValueError for a network that has no
    published counterpart and for a key of ours that has no row.
    """
    rows = table(model)
    ours_by_row: dict[str, list[str]] = {}
    for key in model.state_dict():
        for row in _ancestors(key):  # a parameter's own row, or that of a module it is in
            ours_by_row.setdefault(row, []).append(key)
    names: OrderedDict[str, str] = OrderedDict()
    for ours, published in rows:
        for key in ours_by_row.get(ours, ()):
            names[key] = prefix + published + key.removeprefix(ours)
    for key in model.state_dict():
        if key not in names:
            raise ValueError(f"models/upstream.py: no row for our {key!r}; add one to `table`")
    return names


def _ancestors(key: str) -> Iterator[str]:
    """`a.b.c` -> `a.b.c`, `a.b`, `a`"""
    while key:
        yield key
        key = key.rpartition(".")[0]


def published_parameters(model: nn.Module) -> list[str]:
    """Our parameter names in the published order: entry i owns state i of a published optimizer."""
    parameters = dict(model.named_parameters())
    return [key for key in published_names(model) if key in parameters]


def to_published(model: nn.Module, prefix: str = "") -> "OrderedDict[str, Tensor]":
    """The model's state dict under published names, in the published order; tensors are shared."""
    state = model.state_dict()
    names = published_names(model, prefix)
    return OrderedDict((published, state[ours]) for ours, published in names.items())


def load_published(
    model: nn.Module,
    state_dict: Mapping[str, Any],
    *,
    new_classifier: bool = False,
    prefix: str = "",
) -> list[str]:
    """Copy a published state dict into `model`, strictly; returns our names left as initialised.

    These are none, or with `new_classifier` all classifiers and their norms, whose published values
    are then not looked at. A dict around the state dict (key `model` or `state_dict`) and a leading
    `module.` of the names are taken off. A fusion network is set to the published reshape, with
    which its weights were trained. Raises ValueError for names that are unknown or missing and for
    shapes that differ.
    """
    published_state = _unwrapped(state_dict)
    names = published_names(model, prefix)
    skipped = [ours for ours in names if new_classifier and ours.startswith(CLASSIFIERS)]
    _check_names(published_state, names, skipped, prefix)

    own = model.state_dict()
    loaded = {key: published_state[names[key]] for key in names if key not in skipped}
    for key, tensor in loaded.items():
        if tensor.shape != own[key].shape:
            raise ValueError(
                f"published {names[key]!r} is {tuple(tensor.shape)}, the model's {key!r} "
                f"{tuple(own[key].shape)}: build the model with the checkpoint's options"
                + (", or load with new_classifier=True" if key.startswith(CLASSIFIERS) else "")
            )
    model.load_state_dict(loaded, strict=not skipped)
    if isinstance(model, FusionNetwork):
        model.published_reshape = True
    return skipped


def is_unused(published: str) -> bool:
    """Whether no forward pass ever read this published entry.

    Files from before October 2022 hold temporal inception modules in every block; only those of the
    first block were used.
    """
    return UNUSED.search(published) is not None


def published_options(state: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    """Name and options of the network a published state dict belongs to, read off its shapes.

    Names without `module.`. What leaves no trace is not among the options: k-NN ratio, dropout and,
    without recoupling, the number of frames. Raises ValueError for some other state dict.
    """
    fusion = any(name.startswith(RGB_PREFIX) for name in state)
    prefix = RGB_PREFIX if fusion else ""

    def size(name: str, axis: int) -> int:
        if name not in state or state[name].dim() <= axis:
            raise ValueError(f"no published CVPR'22 network: it has no such entry as {name!r}")
        return state[name].shape[axis]

    classifier = "fusion_model.efc.weight" if fusion else "dtn.mlp_head_small.1.weight"
    stage = re.compile(re.escape(f"{prefix}dtn.multi_scale_transformers.") + r"(\d+)\.")
    recoupling, motion = f"{prefix}dtn.rcm.q.weight", f"{prefix}frp_module.rpconv1d.weight"
    options: dict[str, Any] = {
        "num_classes": size(classifier, 0),
        "branch_frames": tuple(size(f"{prefix}dtn.pos_embedding_{b}", 1) - 1 for b in BRANCHES),
        "num_blocks": len({found[1] for found in map(stage.match, state) if found}),
        "recoupling": recoupling in state,
        "motion_attention": motion in state,
        "width": size(f"{prefix}Conv3d_1a_7x7.conv3d.weight", 0),
        "dim": size(f"{prefix}LinearMap.1.weight", 0),
    }
    if recoupling in state:
        options["num_frames"] = size(recoupling, 1)
    if fusion:
        options["published_reshape"] = True
    return ("decoupled_fusion" if fusion else "decoupled"), options


def _unwrapped(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    for wrapper in ("model", "state_dict"):
        if isinstance(state_dict.get(wrapper), Mapping):
            state_dict = state_dict[wrapper]
    return {key.removeprefix("module."): tensor for key, tensor in state_dict.items()}


def _check_names(
    state: Mapping[str, Tensor], names: Mapping[str, str], skipped: list[str], prefix: str
) -> None:
    expected = set(names.values())
    for key in state:
        if key.startswith(prefix) and key not in expected and not is_unused(key):
            raise ValueError(
                f"published {key!r} has no counterpart in this model: build the model with the "
                "checkpoint's options (blocks, recoupling, motion attention), or add a row for "
                f"{key.rpartition('.')[0]!r} to `table` in models/upstream.py"
            )
    missing = [names[key] for key in names if key not in skipped and names[key] not in state]
    if missing:
        raise ValueError(
            f"the published state dict lacks {len(missing)} of the model's entries, "
            f"the first is {missing[0]!r}"
        )
