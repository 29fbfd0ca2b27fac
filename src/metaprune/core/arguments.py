"""Arguments against the annotations of what they are passed to: one line that names cause and next step.

`check_arguments(prune, locals())` as a function's first line, `check_fields(self)` in a dataclass's `__post_init__`.
Annotations say all: no other list of types is kept.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal

from metaprune.core.errors import ConfigError

_LARGEST = 2**63  # beyond it, numbers do not go into tensors
_NAMES: dict[Any, str] = {int: "a whole number", float: "a number", str: "text", bool: "True or False"}
_NAMES |= {Path: "a path", type(None): "None", None: "None"}


def check_arguments(function: Callable, given: Mapping[str, Any], *, but: Sequence[str] = ()) -> None:
    """Raises ConfigError for the first of `given` (the caller's `locals()`) that its annotation does not allow.

    but: arguments that are checked elsewhere, with more to say.
    """
    hints = {name: hint for name, hint in _hints(function).items() if name not in but}
    _check(function.__qualname__.removesuffix(".__init__"), hints, given)


def check_fields(instance: Any) -> None:
    """Raises ConfigError for the first field of a dataclass instance whose annotation does not allow its value."""
    for kind in reversed(type(instance).__mro__):
        if dataclasses.is_dataclass(kind):
            hints = _hints(kind)
            _check(type(instance).__name__, hints, {name: getattr(instance, name) for name in hints})


def require_fits(name: str, value: Any, hint: Any) -> None:
    """Raises ConfigError where a type (as an annotation writes it) does not allow `value`."""
    if not _fits(value, hint):
        raise ConfigError(f"{name}={shown(value)} does not fit: give {_described(hint)}")


def shown(value: Any) -> str:
    """Show a value in a message: itself where that is short, else its type."""
    simple = value is None or isinstance(value, (bool, int, float, str))
    text = repr(value) if simple else f"<{type(value).__name__}>"
    return text if len(text) <= 60 else f"{text[:56]} ..."


def _check(where: str, hints: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    for name, hint in hints.items():
        if name in given and not _fits(given[name], hint):
            raise ConfigError(f"{where}: {name}={shown(given[name])} does not fit: give {_described(hint)}")


@cache
def _hints(target: Any) -> dict[str, Any]:
    """Annotations of a function's parameters or a class's fields; Any for names that exist for type checkers only."""
    if inspect.isclass(target):
        fields = {f.name for f in dataclasses.fields(target)}  # pyrefly: ignore[bad-argument-type]
        written = {n: a for n, a in vars(target).get("__annotations__", {}).items() if n in fields}
    else:
        variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        parameters = inspect.signature(target).parameters.values()
        written = {p.name: p.annotation for p in parameters if p.kind not in variadic and p.annotation is not p.empty}
    names = vars(sys.modules[target.__module__])
    return {name: _evaluated(annotation, names) for name, annotation in written.items()}


def _evaluated(annotation: Any, names: dict[str, Any]) -> Any:
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, dict(names))
    except NameError:
        return Any


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if isinstance(value, str) and Path in inner:
            return _can_be_a_path(value)
        return any(_fits(value, option) for option in inner)
    if origin is Literal:
        return any(type(value) is type(option) and value == option for option in inner)
    if hint is None or hint is type(None):
        return value is None
    if hint in _SIMPLE:
        return _SIMPLE[hint](value)
    if origin is not None:
        return _fits_container(value, origin, inner)
    vague = hint is Any or not inspect.isclass(hint)
    if vague or (getattr(hint, "_is_protocol", False) and not getattr(hint, "_is_runtime_protocol", False)):
        return True
    return isinstance(value, hint)


_SIMPLE: dict[Any, Callable[[Any], bool]] = {
    bool: lambda value: isinstance(value, bool) or type(value).__name__ in ("bool", "bool_"),
    int: lambda value: isinstance(value, Integral) and not isinstance(value, bool) and abs(int(value)) < _LARGEST,
    float: lambda value: isinstance(value, Real) and not isinstance(value, bool) and value == value,
    Path: lambda value: isinstance(value, os.PathLike),
}


def _can_be_a_path(text: str) -> bool:
    """Whether a system takes it at all: no null byte, no half of a pair, no name that is too long."""
    try:
        return b"\0" not in text.encode() and all(len(part.encode()) <= 255 for part in text.split("/"))
    except UnicodeEncodeError:
        return False


def _fits_container(value: Any, origin: Any, inner: tuple[Any, ...]) -> bool:
    if origin is type:
        return isinstance(value, type)
    if not inspect.isclass(origin) or origin.__name__ == "Callable":
        return origin.__name__ != "Callable" or callable(value)
    if issubclass(origin, Mapping):
        pairs = value.items() if isinstance(value, dict) and inner else ()  # others may compute their values
        return isinstance(value, Mapping) and all(_fits(k, inner[0]) and _fits(v, inner[1]) for k, v in pairs)
    if issubclass(origin, Sequence):  # an array of numbers counts as one, a text does not
        if isinstance(value, (str, bytes, Mapping, type)) or getattr(value, "shape", None) == ():
            return False
        if not hasattr(value, "__len__"):
            return False
        if origin is tuple and Ellipsis not in inner:
            return len(value) == len(inner) and all(map(_fits, value, inner))
        return all(_fits(element, inner[0]) for element in value) if inner else True
    return isinstance(value, origin)


def _described(hint: Any) -> str:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_described(option) for option in inner))
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin is not None and inspect.isclass(origin):
        if origin.__name__ == "Callable":
            return "a function"
        if issubclass(origin, Mapping):
            return f"a mapping of {_described(inner[0])} to {_described(inner[1])}"
        if issubclass(origin, Sequence):
            return f"a list of {_described(inner[0])}" if inner else "a list"
        return _described(origin)
    package = getattr(hint, "__module__", "").partition(".")[0]
    return _NAMES.get(hint) or f"a {package}.{getattr(hint, '__name__', hint)}"
