"""Routers: scores of which `topk` chooses, and the softmax before it. Who is chosen looks up rows: see `positions`.

The reference semantics is the router without what is dropped: its scores are -inf where they are compared and where
they are normalised.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from metaprune.graph.call import Call, Labels, Positions, Survivors
from metaprune.graph.captured import op_name
from metaprune.graph.labels import Label
from metaprune.graph.rules.elementwise import is_pointwise
from metaprune.graph.rules.norm import survivors_mask
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
    _leave_out(call, [label if d == dim else None for d in range(len(labels))])
    call.note("topk over a tracked dimension chooses among what stays")
    out = [None if d == dim else x for d, x in enumerate(labels)]
    return [out, list(out)]


@rule("softmax", "_softmax", "log_softmax", "_log_softmax")
def softmax(call: Call) -> Labels:
    """Lock the dimension, unless a choice follows: a router's scores are normalised over what stays."""
    labels = call.labels(call["self"])
    dim = call["dim"] % len(labels) if labels else 0
    if not labels or call.norm(labels[dim]) is None or not _leads_to_choice(call.node):
        return along(call)  # type: ignore[return-value]
    _leave_out(call, [x if d == dim else None for d, x in enumerate(labels)])
    call.note(f"{call.name} over a tracked dimension depends on the width")
    return labels


def _leave_out(call: Call, tracked: list[Label]) -> None:
    """Make -inf of what is dropped the reference of an operator that takes `self` first."""
    operator: Any = call.node.target

    def masked(args: dict[str, Any], alive: Survivors) -> Any:
        x = args["self"]
        gone = survivors_mask(alive, tracked, x) == 0
        out = operator(x.masked_fill(gone, float("-inf")), *list(args.values())[1:])
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
