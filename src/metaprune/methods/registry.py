"""Methods by name. The module of a method is imported when it is first asked for, so listing them costs nothing."""

from __future__ import annotations

import dataclasses
import importlib
from typing import TYPE_CHECKING, Any

from metaprune.errors import ConfigError, closest

if TYPE_CHECKING:
    from metaprune.methods.base import Method

_TARGETS: dict[str, str] = {}


def register(name: str, target: str) -> None:
    """Make `target` ("module:Class") known as `name`. A name that is taken is refused."""
    if name in _TARGETS and _TARGETS[name] != target:
        raise ConfigError(f"method {name!r} is registered already, as {_TARGETS[name]}")
    _TARGETS[name] = target


def method_names() -> tuple[str, ...]:
    return tuple(_TARGETS)


def method_class(name: str) -> type:
    if name not in _TARGETS:
        raise ConfigError(f"no method {name!r}.{closest(name, method_names())} Known: {', '.join(method_names())}")
    module, _, attribute = _TARGETS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def create_method(method: str | Method, options: dict[str, Any] | None = None) -> Method:
    """A method object from its name and options (an object passes through).

    Raises:
        ConfigError: an unknown name or option, with the closest known one.
    """
    if not isinstance(method, str):
        if options:
            raise ConfigError("method options go into the method object itself")
        return method
    kind = method_class(method)
    known = [f.name for f in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []
    for option in options or {}:
        if option not in known:
            raise ConfigError(
                f"method {method!r} has no option {option!r}.{closest(option, known)} Known: {', '.join(known)}"
            )
    return kind(**(options or {}))


for _name, _class in {
    "uniform": "Uniform",
    "random": "Random",
    "magnitude": "Magnitude",
    "bn_scale": "BNScale",
    "taylor": "Taylor",
}.items():
    register(_name, f"metaprune.methods.{_name}:{_class}")
