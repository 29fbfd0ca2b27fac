"""Methods by name. A method's package is imported when it is first asked for, so listing names costs nothing.

An entry is a `MethodSpec`, or a method's class alone. Installed packages add theirs by the entry-point group
`metaprune.methods`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from metaprune.core.arguments import check_arguments, shown
from metaprune.core.deprecation import current_name
from metaprune.core.errors import ConfigError
from metaprune.core.plugins import Registry
from metaprune.core.strict import from_dict
from metaprune.protocol.options import MethodOptions, recipe_options
from metaprune.protocol.spec import MethodSpec

if TYPE_CHECKING:
    from metaprune.protocol.method import Method

METHODS = Registry(
    "method",
    "metaprune.methods",
    {
        "uniform": "metaprune.methods.criteria:UNIFORM",
        "random": "metaprune.methods.criteria:RANDOM",
        "magnitude": "metaprune.methods.criteria:MAGNITUDE",
        "bn_scale": "metaprune.methods.criteria:BN_SCALE",
        "lamp": "metaprune.methods.criteria:LAMP",
        "fpgm": "metaprune.methods.criteria:FPGM",
        "snip": "metaprune.methods.criteria:SNIP",
        "taylor": "metaprune.methods.criteria:TAYLOR",
        "taylor_batch": "metaprune.methods.criteria:TAYLOR_BATCH",
        "activation": "metaprune.methods.criteria:ACTIVATION",
        "experts": "metaprune.methods.criteria:EXPERTS",
        "variance": "metaprune.methods.criteria:VARIANCE",
        "obs": "metaprune.methods.criteria:OBS",
        "depth": "metaprune.methods.depth:METHOD",
        "gates": "metaprune.methods.gates:METHOD",
        "group_lasso": "metaprune.methods.group_lasso:METHOD",
        "sfp": "metaprune.methods.sfp:METHOD",
        "netadapt": "metaprune.methods.netadapt:METHOD",
        "amc": "metaprune.methods.amc:METHOD",
        "weight_masks": "metaprune.methods.weight_masks:METHOD",
        "pruningnet": "metaprune.methods.pruningnet:METHOD",
        "stamp": "metaprune.methods.stamp:METHOD",
        "metagraph": "metaprune.methods.metagraph:METHOD",
    },
)
RENAMED = {"weights": "weight_masks"}


def register(name: str, target: str | type | MethodSpec) -> None:
    """Make `target` known as `name`: a spec, a class, or "module:attribute" of one. A name that is taken is refused."""
    check_arguments(register, locals())
    METHODS.register(name, target)


def method_names() -> tuple[str, ...]:
    return METHODS.names()


def current_method_name(name: str) -> str:
    """Name a method as it is called now; an old name warns."""
    return current_name("method", name, RENAMED)


def method_spec(name: str) -> MethodSpec:
    """Load the spec of a method by name, or by `python:module:Class`.

    Raises:
        ConfigError: an unknown name, or a package that does not import.
    """
    name = current_method_name(name)
    target = METHODS.get(name)
    return target if isinstance(target, MethodSpec) else MethodSpec(name=name, method=target)


def method_class(name: str) -> type:
    """Load the class of a method by name, or by `python:module:Class`."""
    return method_spec(name).method_class()


def resolved_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return all options of a method as plain data, checked, with the defaults of what `options` leaves out.

    Raises:
        ConfigError: an unknown method or option, or a value that does not fit.
    """
    return {} if (made := _config(name, options)) is None else recipe_options(made)


def public_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return `resolved_options` as far as a file may hold them, see `MethodOptions.public`."""
    made = _config(name, options)
    if isinstance(made, MethodOptions):
        return made.public()
    return {} if made is None else recipe_options(made)


def _config(name: str, options: Mapping[str, Any]) -> Any | None:
    kind = method_spec(name).config_class()
    if dataclasses.is_dataclass(kind):
        return from_dict(kind, options, name)
    if options:
        raise ConfigError(f"method {name!r} has no options")
    return None


def create_method(method: str | Method, options: Mapping[str, Any] | None = None) -> Method:
    """Create a method object from its name and options (an object passes through).

    Raises:
        ConfigError: an unknown name or option, with the closest known one, or an option of a wrong type.
    """
    if not isinstance(method, str):
        if options:
            raise ConfigError("method options go into the method object itself")
        if isinstance(method, type) or not callable(getattr(method, "propose", None)):
            raise ConfigError(
                f"method={shown(method)} is neither a name ({', '.join(method_names())}) nor a method object"
            )
        return method
    kind = method_class(method)
    if dataclasses.is_dataclass(kind):
        return from_dict(kind, options or {}, method)
    if options:
        raise ConfigError(f"method {method!r} has no options")
    return kind()
