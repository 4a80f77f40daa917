"""A trained network as its checkpoint describes it: what prediction and export start from."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from engine import checkpoint
from engine.clips import class_names
from engine.config import Config, from_tree, load, model_options
from engine.optim import temperature_at
from models.registry import build_model


@dataclass(frozen=True)
class Trained:
    """A network with its weights, on the CPU and in evaluation mode, and what belongs to it."""

    network: nn.Module
    config: Config
    temperature: float
    """What its logits were divided by in its last epoch, in training and in evaluation."""

    classes: list[str]
    """K names."""


def open_trained(
    path: str | Path,
    config_file: str | None = None,
    overrides: Iterable[str] = (),
    raw: bool = False,
) -> Trained:
    """The network of a checkpoint (ours, or a published one with `config_file`), by the config kept
    in it or by `config_file`, with `section.key=value` overrides; `raw`: with the weights of its
    last step even where it holds their running average (train.ema).

    Raises ValueError naming the file and what does not fit.
    """
    path = Path(path)
    state = checkpoint.load(path)
    if config_file is not None:
        config = load(config_file, overrides)
    elif "train" in state.get("config", {}):
        config = from_tree(state["config"], str(path), overrides)
    else:  # published, where only shapes tell of the config
        raise ValueError(f"{path}: holds no whole config; name the one it goes with by --config")
    network = build_model(config.model.name, **model_options(config))
    checkpoint.load_model(network, state, path, averaged=not raw)
    train = config.train
    epoch = max(state["progress"]["epoch"] - 1, 0)  # `progress` counts finished epochs
    temperature = temperature_at(epoch, *train.temperature, train.temperature_epochs)
    classes = state.get("classes") or class_names(config.data)
    return Trained(network.eval().requires_grad_(False), config, temperature, classes)
