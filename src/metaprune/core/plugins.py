"""One registry for all that is added by name: methods, objectives, recoveries, data schemes, cost metrics, rules.

A name is known from three sources: what metaprune ships, `register`, and the entry points of installed packages. A
`python:module:attribute` spec names an object of the user's own without registering it.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import cached_property
from importlib.metadata import entry_points
from typing import Any

from metaprune.core.errors import ConfigError, closest
from metaprune.core.imports import import_python_target

PYTHON = "python:"


class Registry:
    """Objects by name. A module is imported when its name is first asked for, so listing names costs nothing.

    Args:
        kind: what one entry is called in messages, as `method`.
        group: entry-point group that packages add to, as `metaprune.methods`.
        builtin: name -> "module:attribute" of what metaprune ships.
    """

    def __init__(self, kind: str, group: str, builtin: Mapping[str, str]):
        self.kind, self.group = kind, group
        self._builtin = frozenset(builtin)
        self._targets: dict[str, Any] = dict(builtin)

    @cached_property
    def _installed(self) -> dict[str, str]:
        return {point.name: point.value for point in entry_points(group=self.group)}

    def register(self, name: str, target: Any) -> None:
        """Make `target` (an object, or "module:attribute") known as `name`.

        Raises:
            ConfigError: no name, or one that is taken by something else.
        """
        if not name:
            raise ConfigError(f"a {self.kind} needs a name: register(NAME, target)")
        known = self._targets.get(name, self._installed.get(name))
        if known is not None and known != target:
            raise ConfigError(f"{self.kind} {name!r} is registered already, as {known}")
        self._targets[name] = target

    def unregister(self, name: str) -> None:
        """Forget what `register` made known, so that a test or a notebook can define it again."""
        self._targets.pop(name, None)

    def names(self) -> tuple[str, ...]:
        """List all known names: what ships first, then what was registered or installed."""
        return tuple(dict.fromkeys((*self._targets, *self._installed)))

    def is_builtin(self, name: str) -> bool:
        """Tell whether metaprune ships what `name` stands for."""
        return name in self._builtin

    def get(self, name: str) -> Any:
        """Load the object that `name`, or a `python:module:attribute` spec, stands for.

        Raises:
            ConfigError: an unknown name (with the closest known one), or a module that does not import.
        """
        if name.startswith(PYTHON):
            return import_python_target(name.removeprefix(PYTHON))
        if name not in self.names():
            raise ConfigError(
                f"no {self.kind} {name!r}.{closest(name, self.names())} Known: {', '.join(self.names())}, or "
                f"{PYTHON}module:attribute"
            )
        target = self._targets.get(name, self._installed.get(name))
        if not isinstance(target, str):
            return target
        module, _, attribute = target.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            if name not in self._installed:
                raise
            raise ConfigError(
                f"{self.kind} {name!r} ({target}) cannot be loaded: {error}; reinstall its package"
            ) from error
