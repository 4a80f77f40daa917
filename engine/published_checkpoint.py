"""Published training checkpoints <-> ours, as dictionaries. Files are engine/checkpoint.py's."""

import inspect
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engine.config import FROM_DATA
from models.registry import MODELS, build_model
from models.upstream import is_unused, published_names, published_options, published_parameters

BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
WRAPPER = "module."
"""Before every name where the network was saved inside DistributedDataParallel."""

Owners = list[int | None]
"""For each parameter, in the order of the published optimizer, the place of ours in our optimizer;
None where our network has none."""


def is_published(state: Mapping[str, Any]) -> bool:
    """Whether a loaded file has the form of a published training checkpoint."""
    return "format" not in state and isinstance(state.get("model"), Mapping)


def to_ours(published: Mapping[str, Any]) -> dict[str, Any]:
    """A published checkpoint -> what engine/evaluate.py reads and a run resumes from.

    Tensors are shared. `config` holds only what the shapes tell. `progress` lacks the step, which
    the published trainer did not count. What `to_published` needs beyond that is in `published`,
    NumPy's numbers included. Raises ValueError for another network and for entries that are
    unknown, missing or misshapen.
    """
    saved = published["model"]
    state = {_bare(name): tensor for name, tensor in saved.items()}
    name, options = published_options(state)
    network = _on_meta(name, options)
    names = published_names(network)
    _check(state, network, names)
    data = {key: options.pop(key) for key in FROM_DATA if key in options}
    translated = ["model", "optimizer"] if published.get("optimizer") else ["model"]
    ours = _fresh_run() | {
        "config": {"data": data, "model": {"name": name, **options}},
        "progress": {
            "epoch": int(published.get("epoch", 0)),
            "best_top1": float(published.get("bestacc", -1)),
        },
        "model": OrderedDict(
            (key, state[names[key]]) for key in network.state_dict() if key in names
        ),
        "published": {
            "order": list(published),
            "entries": {k: v for k, v in published.items() if k not in translated},
            "names": list(saved),
            "metadata": getattr(saved, "_metadata", None),
            "unused": {key: tensor for key, tensor in saved.items() if is_unused(key)},
        },
    }
    if "optimizer" in translated:
        owners = _owners(state, network, names, _is_split(published["optimizer"]))
        ours["optimizer"] = _our_optimizer(published["optimizer"], owners)
        ours["published"]["optimizer"] = _hollow(published["optimizer"], owners)
    return ours


