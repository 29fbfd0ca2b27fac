"""Tensors of which a call reads what was chosen alone, read off the labelled graph: the weights of experts."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from metaprune.graph.call import LookUp, alias_kind
from metaprune.graph.captured import Captured, op_name
from metaprune.graph.labelling import COPIES, Labelled
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


def looked_up_label(labelled: Labelled, look_up: LookUp) -> Label:
    """Return the label of the dimension that is looked up in."""
    labels = labelled.facts[look_up.tensor.name].labels[0]
    return None if labels is None else labels[look_up.dim]


def _readers(node: fx.Node) -> Iterator[fx.Node]:
    """Nodes that read a tensor, or a view or a copy of it."""
    for user in node.users:
        passed = user.op == "call_function" and (op_name(user.target) in COPIES or alias_kind(user.target) == "view")
        yield from _readers(user) if passed else [user]
