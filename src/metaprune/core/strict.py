"""Nested mappings (TOML, JSON, options) into dataclasses, strictly: unknown keys and wrong types are errors."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from metaprune.core.arguments import shown
from metaprune.core.errors import ConfigError, closest


def override(data: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Copy nested `data` with dotted keys set."""
    data = json.loads(json.dumps(data))
    for key, value in overrides.items():
        *parents, leaf = key.split(".")
        table = data
        for parent in parents:
            table = table.setdefault(parent, {})
            if not isinstance(table, dict):
                raise ConfigError(f"cannot set {key}: {parent} is a value, not a table")
        table[leaf] = value
    return data


def from_dict(kind: Any, data: Any, where: str = "") -> Any:
    """Build a dataclass from nested mappings, strictly; or a class that says its keys itself, by `key_types`."""
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where or 'a recipe'}={shown(data)} does not fit: write a table, as [{where or 'model'}]")
    if hasattr(kind, "key_types"):
        hints, required = kind.key_types(), ()
    else:
        hints = typing.get_type_hints(kind)
        required = [
            f.name
            for f in dataclasses.fields(kind)
            if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        ]
        hints = {f.name: hints[f.name] for f in dataclasses.fields(kind)}
    known = list(hints)
    for key in data:
        if key not in known:
            raise ConfigError(f"unknown key {_join(where, key)}.{closest(str(key), known)} Known: {', '.join(known)}")
    for key in required:
        if key not in data:
            raise ConfigError(f"key {_join(where, key)} is missing: add it")
    return kind(**{key: _convert(hints[key], value, _join(where, key)) for key, value in data.items()})


def _join(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)


def _as_float(value: int, where: str) -> float:
    if abs(value) > sys.float_info.max:
        raise ConfigError(f"{where}={shown(value)} does not fit: give a number that a float can hold")
    return float(value)


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        *others, last = [a for a in arguments if a is not type(None)]
        for option in others:
            with contextlib.suppress(ConfigError):
                return _convert(option, value, where)
        return _convert(last, value, where)
    if dataclasses.is_dataclass(hint) or hasattr(hint, "key_types"):
        return value if type(value) is hint else from_dict(hint, value, where)
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(
                f"{where}={value!r} is not one of {', '.join(map(str, arguments))}.{closest(str(value), arguments)}"
            )
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where}={value!r} must be a list")
        if Ellipsis not in arguments and len(value) != len(arguments):
            raise ConfigError(f"{where}={value!r} must be a list of {len(arguments)} values")
        return tuple(_convert(arguments[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}={value!r} must be a table")
        return {str(k): _convert(arguments[1], v, _join(where, k)) for k, v in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return _as_float(value, where)
    if hint in (bool, int, float, str) and type(value) is not hint:
        raise ConfigError(f"{where}={value!r} must be {hint.__name__}, not {type(value).__name__}")
    return value
