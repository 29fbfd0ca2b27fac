"""One file per operator family; importing this package registers every rule."""

from metaprune.graph.rules import (  # noqa: F401
    attention,
    contraction,
    conv,
    creation,
    cutting,
    elementwise,
    norm,
    recurrent,
    reduction,
    shape,
    spatial,
)
from metaprune.graph.rules.registry import RULES, rule

__all__ = ["RULES", "rule"]
