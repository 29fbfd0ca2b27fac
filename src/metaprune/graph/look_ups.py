"""Weights of experts, read off the labelled graph: stacked matrices, and tensors of which calls read what was chosen.

Stacked matrices are [experts, rows, columns], read by a product or by a look-up.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from metaprune.graph.call import LookUp
from metaprune.graph.captured import Captured, op_name
from metaprune.graph.labelling import Labelled, is_passed_on
from metaprune.graph.labels import Label


def looked_up(captured: Captured, labelled: Labelled) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield tensors of the model of which every reader takes rows that were chosen: name, (dimension, rows taken)."""
    for node in captured.graph.nodes:
        name = captured.sources.get(node.name, "")
        readers = list(_readers(node)) if name in labelled.parameters else []
        found = [x for n in readers if (x := labelled.facts[n.name].look_up) is not None]
        if not found or len(found) < len(readers):
            continue
        for dim, label in enumerate(labelled.parameters[name]):
            if label is not None and all(looked_up_label(labelled, look_up) is label for look_up in found):
                yield name, (dim, max(look_up.taken for look_up in found))


def stacked(captured: Captured, labelled: Labelled) -> Iterator[Label]:
    """Yield the first label of every stack of matrices among the model's tensors, or among views of them."""
    pending = [n for n in captured.graph.nodes if n.name in captured.sources]
    while pending:
        node = pending.pop()
        labels = labelled.facts[node.name].labels[0] or []
        is_stack = len(labels) > 2 and all(n > 1 for n in captured.concrete(node.meta["val"]))
        for user in node.users:
            if is_passed_on(user):
                pending += [user] if op_name(user.target) not in _WIDENED else []
            elif is_stack and (op_name(user.target) in _PRODUCTS or labelled.facts[user.name].look_up is not None):
                yield labels[0]


_PRODUCTS = ("matmul", "bmm", "baddbmm", "einsum", "_grouped_mm")
_WIDENED = ("unsqueeze", "expand", "expand_as", "broadcast_to")


def looked_up_label(labelled: Labelled, look_up: LookUp) -> Label:
    """Return the label of the dimension that is looked up in."""
    labels = labelled.facts[look_up.tensor.name].labels[0]
    return None if labels is None else labels[look_up.dim]


def _readers(node: fx.Node) -> Iterator[fx.Node]:
    """Nodes that read a tensor, or a view or a copy of it."""
    for user in node.users:
        yield from _readers(user) if is_passed_on(user) else [user]
