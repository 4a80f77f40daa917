"""Published checkpoints of CVPR'22 and UMDR: their names and order, to ours and back.

One table per network (models/upstream_names.py); both directions and the order of the parameters
come from it. Shapes are equal: nothing is transposed or reshaped. Reading files is left to the
caller.
"""

import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from models.fusion import FusionNetwork
from models.upstream_names import BRANCHES, kept_apart, table

RGB_PREFIX = "Modalit_rgb."
"""Before the names of the RGB network inside a published fusion network."""


UNUSED = re.compile(r"(^|\.)dtn\.multi_scale_transformers\.[1-9]\d*\.Mixed_(small|media|large)\.")

CLASSIFIERS = ("heads.", "classifier.")
"""Begins our names of what depends on the number of classes."""


def published_names(model: nn.Module, prefix: str = "") -> "OrderedDict[str, str]":
    """Our key -> published key of every entry of the state dict, in the published order.

    `prefix` comes before the published names. What is kept in files of its own (`kept_apart`) is
    left out. Raises ValueError for a network that has no published counterpart and for a key of
    ours that has no row.
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
        if key not in names and not key.startswith(kept_apart(model)):
            raise ValueError(
                f"models/upstream_names.py: no row for our {key!r}; add one to `table`"
            )
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
    model.load_state_dict(own | loaded)
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
    in CVPR'22 without recoupling, the number of frames. Raises ValueError for other state dicts.
    """
    if "stem.0.conv3d.weight" in state:
        return "umdr", _umdr_options(state)
    if "SCC_Module.norm.weight" in state:
        return "umdr_fusion", _cross_options(state)
    fusion = any(name.startswith(RGB_PREFIX) for name in state)
    prefix = RGB_PREFIX if fusion else ""

    def size(name: str, axis: int) -> int:
        if name not in state or state[name].dim() <= axis:
            raise ValueError(f"no published CVPR'22 network: it has no such entry as {name!r}")
        return state[name].shape[axis]

    classifier = "fusion_model.efc.weight" if fusion else "dtn.mlp_head_small.1.weight"
    stage = re.escape(f"{prefix}dtn.multi_scale_transformers.") + r"(\d+)\."
    recoupling, motion = f"{prefix}dtn.rcm.q.weight", f"{prefix}frp_module.rpconv1d.weight"
    options: dict[str, Any] = {
        "num_classes": size(classifier, 0),
        "branch_frames": tuple(size(f"{prefix}dtn.pos_embedding_{b}", 1) - 1 for b in BRANCHES),
        "num_blocks": _count(stage, state),
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


def _umdr_options(state: Mapping[str, Tensor]) -> dict[str, Any]:
    branches = _count(r"dtn\.cls_tokens\.(\d+)\.", state)
    try:
        return {
            "num_classes": state["dtn.multi_scale_transformers.0.3.2.weight"].shape[0],
            "num_frames": state["SMS_layers.1.q.weight"].shape[1],
            "branch_frames": tuple(
                state[f"dtn.cls_tokens.{i}.pos_embedding"].shape[1] - 1 for i in range(branches)
            ),
            "num_blocks": _count(r"dtn\.multi_scale_transformers\.0\.2\.layers\.(\d+)\.", state),
            "width": state["stem.0.conv3d.weight"].shape[0],
            "dim": state["LinearMap.2.weight"].shape[0],
        }
    except KeyError as error:
        raise ValueError(f"no published UMDR network: it has no such entry as {error}") from None


def _cross_options(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Without what only the two networks that it completes tell."""
    try:
        return {
            "num_classes": state["classifier1.weight"].shape[0],
            "num_frames": state["pos_embedding_M"].shape[1] - 1,
            "dim": state["norm1.weight"].shape[0],
            "spatial_depth": _count(r"SCC_Module\.att_nets\.(\d+)\.", state),
            "temporal_depth": _count(r"TimesFormer\.att_nets\.(\d+)\.", state),
        }
    except KeyError as error:
        raise ValueError(f"no published UMDR fusion: it has no such entry as {error}") from None


def _count(numbered: str, state: Mapping[str, Tensor]) -> int:
    """How many different numbers the names of `state` have in the group of a pattern."""
    found = (re.match(numbered, name) for name in state)
    return len({match[1] for match in found if match})


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
                f"{key.rpartition('.')[0]!r} to `table` in models/upstream_names.py"
            )
    missing = [names[key] for key in names if key not in skipped and names[key] not in state]
    if missing:
        raise ValueError(
            f"the published state dict lacks {len(missing)} of the model's entries, "
            f"the first is {missing[0]!r}"
        )
