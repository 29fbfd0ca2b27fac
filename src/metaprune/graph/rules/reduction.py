"""Reductions: labels of the reduced dimensions end. Where the result depends on the width, that is noted."""

from __future__ import annotations

from typing import Any

import torch

from metaprune.graph.call import Call, Labels, Survivors
from metaprune.graph.rules.elementwise import broadcast, pointwise
from metaprune.graph.rules.norm import masked_mean, masked_moments, survivors_mask
from metaprune.graph.rules.registry import rule


def _reduced(call: Call) -> tuple[list[int], bool]:
    """The reduced dimensions (all, if none are named) and whether they are kept with size one."""
    rank = len(call.shape(call["self"]))
    dim = call["dim"]
    dims = (
        list(range(rank)) if dim is None or dim == [] else [d % rank for d in ([dim] if isinstance(dim, int) else dim)]
    )
    return dims, bool(call["keepdim"])


def _outputs(call: Call, labels: Labels, dims: list[int], keep: bool) -> Labels:
    return [None if i in dims else label for i, label in enumerate(labels) if keep or i not in dims]


@rule("sum", "mean", "amax", "amin", "linalg_vector_norm", "norm", "count_nonzero")
def reduce(call: Call) -> Labels:
    labels = call.labels(call["self"])
    dims, keep = _reduced(call)
    order = next((call[name] for name in ("ord", "p") if isinstance(call[name], (int, float))), 2)
    if order < 0:  # the smallest entries decide, so a dropped zero is not neutral
        for d in dims:
            call.lock(labels[d], "norm of negative order")
    tracked = [labels[d] if d in dims else None for d in range(len(labels))]
    if any(call.norm(label) is not None for label in tracked):
        _reference(call, tracked, dims, keep)
    return _outputs(call, labels, dims, keep)


def _reference(call: Call, tracked: Labels, dims: list[int], keep: bool) -> None:
    """Dropped entries are zero on entry, which is what sums and norms need; means and extrema need more."""
    call.note(f"{call.name} over a tracked dimension depends on the width")
    name = call.name

    def masked(args: dict[str, Any], alive: Survivors) -> torch.Tensor:
        x = args["self"]
        mask = survivors_mask(alive, tracked, x)
        if name == "mean":
            out = masked_mean(x, mask, tuple(dims))
        else:
            worst = float("-inf") if name == "amax" else float("inf")
            out = getattr(torch, name)(torch.where(mask.expand(x.shape) > 0, x, worst), tuple(dims), keepdim=True)
        return out if keep else out.squeeze(tuple(dims))

    if name in ("mean", "amax", "amin"):
        call.fact.masked = masked


@rule("var", "std", "var_mean", "std_mean")
def spread(call: Call) -> Labels | list[Labels | None]:
    """Moments over the survivors, as the smaller network takes them."""
    labels = call.labels(call["self"])
    dims, keep = _reduced(call)
    tracked = [labels[d] if d in dims else None for d in range(len(labels))]
    correction = call["correction"] if "correction" in call.arguments else int(call["unbiased"])
    correction = 1 if correction is None else correction

    def masked(args: dict[str, Any], alive: Survivors) -> Any:
        x = args["self"]
        weight = survivors_mask(alive, tracked, x).expand(x.shape)
        mean, value = masked_moments(x, weight, tuple(dims))
        count = weight.sum(dims, keepdim=True)
        value = value * count / (count - correction)
        value = value.sqrt() if call.name.startswith("std") else value
        value, mean = (v if keep else v.squeeze(tuple(dims)) for v in (value, mean))
        return [value, mean] if call.name.endswith("_mean") else value

    if any(call.norm(label) is not None for label in tracked):
        call.note(f"{call.name} over a tracked dimension depends on the width")
        call.fact.masked = masked
    out = _outputs(call, labels, dims, keep)
    return [out, list(out)] if call.name.endswith("_mean") else out


