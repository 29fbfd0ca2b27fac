"""`MethodSpec`: all that metaprune knows of a method before it imports it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from metaprune.core.arguments import check_fields
from metaprune.core.errors import ConfigError
from metaprune.protocol.options import MethodOptions


@dataclass(frozen=True, kw_only=True)
class MethodSpec:
    """A method, by the places of its parts. The package's `__init__` holds it and imports nothing heavy.

    Places are "module:attribute". The method's class derives from its config class, if it has one.
    """

    name: str
    """As in recipes."""
    method: str | type
    """The class that proposes."""
    config: str | type | None = None
    """Its options: a torch-free dataclass that validates itself when it is made. None: the method's class."""
    learned: bool = False
    """Whether it is meta-trained: a `LearnedMethod`."""
    verbs: str | None = None
    """Verbs for the command line: a mapping from names to dataclasses with a `run() -> int`."""
    report: str | None = None
    """Its part of the report: a function `section(record) -> Section | None`."""
    card: str | None = None
    """Page on the method: a file in its package."""
    next_step: str = ""
    """What to do after `metaprune fit`. May name {folder}, {recipe}, {again} (flags that repeat the recipe's
    overrides) and {options[NAME]} (an option of the artifact)."""

    def __post_init__(self) -> None:
        check_fields(self)

    def method_class(self) -> type:
        """Import the method's class."""
        return _loaded(self.method)

    def config_class(self) -> type:
        """Import the class of the options."""
        return self.method_class() if self.config is None else _loaded(self.config)

    def load_verbs(self) -> Mapping[str, type]:
        """Import the verbs; empty where the method has none."""
        return {} if self.verbs is None else _loaded(self.verbs)

    def section(self, record: Mapping[str, Any]) -> Any | None:
        """Return the report's section on `record`, or None where there is nothing to tell."""
        return None if self.report is None else _loaded(self.report)(record)

    def card_path(self) -> Path:
        """Locate the page on the method.

        Raises:
            ConfigError: the method has none.
        """
        if self.card is None:
            raise ConfigError(f"method {self.name!r} has no card")
        target = self.method if isinstance(self.method, str) else f"{self.method.__module__}:"
        return Path(str(import_module(target.partition(":")[0].rpartition(".")[0]).__file__)).with_name(self.card)

    def about(self) -> str:
        """First line of the docstring of the options."""
        return (inspect.getdoc(self.config_class()) or "").partition("\n")[0]

    def needs_data(self) -> bool:
        """Tell whether the method looks at data."""
        kind = self.config_class()
        return bool(kind.needs_data) if hasattr(kind, "needs_data") else MethodOptions.needs_data


def _loaded(target: str | type) -> Any:
    if not isinstance(target, str):
        return target
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)
