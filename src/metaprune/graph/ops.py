"""Operators that metaprune puts into a captured graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import fx


def permute_channels(x: torch.Tensor, dim: int, order: tuple[int, ...]) -> torch.Tensor:
    """Put dimension `dim` of `x` into the constant order `order`."""
    return x.index_select(dim, torch.tensor(order, device=x.device))


def fuse_channel_shuffles(graph: fx.Graph) -> int:
    """Replace view [.., g, c, ..] -> transpose -> view back by one constant permutation; return how many.

    As views, a shuffle asks for a rectangle of survivors and merges groups with every block; as a permutation it asks
    for nothing.
    """
    fused = 0
    for node in list(graph.nodes):
        match = _match_shuffle(node)
        if match is None:
            continue
        last, x, dim, rows, columns = match
        order = tuple(int(i) for i in np.arange(rows * columns).reshape(rows, columns).T.reshape(-1))
        with graph.inserting_before(last):
            new = graph.call_function(permute_channels, (x, dim, order))
        new.meta = dict(last.meta)
        last.replace_all_uses_with(new)
        fused += 1
    if fused:
        graph.eliminate_dead_code()
    return fused


def _is(node: object, *names: str) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_function" and str(node.target) in {f"aten.{n}" for n in names}


def _match_shuffle(first: fx.Node) -> tuple[fx.Node, fx.Node, int, int, int] | None:
    views = ("view.default", "reshape.default")
    if not _is(first, *views) or len(first.users) != 1:
        return None
    turn = next(iter(first.users))
    if not _is(turn, "transpose.int") or len(turn.users) != 1:
        return None
    last = next(iter(turn.users))
    if _is(last, "contiguous.default", "clone.default") and len(last.users) == 1:
        last = next(iter(last.users))
    if not _is(last, *views, "flatten.using_ints"):
        return None
    x: Any = first.args[0]
    turned: Any = turn.args[1:3]
    before, middle, after = (list(n.meta["val"].shape) for n in (x, first, last))
    dim = min(a % len(middle) for a in turned)
    if max(a % len(middle) for a in turned) != dim + 1 or str(before) != str(after):
        return None
    if len(middle) != len(before) + 1 or not all(isinstance(n, int) for n in middle[dim : dim + 2]):
        return None
    rows, columns = middle[dim : dim + 2]
    if before[dim] != rows * columns or str(middle[:dim] + middle[dim + 2 :]) != str(before[:dim] + before[dim + 1 :]):
        return None
    return last, x, dim, rows, columns
