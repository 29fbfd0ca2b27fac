"""Methods by name. The module of a method is imported when it is first asked for, so listing them costs nothing."""

from __future__ import annotations

import dataclasses
import importlib
from typing import TYPE_CHECKING, Any

from metaprune.errors import ConfigError, closest
from metaprune.strict import from_dict

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
        ConfigError: an unknown name or option, with the closest known one, or an option of a wrong type.
    """
    if not isinstance(method, str):
        if options:
            raise ConfigError("method options go into the method object itself")
        if isinstance(method, type) or not callable(getattr(method, "propose", None)):
            raise ConfigError(f"method={method!r} is neither a name ({', '.join(method_names())}) nor a method object")
        return method
    kind = method_class(method)
    if dataclasses.is_dataclass(kind):
        return from_dict(kind, options or {}, method)
    if options:
        raise ConfigError(f"method {method!r} has no options")
    return kind()


for _name, _class in {
    "uniform": "Uniform",
    "random": "Random",
    "magnitude": "Magnitude",
    "bn_scale": "BNScale",
    "fpgm": "FPGM",
    "snip": "Snip",
    "taylor": "Taylor",
    "gates": "Gates",
    "weights": "Weights",
    "pruningnet": "PruningNet",
    "stamp": "Stamp",
    "metagraph": "MetaGraph",
}.items():
    register(_name, f"metaprune.methods.{_name}:{_class}")
