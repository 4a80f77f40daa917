"""The `data` section of a run's YAML file, for the tools of this folder. Published files, and the
other sections, are for engine/config.py, which this folder does not know."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from pipelines.config import DataConfig
from pipelines.typed import convert


def read_data_section(path: str | Path, overrides: Iterable[str] = ()) -> DataConfig:
    """With `data.key=value` overrides. Raises ValueError naming file, key and what to write."""
    try:
        tree = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}; --config takes a run's YAML file") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    section = tree.get("data") if isinstance(tree, dict) else None
    if not isinstance(section, dict):
        raise ValueError(f"{path}: has no section 'data:'; --config takes a run's YAML file")
    values = {**section, **dict(map(_override, overrides))}
    config = convert(values, DataConfig, f"{path}: data")
    if problems := [f"{path}: data: {key} {what}" for key, what in config.problems()]:
        raise ValueError("\n".join(problems))
    return config


def _override(text: str) -> tuple[str, Any]:
    name, sign, value = text.partition("=")
    section, _, key = name.partition(".")
    if not sign or section != "data" or not key or "." in key:
        raise ValueError(f"command line: {text!r} is not of the form data.key=value")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError:
        raise ValueError(f"command line: the value of {text!r} is not valid YAML") from None
