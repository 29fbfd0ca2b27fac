"""How a node's call changes once indices are dropped: shared by the executor and the graph form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import fx

from metaprune.graph.call import Fact, Survivors, bound_arguments, with_argument
from metaprune.graph.ops import permute_channels

# value, kept, total -> value scaled; value is a symbolic size that is known at run time only
ScaleSymbol = Callable[[Any, int, int], Any]
# int64 positions -> whatever stands for a constant tensor in the target
MakeIndex = Callable[[np.ndarray], Any]


def patched_call(
    node: fx.Node, fact: Fact, alive: Survivors | None, scale: ScaleSymbol, make_index: MakeIndex
) -> tuple[Any, tuple, dict]:
    """(target, args, kwargs) of `node` among the survivors; `alive=None` keeps everything."""
    gather = fact.gather
    if gather is not None and (node.target is permute_channels or (alive is not None and alive.cut(gather.label))):
        positions = gather.source
        if alive is not None:
            rows = alive.rows(gather.label)
            positions = (np.cumsum(rows) - 1)[gather.source[rows[gather.source]]]
        return torch.ops.aten.index_select.default, (gather.tensor, gather.dim, make_index(positions)), {}
    if alive is None:
        return node.target, node.args, dict(node.kwargs)
    if fact.rewrite is not None:
        return fact.rewrite(alive)
    args, kwargs = node.args, dict(node.kwargs)
    if fact.patches:
        bound = bound_arguments(node)
        for patch in fact.patches:
            old = bound[patch.argument]
            element = old if patch.position is None else old[patch.position]
            if patch.value is not None:
                new = patch.value(alive)
            elif patch.label is None or not alive.cut(patch.label) or (isinstance(element, int) and element == -1):
                continue
            else:
                count, total = alive.count(patch.label), len(patch.label)
                new = element * count // total if isinstance(element, int) else scale(element, count, total)
            if patch.position is not None:
                new = [*old[: patch.position], new, *old[patch.position + 1 :]]
            bound[patch.argument] = new
            args, kwargs = with_argument(node.target, args, kwargs, patch.argument, new)
    return node.target, args, kwargs
