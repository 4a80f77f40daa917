"""The weights that a new run starts from: other checkpoints, ours or published. Resumes nothing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine import checkpoint
from engine.config import Config, model_options
from models.registry import build_model

HEADS = "heads."
"""Before the names of a unimodal network's heads; inside CVPR'22's fusion network it has none."""


def initialise(network: nn.Module, config: Config) -> list[str]:
    """Fill `network` from the checkpoints that `train.init_from`, `init_rgb` and `init_depth` name.

    Strictly: only a classifier of another size stays as it is, with `train.init_any_frames` also
    what depends on the number of frames, and of a unimodal checkpoint that fills one half of
    CVPR'22's fusion network the heads are left out. Returns one line per file, with the names of
    what was left out. Raises ValueError naming the file and the first difference.
    """
    lines = []
    for modality in ("rgb", "depth"):
        key = f"init_{modality}"
        if path := getattr(config.train, key):
            half, saved = getattr(network, modality), checkpoint.evaluated(_load(path, key))
            headless = not any(name.startswith(HEADS) for name in half.state_dict())
            heads = [name for name in saved if name.startswith(HEADS)] if headless else []
            _fill(half, saved, heads, path, key)
            without = ", without its heads" if headless else ""
            lines.append(f"the {modality} network starts from {path}{without}")
    if path := config.train.init_from:
        state, own = _load(path, "init_from"), network.state_dict()
        saved = checkpoint.evaluated(state)
        may = resizable(config) & saved.keys()
        resized = [name for name in own if name in may and saved[name].shape != own[name].shape]
        _fill(network, saved, resized, path, "init_from")
        checkpoint.adopt_reshape(network, state)
        without = f" without {', '.join(_modules(resized, own))}" if resized else ""
        lines.append(f"the network starts from {path}{without}")
    return lines


def resizable(config: Config) -> set[str]:
    """The entries of the network's state dict that a checkpoint may hold in another shape: the
    classifier, and with `train.init_any_frames` what depends on the number of frames."""
    options, data = model_options(config), config.data
    others: list[dict[str, Any]] = [{"num_classes": data.num_classes + 1}]
    if config.train.init_any_frames:
        # Four times as many, for UMDR's kernels grow with the square root.
        longer = {
            "num_frames": 4 * data.num_frames,
            "branch_frames": [4 * frames for frames in data.branch_frames],
        }
        others.append({key: frames for key, frames in longer.items() if key in options})
    now = _shapes(config.model.name, options)
    found = set()
    for other in others:
        then = _shapes(config.model.name, options | other)
        found |= {name for name in now if then[name] != now[name]}
    return found


def _shapes(name: str, options: dict[str, Any]) -> dict[str, torch.Size]:
    with torch.device("meta"):
        network = build_model(name, **options)
    return {key: tensor.shape for key, tensor in network.state_dict().items()}


def _modules(names: list[str], own: Mapping[str, Tensor]) -> list[str]:
    """Names of entries, where a module holds no others its name in their place."""
    found: dict[str, None] = {}
    for name in names:
        above = name
        while "." in above:
            above = above.rpartition(".")[0]
            if any(key.startswith(f"{above}.") and key not in names for key in own):
                break
            name = above
        found[name] = None
    return list(found)


def _load(path: str, key: str) -> dict[str, Any]:
    if not Path(path).is_file():
        raise ValueError(
            f"{path}: no such file; train the network it stands for, set train.{key} to another "
            f"checkpoint (published ones too), or train.{key}= to start without"
        )
    return checkpoint.load(Path(path))


def _fill(
    network: nn.Module, saved: Mapping[str, Tensor], without: list[str], path: str, key: str
) -> None:
    """Copy all entries of `saved` but those of `without`, which may or may not be the network's."""
    own = network.state_dict()
    left = set(without)
    detail = checkpoint.difference(
        {k: v for k, v in own.items() if k not in left},
        {k: v for k, v in saved.items() if k not in left},
    )
    if detail:
        raise ValueError(
            f"{path}: does not fit the network that train.{key} fills ({detail}); take a "
            "checkpoint of the same options, or change the model section; for another number of "
            "frames set train.init_any_frames=true"
        )
    network.load_state_dict({k: own[k] if k in left else saved[k] for k in own})
