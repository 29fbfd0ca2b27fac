"""Packed projections taken apart: one matrix for q, k and v becomes three slices of it before any view.

A view [.., 3 * H * d] -> [.., 3, H, d] makes q, k and v rows of one array, which can only lose the same dimensions.
Sliced first, each has a view of its own: the attention itself ties the heads, and v's dimensions are free of q's.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx

from metaprune.graph.call import bound_arguments, written_in_place
from metaprune.graph.captured import Captured, op_name
from metaprune.graph.rules.shape import segments
from metaprune.graph.shapes import BatchedSize

VIEWS = ("view", "reshape", "_unsafe_view", "unflatten")
LARGEST_PACK = 8  # a longer axis that is read index by index is a sequence, not a packed projection


@dataclass
class Pack:
    """`node` views dimension `dim` of `x` as [count, ...]; `leaves` read single indices of that first axis."""

    node: fx.Node
    x: fx.Node
    dim: int
    count: int
    leaves: list[Leaf] = field(default_factory=list)


@dataclass
class Leaf:
    """Value `node` is index `index` of the pack; `order`: which dimension of the view each is, None for a new one."""

    node: fx.Node
    index: int
    order: list[int | None]
    contiguous: bool


def unpack_projections(captured: Captured) -> int:
    """Rewrite every pack of the graph in place; return how many."""
    packs = [p for p in (_find(n, captured) for n in captured.graph.nodes) if p is not None]
    for pack in packs:
        for leaf in pack.leaves:
            leaf.node.replace_all_uses_with(_slice(captured.graph, pack, leaf))
    if packs:
        captured.graph.eliminate_dead_code()
    return len(packs)


def _find(node: fx.Node, captured: Captured) -> Pack | None:
    if node.op != "call_function" or op_name(node.target) not in VIEWS:
        return None
    x: Any = node.args[0]
    before, after = captured.concrete(x.meta["val"]), captured.concrete(node.meta["val"])
    split = [(ins, outs) for ins, outs in segments(list(before), list(after)) if (len(ins), len(outs)) != (1, 1)]
    if len(split) != 1 or len(split[0][0]) != 1 or 1 in before or 1 in after:
        return None
    (dim,), outs = split[0]
    count = after[outs[0]]
    sizes = _sizes(node)
    if not isinstance(x.meta["val"].shape[dim], int) or sizes[dim] != count or count > LARGEST_PACK:
        return None
    if sum(isinstance(s, BatchedSize) for s in sizes) > 1:
        return None
    pack = Pack(node, x, dim, count)
    if not _collect(node, list(range(len(after))), outs[0], False, pack) or not pack.leaves:
        return None
    # one contiguous copy that all parts share would become a copy each, and a write into it would be lost
    shared = any(leaf.contiguous for leaf in pack.leaves)
    return None if shared and any(written_in_place(leaf.node) for leaf in pack.leaves) else pack


def _sizes(node: fx.Node) -> list[Any]:
    """What the view asks for, one entry per dimension of its result; for `unflatten` read off its shape."""
    bound = bound_arguments(node)
    if op_name(node.target) == "unflatten":
        return list(node.meta["val"].shape)
    return list(bound["size"] if "size" in bound else bound["shape"])


def _collect(node: fx.Node, order: list[int | None], packed: int, contiguous: bool, pack: Pack) -> bool:
    """Follow `node`, whose dimensions are `order`, to where `packed` is read by index; False if used otherwise."""
    for user in node.users:
        name, at = op_name(user.target), order.index(packed)
        if user.op != "call_function" or user.args[0] is not node:
            return False
        dims = [a % (len(order) + name.startswith("unsqueeze")) for a in _ints(user.args[1:])]
        if name == "select" and dims[:1] == [at] and isinstance(user.args[2], int):
            rest = order[:at] + order[at + 1 :]
            pack.leaves.append(Leaf(user, user.args[2] % pack.count, rest, contiguous))
        elif name == "unbind" and (dims or [0]) == [at]:
            rest = order[:at] + order[at + 1 :]
            pack.leaves += [Leaf(item, int(item.args[1]), rest, contiguous) for item in user.users]  # type: ignore[arg-type]
        else:
            moved = order if _takes_all(user) else _moved(name, order, dims)
            if moved is None or not _collect(user, moved, packed, contiguous or name == "contiguous", pack):
                return False
    return True


def _takes_all(node: fx.Node) -> bool:
    """A slice `[:]`, as indexing of a later dimension puts before its own."""
    return op_name(node.target) == "slice" and node.meta["val"].shape == node.args[0].meta["val"].shape  # type: ignore


def _ints(arguments: tuple) -> list[int]:
    flat = [v for a in arguments for v in (a if isinstance(a, (list, tuple)) else [a])]
    return [v for v in flat if isinstance(v, int)]


def _moved(name: str, order: list[int | None], dims: list[int]) -> list[int | None] | None:
    """`order` after a view that moves dimensions about; None for any other operator."""
    if name == "permute":
        return [order[d] for d in dims]
    if name in ("transpose", "swapaxes", "swapdims"):
        new = list(order)
        new[dims[0]], new[dims[1]] = order[dims[1]], order[dims[0]]
        return new
    if name == "unsqueeze":
        return [*order[: dims[0]], None, *order[dims[0] :]]
    if name == "squeeze" and len(dims) == 1 and order[dims[0]] is None:
        return order[: dims[0]] + order[dims[0] + 1 :]
    return order if name == "contiguous" else None


def _slice(graph: fx.Graph, pack: Pack, leaf: Leaf) -> fx.Node:
    """Nodes for one leaf: slice, view, permute, unsqueeze; placed before the leaf."""
    aten = torch.ops.aten

    def add(shape: list[Any], target: Any, *args: Any) -> fx.Node:
        new = graph.call_function(target, args)
        new.meta = {**pack.node.meta, "val": replace(pack.x.meta["val"], shape=tuple(shape))}
        return new

    shape = list(pack.x.meta["val"].shape)
    rest = shape[pack.dim] = shape[pack.dim] // pack.count
    with graph.inserting_before(pack.node):
        start = leaf.index * rest
        value = add(shape, aten.slice.Tensor, pack.x, pack.dim, start, start + rest)
        viewed = [n for i, n in enumerate(pack.node.meta["val"].shape) if i != pack.dim]
        if len(viewed) > len(shape):
            shape = viewed
            # at most one size follows the batch: it is inferred
            sizes = [n for i, n in enumerate(_sizes(pack.node)) if i != pack.dim]
            asked = [-1 if isinstance(n, BatchedSize) else n for n in sizes]
            value = add(shape, aten.reshape.default, value, asked)
    dims = [d for d in leaf.order if d is not None]
    ranks = [sorted(dims).index(d) for d in dims]
    with graph.inserting_before(leaf.node):
        if ranks != sorted(ranks):
            shape = [shape[r] for r in ranks]
            value = add(shape, aten.permute.default, value, ranks)
        for at in [i for i, d in enumerate(leaf.order) if d is None]:
            shape = [*shape[:at], 1, *shape[at:]]
            value = add(shape, aten.unsqueeze.default, value, at)
        if leaf.contiguous:
            value = add(shape, aten.contiguous.default, value)
    return value
