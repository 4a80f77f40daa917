"""The published YAML files for the tests, and what a config makes of the network."""

import inspect
from pathlib import Path
from typing import Any

import yaml

from engine.config import Config, as_dict, model_options
from models.registry import MODELS

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED = ROOT / "tests" / "data" / "published"
GUIDE = (ROOT / "docs" / "from_motionrgbd.md").read_text()

CHANGE_NO_RESULT = {
    "train": {"run_dir", "eval_batch", "log_every", "save_every"},
    "data": {"root"},
}


def published(file: str, **changes: Any) -> dict[str, Any]:
    """A published file as parsed, with some of its keys replaced (None: removed)."""
    tree = yaml.safe_load((PUBLISHED / file).read_text())
    for key, value in changes.items():
        section = next((s for s in tree.values() if key in s), tree["common"])
        section[key] = value
        if value is None:
            del section[key]
    return tree


def recipe(config: Config) -> dict[str, Any]:
    """What a config trains: all its values, the network's defaults included, without places."""
    builder = inspect.signature(MODELS[config.model.name]).parameters
    options = {k: p.default for k, p in builder.items()} | model_options(config)
    tree = as_dict(config) | {"model": {"name": config.model.name, **options}}
    for key in ("train_list", "eval_list"):
        tree["data"][key] = tree["data"][key].removeprefix("PATH/")
    for section, keys in CHANGE_NO_RESULT.items():
        for key in keys:
            del tree[section][key]
    return {f"{section}.{key}": v for section, values in tree.items() for key, v in values.items()}


def without_first_weights(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe for any network to start from."""
    return {key: value for key, value in recipe.items() if not key.startswith("train.init_")}
