"""Routers: scores of which `topk` chooses, and the softmax before it. Who is chosen looks up rows: see `positions`.

The reference semantics is the router without what is dropped: the operator runs on the scores of what stays, as in
the cut network, so that ties and the user's own -inf end alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from metaprune.graph.call import Call, Labels, Positions, Survivors
from metaprune.graph.captured import op_name
from metaprune.graph.rules.elementwise import is_pointwise
from metaprune.graph.rules.reduction import along
from metaprune.graph.rules.registry import rule

_PASSING = ("to", "_to_copy", "view", "reshape", "contiguous", "clone", "unsqueeze", "squeeze", "float", "type_as")
_MOST_PASSED = 16  # operators between a softmax and the choice


@rule("topk")
def topk(call: Call) -> Labels | list[Labels | None]:
    """Choose k of dimension `dim`: at least k of it stay."""
    labels = call.labels(call["self"])
    dim = call["dim"] % len(labels) if labels else 0
    label = call.norm(labels[dim]) if labels else None
    plain = call["largest"] and isinstance(call["k"], int) and call["self"].meta["val"].dtype.is_floating_point
    if label is None or not plain:
        return along(call)
    call.fact.choice = Positions(label, call["k"])
    call.fact.positions = {1: call.fact.choice}
    call.consume("self", dim)
    _among_survivors(call, label, dim, lambda out, stay, _: [out[0], stay[out[1]]], least=call["k"])
    call.note("topk over a tracked dimension chooses among what stays")
    out = [None if d == dim else x for d, x in enumerate(labels)]
    return [out, list(out)]


@rule("softmax", "_softmax", "log_softmax", "_log_softmax")
def softmax(call: Call) -> Labels:
    """Lock the dimension, unless a choice follows: a router's scores are normalised over what stays."""
    labels = call.labels(call["self"])
    dim = call["dim"] % len(labels) if labels else 0
    label = call.norm(labels[dim]) if labels else None
    if label is None or not _leads_to_choice(call.node):
        return along(call)  # type: ignore[return-value]
    _among_survivors(call, label, dim, lambda out, stay, full: out.new_zeros(full).index_copy(dim, stay, out))
    call.note(f"{call.name} over a tracked dimension depends on the width")
    return labels


def _among_survivors(
    call: Call, label: np.ndarray, dim: int, restore: Callable[[Any, Tensor, torch.Size], Any], least: int = 1
) -> None:
    """Make the reference the operator on what stays of dimension `dim` of `self`, with at least `least` of it.

    restore: (result, the indices that stay, shape of `self`) -> the result at full size.
    """
    operator: Any = call.node.target

    def masked(args: dict[str, Any], alive: Survivors) -> Any:
        x, *rest = args.values()
        stay = (torch.as_tensor(alive.rows(label), device=x.device) > 0).nonzero()[:, 0]
        if len(stay) >= least:
            return restore(operator(x.index_select(dim, stay), *rest), stay, x.shape)
        out = operator(x, *rest)  # fewer than any plan leaves: gates, or a branch that is dropped whole
        return list(out) if isinstance(out, tuple) else out

    call.fact.masked = masked


def _leads_to_choice(node: fx.Node) -> bool:
    """Whether operators that pass scores on lead to a `topk`."""
    pending, seen = [node], {node}
    while pending and len(seen) <= _MOST_PASSED:
        for user in pending.pop().users:
            if user.op != "call_function" or user in seen:
                continue
            if op_name(user.target) == "topk":
                return True
            if op_name(user.target) in _PASSING or is_pointwise(user.target):
                seen.add(user)
                pending.append(user)
    return False


@rule("one_hot")
def one_hot(call: Call) -> Labels:
    """Positions as rows of zeros and a one, [..., num_classes]: the new dimension is the one that was chosen along."""
    labels, positions = call.labels(call["self"]), call.positions(call["self"])
    if positions is not None and call["num_classes"] == len(positions.label):
        call.scale("num_classes", positions.label)
        return [*labels, positions.label]
    if positions is not None:
        call.lock(positions.label, "other classes than what was chosen from")
    for label in labels:
        call.lock(label, "positions matter")
    return [None] * len(call.out_shape)
