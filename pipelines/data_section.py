"""The `data` section of a run's YAML file, for the tools of this folder. Published files, and the
other sections, are for engine/config.py, which this folder does not know."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from pipelines.config import DataConfig, FrameFiles


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
    config = _record(DataConfig, values, f"{path}: data")
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


def _record(kind: Any, values: dict[str, Any], where: str) -> Any:
    fields = {entry.name: entry for entry in dataclasses.fields(kind)}
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{where}: unknown key {key!r}{hint}")
    for name, entry in fields.items():
        if entry.default is dataclasses.MISSING and name not in values:
            raise ValueError(f"{where}: missing key {name!r}")
    hints = typing.get_type_hints(kind)
    return kind(**{k: _value(v, hints[k], f"{where}: {k}") for k, v in values.items()})


def _value(value: Any, hint: Any, where: str) -> Any:
    """As parsed from YAML -> what the annotation says, lists as tuples."""
    is_union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    for kind in typing.get_args(hint) if is_union else (hint,):
        if kind is FrameFiles and isinstance(value, dict):
            return _record(FrameFiles, value, where)
        if typing.get_origin(kind) is tuple and isinstance(value, list):
            return _as_tuple(value)
        if type(value) is kind or (kind is float and type(value) is int):
            return value
    raise ValueError(f"{where}: {value!r} is not of the kind that stands in pipelines/config.py")


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value
