"""What a channel group is for: attention heads, head dimensions, the residual stream, experts, or a hidden width.

Read off the labelled graph: attention is `scaled_dot_product_attention`, or a product of two activations whose softmax
meets a third; a residual stream is what an addition carries on from one of its own ancestors; experts are stacked
matrices among which a router chooses. Names only: no equation depends on a role.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch import fx

from metaprune.graph.call import Labels, bound_arguments
from metaprune.graph.captured import Captured, op_name
from metaprune.graph.labelling import Labelled
from metaprune.graph.labels import Label
from metaprune.graph.look_ups import stacked
from metaprune.graph.rules.elementwise import is_pointwise

HEADS, KV_HEADS, QUERY_HEADS = "heads", "kv_heads", "query_heads"
HEAD_DIMS, VALUE_DIMS = "head_dims", "value_dims"
STREAM, EXPERTS, HIDDEN = "stream", "experts", "hidden"
ATTENTION_ROLES = (HEADS, KV_HEADS, QUERY_HEADS, HEAD_DIMS, VALUE_DIMS)
ROLES = (*ATTENTION_ROLES, STREAM, EXPERTS, HIDDEN)

_PRODUCTS = ("matmul", "bmm", "baddbmm", "einsum")
_PASSING = ("view", "reshape", "_unsafe_view", "permute", "transpose", "contiguous", "clone", "dropout", "to", "slice")
_PASSING += ("softmax", "_softmax", "masked_fill", "expand", "unsqueeze", "squeeze", "type_as", "float", "_to_copy")


def roles_of_atoms(captured: Captured, labelled: Labelled) -> np.ndarray:
    """Index into `ROLES` of every atom of the algebra; the first role found stays."""
    roles = np.full(len(labelled.atoms), ROLES.index(HIDDEN), dtype=np.int64)

    def mark(label: Label, role: str, column: int | None = None) -> None:
        final = None if label is None else labelled.atoms.final(label)
        if final is not None and (column is None or column < final.shape[1]):
            atoms = final if column is None else final[:, column]
            atoms = np.unique(atoms[atoms >= 0])
            free = atoms[roles[atoms] == ROLES.index(HIDDEN)]
            roles[free] = ROLES.index(role)

    finals = [final for choice in labelled.choices if (final := labelled.atoms.final(choice.label)) is not None]
    chosen = np.unique(np.concatenate(finals)) if finals else np.empty(0)
    for label in stacked(captured, labelled):
        final = None if label is None else labelled.atoms.final(label)
        if final is not None and np.isin(final, chosen).all():
            mark(label, EXPERTS)
    for heads, head_dims, value_dims in attentions(captured.graph, labelled):
        mark(head_dims, HEAD_DIMS)
        mark(value_dims, VALUE_DIMS)
        for label in heads:
            final = None if label is None else labelled.atoms.final(label)
            if final is not None and final.shape[1] == 2:  # {KV_i, R_r}: query head (i, r) reads key/value head i
                mark(label, KV_HEADS, 0)
                mark(label, QUERY_HEADS, 1)
            mark(label, HEADS)
    for label in _streams(captured.graph, labelled):
        mark(label, STREAM)
    return roles


def attentions(graph: fx.Graph, labelled: Labelled) -> Iterator[tuple[Labels, Label, Label]]:
    """(labels of the head dimensions, query/key dimension, value dimension) of every attention."""
    facts = labelled.facts
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        name = op_name(node.target)
        if name == "scaled_dot_product_attention":
            bound = bound_arguments(node)
            query, value = (facts[bound[n].name].labels[0] for n in ("query", "value"))
            assert query is not None and value is not None
            yield query[:-2], query[-1], value[-1]
        elif name in ("softmax", "_softmax"):
            scores, mixed = _product_before(node), _product_after(node)
            if scores is None or mixed is None:
                continue
            a, b = (facts[n.name].labels[0] for n in scores.all_input_nodes[-2:])
            out = facts[scores.name].labels[0]
            values = facts[mixed.all_input_nodes[-1].name].labels[0]
            if a is not None and b is not None and out is not None and values is not None:
                yield out[:-2], a[-1], values[-1]


def _product_before(node: fx.Node) -> fx.Node | None:
    """The product of two activations whose (scaled, biased, masked) result `node` takes."""
    return _first_product(node, lambda n: n.all_input_nodes, lambda product, _: _activations(product))


def _product_after(node: fx.Node) -> fx.Node | None:
    """The product that takes `node` (after dropout and views) as its first operand."""
    return _first_product(node, lambda n: list(n.users), lambda product, via: product.all_input_nodes[0] is via)


def _first_product(
    node: fx.Node, near: Callable[[fx.Node], list[fx.Node]], wanted: Callable[[fx.Node, fx.Node], bool]
) -> fx.Node | None:
    """The first product on the way over operators that pass a value on."""
    for _ in range(32):
        around = [n for n in near(node) if n.op == "call_function"]
        products = [n for n in around if op_name(n.target) in _PRODUCTS and wanted(n, node)]
        if products:
            return products[0]
        onward = [n for n in around if op_name(n.target) in _PASSING or is_pointwise(n.target)]
        if not onward:
            return None
        node = onward[0]
    return None


def _activations(node: fx.Node) -> bool:
    return len(node.all_input_nodes) >= 2 and all(n.op == "call_function" for n in node.all_input_nodes[-2:])


def _streams(graph: fx.Graph, labelled: Labelled) -> Iterator[Label]:
    """Labels of additions in which one operand was computed from the other."""
    before: dict[fx.Node, int] = {}  # bit set of all earlier nodes that a node depends on
    for position, node in enumerate(graph.nodes):
        bits = 1 << position
        inputs = node.all_input_nodes
        for i in inputs:
            bits |= before[i]
        before[node] = bits
        if node.op != "call_function" or op_name(node.target) not in ("add", "add_"):
            continue
        operands: list[Any] = [n for n in inputs if n.op == "call_function"]
        if len(operands) == 2 and _leads_to(operands, before):
            yield from labelled.facts[node.name].labels[0] or []


def _leads_to(operands: list[fx.Node], before: dict[fx.Node, int]) -> bool:
    a, b = operands
    return (before[a] & before[b]) in (before[a], before[b])
