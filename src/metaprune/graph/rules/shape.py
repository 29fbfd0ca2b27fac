"""Views: labels move along; merging unites sets, splitting makes row and column atoms."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch import fx

from metaprune.graph.call import Call, Gather, Labels
from metaprune.graph.labels import merge_labels
from metaprune.graph.rules.registry import rule


def segments(before: list[int], after: list[int]) -> list[tuple[list[int], list[int]]]:
    """Smallest runs of dimensions of equal product in two shapes of one total, size-1 dimensions left out.

    >>> segments([2, 6, 5], [2, 2, 3, 5])
    [([0], [0]), ([1], [1, 2]), ([2], [3])]
    """
    left = [i for i, n in enumerate(before) if n != 1]
    right = [j for j, n in enumerate(after) if n != 1]
    runs = []
    while left and right:
        ins, outs = [left.pop(0)], [right.pop(0)]
        a, b = before[ins[0]], after[outs[0]]
        while a != b:
            if a < b:
                ins.append(left.pop(0))
                a *= before[ins[-1]]
            else:
                outs.append(right.pop(0))
                b *= after[outs[-1]]
        runs.append((ins, outs))
    return runs


def reshaped(call: Call, labels: Labels, before: tuple, after: tuple) -> Labels:
    """Labels after a row-major view of shape `before` as `after`."""
    if tuple(before) == tuple(after):
        return labels
    for label, n in zip(labels, before, strict=True):
        if n == 1:
            call.lock(label, "size-1 dimension swallowed by a view")
    out: Labels = [None] * len(after)
    for ins, outs in segments(list(before), list(after)):
        flat = merge_labels([(labels[i], before[i]) for i in ins])
        parts = [flat] if len(outs) == 1 else call.split(flat, [after[j] for j in outs])
        for j, label in zip(outs, parts, strict=True):
            out[j] = label
    return out


@rule("view", "reshape", "_unsafe_view", "_reshape_alias")
def view(call: Call) -> Labels:
    x = call["self"]
    argument = "size" if "size" in call.arguments else "shape"
    if not isinstance(call[argument], (list, tuple)):  # view(dtype)
        return call.opaque()
    out = reshaped(call, call.labels(x), call.shape(x), call.out_shape)
    for j, label in enumerate(out):
        call.scale(argument, label, j)
    return out


@rule("flatten")
def flatten(call: Call) -> Labels:
    x = call["self"]
    return reshaped(call, call.labels(x), call.shape(x), call.out_shape)


@rule("unflatten")
def unflatten(call: Call) -> Labels:
    x = call["self"]
    out = reshaped(call, call.labels(x), call.shape(x), call.out_shape)
    dim = call["dim"] % len(call.shape(x))
    for i in range(len(call["sizes"])):
        call.scale("sizes", out[dim + i], i)
    return out


@rule("reshape_as", "view_as")
def reshape_as(call: Call) -> Labels:
    x, other = call["self"], call["other"]
    out = reshaped(call, call.labels(x), call.shape(x), call.out_shape)
    for a, b in zip(out, call.labels(other), strict=True):
        call.equate(a, b)
    return out


@rule(
    "permute",
    "transpose",
    "swapaxes",
    "swapdims",
    "t",
    "t_",
    "transpose_",
    "movedim",
    "moveaxis",
    "numpy_T",
    "mT",
    "adjoint",
)
def permute(call: Call) -> Labels:
    """Labels follow the dimensions: found by running the operator on a tensor of distinct sizes."""
    x = call["self"]
    sizes = list(range(2, 2 + len(call.shape(x))))
    probe = torch.empty(sizes, device="meta")
    arguments = fx.map_arg((call.node.args[1:], call.node.kwargs), lambda n: call.numbers(n))
    operator: Any = call.node.target
    moved = operator(probe, *arguments[0], **arguments[1])
    labels = call.labels(x)
    return [labels[size - 2] for size in moved.shape]


@rule("squeeze", "squeeze_", "unsqueeze", "unsqueeze_")
def squeeze(call: Call) -> Labels:
    """Drop or add dimensions of size 1; a dropped one is locked, as it must not vanish."""
    labels, shape = call.labels(call["self"]), call.shape(call["self"])
    rank = len(shape)
    if call.name.startswith("unsqueeze"):
        dim = call["dim"] % (rank + 1)
        return [*labels[:dim], None, *labels[dim:]]
    dims = range(rank) if call["dim"] is None else [call["dim"]] if isinstance(call["dim"], int) else call["dim"]
    gone = {d % rank for d in dims if shape[d % rank] == 1}
    for d in gone:
        call.lock(labels[d], "squeezed")
    return [label for d, label in enumerate(labels) if d not in gone]


@rule("expand", "expand_as", "broadcast_to")
def expand(call: Call) -> Labels:
    """Give an expanded dimension fresh atoms: it is uniform, and ties to whatever it is combined with."""
    x = call["self"]
    labels, shape = call.labels(x), call.shape(x)
    out: Labels = []
    offset = len(call.out_shape) - len(shape)
    for j, size in enumerate(call.out_symbolic):
        i = j - offset
        if i >= 0 and shape[i] == call.out_shape[j]:
            out.append(labels[i])
        else:
            if i >= 0:
                call.lock(labels[i], "size-1 dimension expanded")
            out.append(call.fresh(size) if isinstance(size, int) and size > 1 else None)
        if call["size"] is not None:
            call.scale("size", out[-1], j)
    if call["other"] is not None:
        for a, b in zip(out, call.labels(call["other"]), strict=True):
            call.equate(a, b)
    return out


@rule("repeat", "tile")
def repeat(call: Call) -> Labels:
    x = call["self"]
    times = call.numbers(call["repeats"] if call["repeats"] is not None else call["dims"])
    shape, labels = list(call.shape(x)), call.labels(x)
    lead = max(len(times) - len(shape), 0)
    times = [1] * (len(shape) - len(times)) + list(times)
    shape, labels = [1] * lead + shape, [None] * lead + labels
    return [
        label if r == 1 else merge_labels([(None, r), (label, n)])
        for r, n, label in zip(times, shape, labels, strict=True)
    ]


@rule("repeat_interleave")
def repeat_interleave(call: Call) -> Labels:
    times, dim = call["repeats"], call["dim"]
    if not isinstance(times, int) or dim is None:
        return call.opaque()
    labels, shape = call.labels(call["self"]), call.shape(call["self"])
    dim %= len(labels)
    labels[dim] = merge_labels([(labels[dim], shape[dim]), (None, times)])
    if call["output_size"] is not None:
        call.scale("output_size", labels[dim])
    return labels


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(call: Call) -> Labels:
    x = call["self"]
    channels = call.shape(x)[1]
    return permuted(call, x, 1, np.arange(channels).reshape(call["groups"], -1).T.reshape(-1))


def permuted(call: Call, x: fx.Node, dim: int, source: np.ndarray) -> Labels:
    """Rows of one dimension taken in a constant order: survivors are gathered by rank."""
    labels = call.labels(x)
    label = labels[dim]
    if label is not None:
        call.fact.gather = Gather(x, dim, label, source)
        labels[dim] = label[source]
    return labels


@rule("sym_size", "sym_numel")
def sym_size(call: Call) -> None:
    """Consumers rescale, so the size before cutting is reported."""
    if call.name == "sym_size":
        call.fact.rescale_output = call.labels(call["self"])[call["dim"]]
    else:
        for label in call.labels(call["self"]):
            call.lock(label, "number of elements read")


@rule("permute_channels")
def permute_channels(call: Call) -> Labels:
    """Permute one label; the channel-shuffle pass puts this in place of view, transpose, view."""
    x, dim, order = cast("tuple[fx.Node, int, tuple[int, ...]]", call.node.args)
    return permuted(call, x, dim, np.asarray(order))
