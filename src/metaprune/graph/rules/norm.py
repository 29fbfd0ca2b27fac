"""Normalisation. Parameters unify with the channel dimension; statistics over channels depend on the width.

The reference semantics of such a statistic is taken over the surviving channels only (masked statistics), which
is what the smaller network computes.
"""

from __future__ import annotations

from typing import Any

import torch

from metaprune.graph.call import Call, Labels, Survivors
from metaprune.graph.labels import Label, merge_labels
from metaprune.graph.rules.registry import rule


def survivors_mask(alive: Survivors, labels: Labels, like: torch.Tensor) -> torch.Tensor:
    """Build a 0/1 mask broadcastable to `like` whose last dimensions have `labels`; [1] if nothing is dropped."""
    mask = torch.ones(1, dtype=like.dtype, device=like.device)
    for back, label in enumerate(reversed(labels)):
        if label is not None and alive.cut(label):
            rows = torch.as_tensor(alive.rows(label), device=like.device).to(like.dtype)
            mask = mask * rows.reshape(-1, *[1] * back)
    return mask


def masked_mean(x: torch.Tensor, mask: torch.Tensor, dims: tuple[int, ...]) -> torch.Tensor:
    weight = mask.expand(x.shape)
    return (x * weight).sum(dims, keepdim=True) / weight.sum(dims, keepdim=True)


def masked_moments(x: torch.Tensor, mask: torch.Tensor, dims: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    mean = masked_mean(x, mask, dims)
    return mean, masked_mean((x - mean).square(), mask, dims)


def _affine(call: Call, label: Label, *names: str) -> None:
    for name in names:
        if call[name] is not None:
            call.equate(call.labels(call[name])[0], label)


@rule("batch_norm", "instance_norm", "_native_batch_norm_legit_no_training", "native_batch_norm", "cudnn_batch_norm")
def batch_norm(call: Call) -> Labels | list[Labels | None]:
    labels = call.labels(call["input"])
    _affine(call, labels[1], "weight", "bias", "running_mean", "running_var")
    others = [None if i == 1 else label for i, label in enumerate(labels)]
    if call["running_mean"] is None and any(call.norm(label) is not None for label in others):
        if call.name != "batch_norm":
            for label in others:
                call.lock(label, "statistics over this dimension")
        else:
            _standardise(call, others)
    return labels


def _standardise(call: Call, others: Labels) -> None:
    """Batch statistics over tracked dimensions: the standardised weights of norm-free networks."""
    call.note("statistics over channels depend on the width")

    def masked(args: dict[str, Any], alive: Survivors) -> torch.Tensor:
        x = args["input"]
        dims = tuple(i for i in range(x.dim()) if i != 1)
        mean, var = masked_moments(x, survivors_mask(alive, others, x), dims)
        return _per_channel((x - mean) / torch.sqrt(var + args["eps"]), args)

    call.fact.masked = masked


def _per_channel(y: torch.Tensor, args: dict[str, Any]) -> torch.Tensor:
    """`y` [N, C, ...] times weight [C] plus bias [C], where they are given."""
    shape = (1, -1, *[1] * (y.dim() - 2))
    y = y * args["weight"].reshape(shape) if args["weight"] is not None else y
    return y + args["bias"].reshape(shape) if args["bias"] is not None else y


@rule("_weight_norm")
def weight_norm(call: Call) -> Labels:
    """g * v / norm of v over all dimensions but `dim`: a dropped entry of v is zero, which a norm leaves out."""
    v, g = call["v"], call["g"]
    labels, dim = call.labels(v), call["dim"]
    if call.shape(g) != tuple(n if i == dim else 1 for i, n in enumerate(call.shape(v))):
        return call.opaque()
    for i, label in enumerate(call.labels(g)):
        if i == dim:
            call.equate(label, labels[i])
        else:
            call.lock(label, "size-1 dimension broadcast")
    call.note("the norm of a weight depends on the width")
    return labels


@rule("layer_norm", "rms_norm")
def layer_norm(call: Call) -> Labels:
    x = call["input"]
    labels = call.labels(x)
    n = len(call["normalized_shape"])
    for name in ("weight", "bias"):
        if call[name] is not None:
            for a, b in zip(call.labels(call[name]), labels[-n:], strict=True):
                call.equate(a, b)
    for i, label in enumerate(labels[-n:]):
        call.scale("normalized_shape", label, i)
    call.note("statistics over channels depend on the width")
    dims = tuple(range(-n, 0))
    centred = call.name == "layer_norm"

    def masked(args: dict[str, Any], alive: Survivors) -> torch.Tensor:
        x = args["input"]
        mask = survivors_mask(alive, labels[-n:], x)
        eps = torch.finfo(x.dtype).eps if args["eps"] is None else args["eps"]  # rms_norm's default follows the dtype
        mean, var = masked_moments(x, mask, dims) if centred else (0.0, masked_mean(x.square(), mask, dims))
        y = (x - mean) / torch.sqrt(var + eps)
        y = y * args["weight"] if args["weight"] is not None else y
        return y + args["bias"] if args.get("bias") is not None else y

    call.fact.masked = masked
    return labels


@rule("group_norm")
def group_norm(call: Call) -> Labels:
    """Label channels (g, i) as {R_g, K_i}: whole groups go, or the same offset in every group."""
    labels = call.labels(call["input"])
    groups = call["num_groups"]
    channels = call.shape(call["input"])[1]
    rows = call.fresh(groups) if groups > 1 else None
    offsets = call.fresh(channels // groups) if channels > groups else None
    call.equate(labels[1], merge_labels([(rows, groups), (offsets, channels // groups)]))
    _affine(call, labels[1], "weight", "bias")
    for label in labels[2:]:
        call.lock(label, "statistics over this dimension")
    call.scale("num_groups", rows)
    call.note("statistics over channels depend on the width")

    def masked(args: dict[str, Any], alive: Survivors) -> torch.Tensor:
        x = args["input"]
        grouped = x.reshape(x.shape[0], groups, channels // groups, -1)
        mask = survivors_mask(alive, [labels[1]], x).expand(channels) if labels[1] is not None else x.new_ones(channels)
        mean, var = _group_moments(grouped, mask.reshape(groups, -1, 1))
        return _per_channel(((grouped - mean) / torch.sqrt(var + args["eps"])).reshape(x.shape), args)

    call.fact.masked = masked
    return labels


def _group_moments(x: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Moments over (channel, space) of [N, G, C/G, S]; a group without survivors gets zeros, it is masked anyway."""
    weight = mask.expand(x.shape)
    count = weight.sum((2, 3), keepdim=True).clamp(min=1)
    mean = (x * weight).sum((2, 3), keepdim=True) / count
    return mean, ((x - mean).square() * weight).sum((2, 3), keepdim=True) / count
