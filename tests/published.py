"""Published checkpoints for the tests, made from the published key list or a small network."""

import json
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models import build_model
from models.upstream import to_published

KEYS = json.loads((Path(__file__).parent / "data" / "decoupled_keys.json").read_text())
"""[name, shape, dtype, kind] of every entry of the published network for 60 classes."""

SMALL: dict[str, Any] = {
    "num_classes": 5, "num_frames": 8, "branch_frames": (2, 4, 6), "num_blocks": 3,
    "width": 8, "dim": 64,
}  # fmt: skip


def small_network(network: str = "decoupled", **options: Any) -> nn.Module:
    return build_model(network, **{**SMALL, **options})


def with_copies(entries: dict[str, Any]) -> dict[str, Any]:
    """Published entries as before October 2022: blocks after the first hold inception modules too,
    after their transformers."""
    stage = "dtn.multi_scale_transformers"
    modules = {k: v for k, v in entries.items() if k.startswith(f"{stage}.0.Mixed_")}
    grown: dict[str, Any] = {}
    before = 0
    for key, value in entries.items():
        now = int(key.split(".")[2]) if key.startswith(stage) else 0
        if before and now != before:
            grown |= {k.replace(f"{stage}.0.", f"{stage}.{before}."): v for k, v in modules.items()}
        grown[key] = value
        before = now
    return grown


def is_parameter(name: str) -> bool:
    return name.rpartition(".")[2] not in ("running_mean", "running_var", "num_batches_tracked")


def published_file(
    seed: int = 0,
    *,
    wrapper: str = "",
    copies: bool = False,
    optimizer: bool = True,
    number: type = np.float64,
    extra: dict[str, Any] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """A published training checkpoint of a small network, with random weights and momenta;
    `options` are those of `small_network`."""
    random = torch.Generator().manual_seed(seed)
    with torch.device("meta"):  # names and shapes
        used: dict[str, Tensor] = dict(to_published(small_network(**options)))
    entries = with_copies(used) if copies else used
    state = OrderedDict(
        (wrapper + name, torch.randn(t.shape, generator=random) if t.is_floating_point()
         else torch.tensor(seed + 7))
        for name, t in entries.items()
    )  # fmt: skip
    state._metadata = OrderedDict({"": {"version": 1}, "LinearMap": {"version": 2}})  # type: ignore
    content: dict[str, Any] = {"model": state, **(extra or {})}
    if optimizer:
        parameters = [name for name in entries if is_parameter(name)]
        momenta = {  # what gets no gradient has none
            i: {"momentum_buffer": torch.randn(entries[name].shape, generator=random)}
            for i, name in enumerate(parameters)
            if name in used
        }
        group = {"lr": number(0.00468), "momentum": 0.9, "dampening": 0, "weight_decay": 3e-4,
                 "nesterov": False, "initial_lr": 0.01,
                 "params": list(range(len(parameters)))}  # fmt: skip
        content["optimizer"] = {"state": momenta, "param_groups": [group]}
    return {**content, "epoch": 37, "bestacc": number(0.8958)}


def rewritten(path: Path, old: bytes, new: bytes) -> None:
    """Replace bytes of the pickle inside a torch file."""
    with zipfile.ZipFile(path) as archive:
        files = {item.filename: archive.read(item) for item in archive.infolist()}
    (name,) = (name for name in files if name.endswith("data.pkl"))
    assert old in files[name]
    files[name] = files[name].replace(old, new)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for filename, content in files.items():
            archive.writestr(filename, content)


def trusted(path: Path) -> Any:
    """The whole file by Python's own unpickler: the test wrote it."""
    return torch.load(path, weights_only=False)


def differences(a: Any, b: Any, where: str = "") -> Iterator[str]:
    """Where two nested values differ in type, order, dtype, shape, layout or a single bit."""
    if type(a) is not type(b):
        yield f"{where}: {type(a).__name__} and {type(b).__name__}"
    elif isinstance(a, Tensor):
        if (a.dtype, a.shape, a.stride()) != (b.dtype, b.shape, b.stride()):
            yield f"{where}: {a.dtype} {a.shape} and {b.dtype} {b.shape}"
        elif a.numpy().tobytes() != b.numpy().tobytes():
            yield f"{where}: values"
    elif isinstance(a, dict):
        if list(a) != list(b):
            yield f"{where}: keys {sorted(map(str, a.keys() ^ b.keys()))[:3]} or their order"
        for key in a.keys() & b.keys():
            yield from differences(a[key], b[key], f"{where}.{key}")
        metadata = [getattr(x, "_metadata", None) for x in (a, b)]
        if metadata != [None, None]:
            yield from differences(*metadata, f"{where}._metadata")
    elif isinstance(a, (list, tuple)):
        if len(a) != len(b):
            yield f"{where}: length"
        for i, (x, y) in enumerate(zip(a, b, strict=False)):
            yield from differences(x, y, f"{where}[{i}]")
    elif pickle.dumps(a) != pickle.dumps(b):
        yield f"{where}: {a!r} and {b!r}"