def to_published(state: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint of ours -> the published form; tensors are shared.

    One that `to_ours` made becomes what it was, entry for entry. For a run of ours `epoch` is the
    number of finished epochs and `bestacc` the best top-1 of them. Raises ValueError for a network
    that has no published counterpart.
    """
    network = described_network(state["config"])
    names = published_names(network)
    kept = state.get("published") or _layout_of_our_run(state, names)
    ours = {published: key for key, published in names.items()}
    model: OrderedDict[str, Tensor] = OrderedDict()
    for name in kept["names"]:
        unused = name in kept["unused"]
        model[name] = kept["unused"][name] if unused else state["model"][ours[_bare(name)]]
    if kept["metadata"] is not None:
        model._metadata = kept["metadata"]  # type: ignore[attr-defined]
    entries = {**kept["entries"], "model": model}
    if "optimizer" in state:
        owners = _owners(map(_bare, model), network, names, _is_split(state["optimizer"]))
        if "optimizer" in kept:
            entries["optimizer"] = _filled(kept["optimizer"], state["optimizer"], owners)
        else:
            entries["optimizer"] = _published_optimizer(state["optimizer"], owners)
    return {key: entries[key] for key in kept["order"]}


def _fresh_run() -> dict[str, Any]:
    """What a run resumes besides and no published file holds, as it is at a run's start."""
    return {
        "rate": {},
        "scaler": torch.amp.GradScaler("cpu").state_dict(),
        "average": {},
        "watch": {"seconds": 0.0, "waited": 0.0},
    }


def _bare(name: str) -> str:
    return name.removeprefix(WRAPPER)


def described_network(config: Mapping[str, Any]) -> nn.Module:
    """The network of a checkpoint's config, on the meta device."""
    options = dict(config["model"])
    name = options.pop("name")
    accepted = inspect.signature(MODELS[name]).parameters
    shared = {k: config["data"][k] for k in FROM_DATA if k in config["data"] and k in accepted}
    return _on_meta(name, shared | options)


def _on_meta(name: str, options: Mapping[str, Any]) -> nn.Module:
    with torch.device("meta"):
        return build_model(name, **options)


def _check(state: Mapping[str, Tensor], network: nn.Module, names: Mapping[str, str]) -> None:
    """Raises ValueError unless `state` has exactly the entries and shapes of `network`."""
    shapes = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    wanted = {theirs: shapes[ours] for ours, theirs in names.items()}
    problems = [f"{name!r} is missing" for name in wanted if name not in state]
    for name, tensor in state.items():
        if name not in wanted and not is_unused(name):
            problems.append(f"{name!r} is not known")
        elif name in wanted and tuple(tensor.shape) != wanted[name]:
            problems.append(f"{name!r} is {tuple(tensor.shape)} instead of {wanted[name]}")
    if problems:
        more = f", and {len(problems) - 1} more such entries" if len(problems) > 1 else ""
        raise ValueError(f"holds another network than the published one: {problems[0]}{more}")


def _layout_of_our_run(state: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """What `to_ours` would have kept, had a published trainer made this checkpoint."""
    progress = state["progress"]
    return {
        "order": ["model", "optimizer", "epoch", "bestacc"],
        "entries": {"epoch": progress["epoch"], "bestacc": progress["best_top1"]},
        "names": list(names.values()),
        "metadata": None,
        "unused": {},
    }


def _is_split(optimizer: Mapping[str, Any]) -> bool:
    """Whether it has two groups, as UMDR's: first all parameters of one axis, which do not decay,
    then the others."""
    groups = optimizer.get("param_groups", ())
    return len(groups) == 2 and groups[0].get("weight_decay") == 0


def _owners(
    saved: Iterable[str], network: nn.Module, names: Mapping[str, str], split: bool
) -> Owners:
    """`saved`: the published names, without wrapper, in the order they were saved in."""
    saved = list(saved)
    if [name for name in saved if not is_unused(name)] != list(names.values()):
        raise ValueError("holds its entries in another order than its optimizer's state")
    parameters = {key: p for key, p in network.named_parameters() if p.requires_grad}
    if split:
        axes = {names[key]: min(parameters[key].dim(), 2) for key in parameters}
        parameters = dict(sorted(parameters.items(), key=lambda item: min(item[1].dim(), 2)))
        saved = sorted(saved, key=lambda name: axes.get(name, 0))
    place = {key: i for i, key in enumerate(parameters)}
    owner = {names[key]: place[key] for key in published_parameters(network)}
    unused = {n for n in saved if is_unused(n) and n.rpartition(".")[2] not in BUFFERS}
    return [owner.get(name) for name in saved if name in owner or name in unused]


def _our_optimizer(published: Mapping[str, Any], owners: Owners) -> dict[str, Any]:
    states = {
        owner: _plain(published["state"][number])
        for number, owner in zip(_numbers(published, owners), owners, strict=True)
        if owner is not None and number in published["state"]
    }
    owner = dict(zip(_numbers(published, owners), owners, strict=True))
    groups = [
        _plain(group)
        | {"params": sorted(o for o in map(owner.__getitem__, group["params"]) if o is not None)}
        for group in published["param_groups"]
    ]
    return {"state": dict(sorted(states.items())), "param_groups": groups}


def _published_optimizer(ours: Mapping[str, Any], owners: Owners) -> dict[str, Any]:
    states = {i: ours["state"][o] for i, o in enumerate(owners) if o in ours["state"]}
    groups, first = [], 0
    for group in ours["param_groups"]:  # the owners are in the order of the groups
        end = first + len(group["params"])
        groups.append({**group, "params": list(range(first, end))})
        first = end
    return {"state": states, "param_groups": groups}


def _hollow(published: Mapping[str, Any], owners: Owners) -> dict[str, Any]:
    """A published optimizer without the tensors that ours holds too."""
    owner = dict(zip(_numbers(published, owners), owners, strict=True))
    states = {
        number: entry if owner[number] is None else _without_tensors(entry)
        for number, entry in published["state"].items()
    }
    return {**published, "state": states}


def _filled(hollow: Mapping[str, Any], ours: Mapping[str, Any], owners: Owners) -> dict[str, Any]:
    """The inverse of `_hollow`."""
    states = dict(hollow["state"])
    for number, owner in zip(_numbers(hollow, owners), owners, strict=True):
        if owner is not None and number in states:
            tensors = {k: v for k, v in ours["state"][owner].items() if isinstance(v, Tensor)}
            states[number] = states[number] | tensors
    return {**hollow, "state": states}


def _numbers(published: Mapping[str, Any], owners: Owners) -> list[int]:
    """What a published optimizer calls its parameters, in their order."""
    groups = published.get("param_groups", [])
    numbers = [number for group in groups for number in group["params"]]
    known = len(groups) == 1 or _is_split(published)
    if not known or len(numbers) != len(owners):
        raise ValueError(
            f"holds an optimizer of {len(groups)} groups with {len(numbers)} parameters in all; "
            f"published trainers have one group, UMDR's two, of the network's {len(owners)}"
        )
    return numbers


def _without_tensors(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(value, Tensor) else value for key, value in entry.items()}


def _plain(entry: Mapping[str, Any]) -> dict[str, Any]:
    """NumPy's numbers as Python's: the published warm-up left one as the learning rate."""
    return {k: v.item() if isinstance(v, np.generic) else v for k, v in entry.items()}
