"""One file per operator family; importing this package registers every rule."""

import warnings
from importlib import import_module
from importlib.metadata import entry_points

from metaprune.core.errors import one_line_error
from metaprune.graph.rules import (  # noqa: F401
    attention,
    choice,
    contraction,
    conv,
    creation,
    cutting,
    elementwise,
    fourier,
    norm,
    recurrent,
    reduction,
    scatter,
    shape,
    spatial,
)
from metaprune.graph.rules.registry import RULES, rule

__all__ = ["RULES", "rule"]


def _import_installed() -> None:
    """Import the modules that packages name under the entry point `metaprune.rules`; they register rules by `rule`."""
    for point in entry_points(group="metaprune.rules"):
        try:
            import_module(point.value.partition(":")[0])
        except Exception as error:  # a package's module may raise anything; other networks can still be traced
            warnings.warn(f"operator rules of {point.value} are left out: {one_line_error(error)}", stacklevel=2)


_import_installed()
