"""What the options of a method declare, without torch: recipes and the command line read them first."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, ClassVar

DECIDED_BY = "decided_by"
BY_FIT = {DECIDED_BY: "fit"}
"""Metadata of a field that meta-training decides: it cannot be changed once an artifact exists."""
AT_RUN_TIME = {DECIDED_BY: "run time"}
"""Metadata of a field that is no option of a recipe: it is set while the program runs, and written nowhere."""


class MethodOptions:
    """Base class of a method's config dataclass; what it declares has defaults.

    name: as in recipes.
    needs_data: the method looks at data; without any it is refused.
    needs_classes: the method needs data with classes.
    many_networks: meta-training takes several networks (the `[[also]]` tables of a recipe).
    shares_work: meta-training may run as several processes.
    """

    name: ClassVar[str]
    needs_data: ClassVar[bool] = False
    needs_classes: ClassVar[bool] = False
    many_networks: ClassVar[bool] = False
    shares_work: ClassVar[bool] = False

    def public(self) -> dict[str, Any]:
        """Return the options as a run's config.json holds them. A method with secrets removes or refuses them here."""
        return recipe_options(self)


def recipe_options(config: Any) -> dict[str, Any]:
    """Read the fields of a config dataclass that a recipe can set, as plain data."""
    names = [f.name for f in dataclasses.fields(config) if f.metadata.get(DECIDED_BY) != "run time"]
    return {name: _plain(getattr(config, name)) for name in names}


def fitted_options(config: Any) -> tuple[str, ...]:
    """Name the fields of a config dataclass (or an object of it) that meta-training decides."""
    return tuple(f.name for f in dataclasses.fields(config) if f.metadata.get(DECIDED_BY) == "fit")


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    return json.loads(json.dumps(value, default=dict))
