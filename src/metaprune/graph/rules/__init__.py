"""One file per operator family; importing this package registers every rule."""

from metaprune.graph.rules import attention, contraction, conv, creation, cutting, elementwise, norm, reduction, shape, spatial  # noqa: F401
from metaprune.graph.rules.registry import RULES, rule

__all__ = ["RULES", "rule"]
