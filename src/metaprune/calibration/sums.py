"""Where a product's result ends in a sum with another branch, which can then make up for that branch's error."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from metaprune.graph.captured import op_name
from metaprune.network import DROPOUTS, Network


@dataclass(frozen=True)
class Branch:
    """What follows a product: a BatchNorm over running statistics, or none, and a sum with `other`, or none.

    end: the last of the product, its BatchNorm and its sum.
    """

    norm: fx.Node | None
    other: fx.Node | None
    end: fx.Node


def branch_of(node: fx.Node, network: Network) -> Branch:
    """Follow the only reader of every value from `node` on, through BatchNorm and dropout, to a sum."""
    norm: fx.Node | None = None
    start = node
    while len(node.users) == 1:
        user = next(iter(node.users))
        name = op_name(user.target) if user.op == "call_function" else ""
        if name == "batch_norm" and norm is None and user.args[0] is node and user.name in network.switchable:
            norm = user
        elif name in ("add", "add_") and "alpha" not in user.kwargs:
            other = user.args[1] if user.args[0] is node else user.args[0]
            if isinstance(other, fx.Node) and _is_before(other, start):
                return Branch(norm, other, user)
            break
        elif name not in DROPOUTS:
            break
        node = user
    return Branch(norm, None, norm or start)


def _is_before(other: fx.Node, node: fx.Node) -> bool:
    """Tell whether `other` is a value of the same shape that is there before `node` is."""
    return other.op == "call_function" and other < node and other.meta["val"].shape == node.meta["val"].shape
