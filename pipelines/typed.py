"""Values as parsed from YAML -> dataclasses and numbers, by annotation, or an error that names the
key and suggests the right one. Knows no particular config."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable
from typing import Any, get_args, get_origin


def convert(value: Any, kind: Any, where: str) -> Any:
    """`value` as parsed from YAML -> an instance of annotation `kind`.

    PyYAML reads `1e-3` as a string, so numbers are converted by annotation, never by looks.
    Raises ValueError starting with `where`.
    """
    if dataclasses.is_dataclass(kind):
        return _record(value, typing.cast(type, kind), where)
    origin = get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in get_args(kind):
            return None
        (inner,) = (k for k in get_args(kind) if k is not type(None))
        return convert(value, inner, where)
    if origin is tuple:
        return _tuple(value, get_args(kind), where)
    if origin is dict or kind is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{where}: expected a mapping, found {value!r}")
        return value
    return _scalar(value, kind, where)


def unknown_choice(value: object, choices: Iterable[str]) -> str:
    """`is 'x'; did you mean 'y'? (one of ...)`, to follow the key."""
    names = list(choices)
    return f"is {value!r}{suggest(str(value), names)} (one of {', '.join(names)})"


def suggest(word: str, candidates: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing where no candidate is near."""
    near = difflib.get_close_matches(word, list(candidates), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def _record(value: Any, kind: type, where: str) -> Any:
    """A dataclass from a mapping: unknown and missing keys are errors."""
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected keys and values, found {value!r}")
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for key in value:
        if key not in fields:
            raise ValueError(f"{where}: unknown key {key!r}{suggest(str(key), fields)}")
    for name, entry in fields.items():
        required = entry.default is entry.default_factory is dataclasses.MISSING
        if required and name not in value:
            raise ValueError(f"{where}: missing key {name!r}")
    return kind(**{key: convert(v, hints[key], f"{where}: {key}") for key, v in value.items()})


def _tuple(value: Any, kinds: tuple[Any, ...], where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{where}: expected a list, found {value!r}")
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(kinds) != len(value):
        raise ValueError(f"{where}: expected {len(kinds)} values, found {len(value)}: {value!r}")
    return tuple(convert(v, kind, where) for v, kind in zip(value, kinds, strict=True))


def _scalar(value: Any, kind: Any, where: str) -> Any:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    if kind is Any or (type(value) is kind):
        return value
    if kind is str and value is None:  # `key:` and `section.key=` with nothing behind
        return ""
    if kind is str and type(value) is bool:  # what YAML makes of the words on and off
        return "on" if value else "off"
    if kind is float and type(value) is int:
        return float(value)
    if kind is float and isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            pass  # reported below, as any other wrong value
    raise ValueError(f"{where}: expected {names.get(kind, kind)}, found {value!r}")
