"""Methods by name. The module of a method is imported when it is first asked for, so listing them costs nothing."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from metaprune.core.errors import ConfigError
from metaprune.core.plugins import Registry
from metaprune.core.strict import from_dict

if TYPE_CHECKING:
    from metaprune.protocol.method import Method

METHODS = Registry(
    "method",
    "metaprune.methods",
    {
        "uniform": "metaprune.methods.criteria.uniform:Uniform",
        "random": "metaprune.methods.criteria.random:Random",
        "magnitude": "metaprune.methods.criteria.magnitude:Magnitude",
        "bn_scale": "metaprune.methods.criteria.bn_scale:BNScale",
        "fpgm": "metaprune.methods.criteria.fpgm:FPGM",
        "snip": "metaprune.methods.criteria.snip:Snip",
        "taylor": "metaprune.methods.criteria.taylor:Taylor",
        "gates": "metaprune.methods.gates.method:Gates",
        "weights": "metaprune.methods.weight_masks.method:Weights",
        "pruningnet": "metaprune.methods.pruningnet.method:PruningNet",
        "stamp": "metaprune.methods.stamp.method:Stamp",
        "metagraph": "metaprune.methods.metagraph.method:MetaGraph",
    },
)


def register(name: str, target: str | type) -> None:
    """Make `target` ("module:Class", or the class) known as `name`. A name that is taken is refused."""
    METHODS.register(name, target)


def method_names() -> tuple[str, ...]:
    return METHODS.names()


def method_class(name: str) -> type:
    """The class of a method by name, or by `python:module:Class`."""
    return METHODS.get(name)


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