@rule("prod", "logsumexp", "any", "all", "max", "min", "argmax", "argmin", "median", "nanmedian", "kthvalue", "mode")
def reduce_locked(call: Call) -> Labels | list[Labels | None]:
    """Order- or width-dependent reductions: the reduced dimensions cannot shrink, the others pass."""
    labels = call.labels(call["self"])
    if call["other"] is not None:  # max(a, b) is pointwise
        return pointwise(call)
    dims, keep = _reduced(call)
    if call.name in ("max", "min") and not _position_is_used(call):
        _extremum(call, labels, dims, keep)
    else:
        for d in dims:
            call.lock(labels[d], "reduced here")
    out = _outputs(call, labels, dims, keep)
    return [list(out) for _ in call.out] if isinstance(call.out, (list, tuple)) else out


def _position_is_used(call: Call) -> bool:
    """Whether anything reads where the extremum lies, which depends on what is dropped."""
    if not isinstance(call.out, (list, tuple)):
        return False
    return any(user.args[1] != 0 and user.users for user in call.node.users)


def _extremum(call: Call, labels: Labels, dims: list[int], keep: bool) -> None:
    """The largest or smallest value among the survivors, as the smaller network takes it."""
    tracked = [labels[d] if d in dims else None for d in range(len(labels))]
    if not any(call.norm(label) is not None for label in tracked):
        return
    call.note(f"{call.name} over a tracked dimension depends on the width")
    largest, both = call.name == "max", isinstance(call.out, (list, tuple))

    def masked(args: dict[str, Any], alive: Survivors) -> Any:
        x = args["self"]
        mask = survivors_mask(alive, tracked, x).expand(x.shape) > 0
        info = torch.finfo if x.is_floating_point() else torch.iinfo
        worst = info(x.dtype).min if largest else info(x.dtype).max
        x = torch.where(mask, x, worst)
        reduce = torch.max if largest else torch.min
        return list(reduce(x, dims[0], keepdim=keep)) if both else reduce(x)

    call.fact.masked = masked


def _together(call: Call) -> Labels:
    """Labels of the broadcast of x1 and x2."""
    operands = [(call.labels(x), call.shape(x)) for x in (call["x1"], call["x2"])]
    return broadcast(call, operands, tuple(torch.broadcast_shapes(*(shape for _, shape in operands))))


@rule("cosine_similarity")
def cosine_similarity(call: Call) -> Labels:
    """Sums of products over `dim`, to which a dropped zero adds nothing."""
    labels = _together(call)
    dim = call["dim"] % len(labels)
    return [*labels[:dim], *labels[dim + 1 :]]


@rule("pairwise_distance")
def pairwise_distance(call: Call) -> Labels:
    """Norm of x1 - x2 + eps over the last dimension; eps counts for survivors only."""
    labels = _together(call)
    last, keep = labels[-1], bool(call["keepdim"])

    def masked(args: dict[str, Any], alive: Survivors) -> torch.Tensor:
        difference = args["x1"] - args["x2"] + args["eps"]
        difference = difference * survivors_mask(alive, [last], difference)
        return torch.linalg.vector_norm(difference, args["p"], dim=-1, keepdim=args["keepdim"])

    if call.norm(last) is not None:
        call.fact.masked = masked
    return [*labels[:-1], None] if keep else labels[:-1]


@rule("cdist")
def cdist(call: Call) -> Labels:
    """x1 [..., P, M], x2 [..., R, M]: norms of differences over M, to which two dropped zeros add nothing.

    Distances within one tensor are left whole: rounding of those that are zero is beyond any proof.
    """
    x1, x2 = call["x1"], call["x2"]
    if x1 is x2:
        return call.opaque()
    labels, others = call.labels(x1), call.labels(x2)
    call.equate(labels[-1], others[-1])
    lead = [(labels[:-2], call.shape(x1)[:-2]), (others[:-2], call.shape(x2)[:-2])]
    return [*broadcast(call, lead, call.out_shape[:-2]), labels[-2], others[-2]]


@rule("softmin", "cumsum", "cumprod", "logcumsumexp", "sort", "argsort", "cummax", "cummin")
def along(call: Call) -> Labels | list[Labels | None]:
    """Lock the dimension: every entry depends on all entries along it (attention keys are not channels)."""
    labels = call.labels(call["self"])
    if labels:
        dim = call["dim"] % len(labels)
        call.lock(labels[dim], "normalised over this dimension")
        labels[dim] = None
    return [list(labels) for _ in call.out] if isinstance(call.out, (list, tuple)) else labels


@rule("normalize")
def normalize(call: Call) -> Labels:
    return call.labels(call["self"])
