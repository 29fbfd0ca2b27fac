"""Cutting and joining: sub-arrays and concatenations of labels; sizes and offsets are recomputed."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import fx

from metaprune.graph.call import Call, Gather, Labels, Survivors, written_in_place
from metaprune.graph.labels import Label, stack_labels
from metaprune.graph.rules.registry import rule
from metaprune.graph.rules.shape import permuted


@rule("cat", "concat", "concatenate")
def cat(call: Call) -> Labels:
    tensors = [t for t in call["tensors"] if call.shape(t) != (0,)]
    dim = call["dim"] % len(call.out_shape)
    all_labels = [call.labels(t) for t in tensors]
    out: Labels = []
    for d in range(len(call.out_shape)):
        if d == dim:
            out.append(stack_labels([(ls[d], call.shape(t)[d]) for ls, t in zip(all_labels, tensors, strict=True)]))
        else:
            out.append(_same(call, [ls[d] for ls in all_labels]))
    return out


@rule("stack")
def stack(call: Call) -> Labels:
    all_labels = [call.labels(t) for t in call["tensors"]]
    out = [_same(call, list(column)) for column in zip(*all_labels, strict=True)]
    dim = call["dim"] % len(call.out_shape)
    return [*out[:dim], None, *out[dim:]]


def _same(call: Call, labels: list[Label]) -> Label:
    for label in labels[1:]:
        call.equate(labels[0], label)
    return call.norm(labels[0])


@rule("split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_chunk", "tensor_split", "unsafe_split_with_sizes")
def split(call: Call) -> list[Labels | None]:
    x = call["self"] if call["self"] is not None else call["input"]
    labels, dim = call.labels(x), call["dim"] % len(call.labels(x))
    outputs: list[Labels | None] = []
    pieces: list[Label] = []
    start = 0
    for piece in call.out:
        n = call.concrete(piece)[dim]
        part = None if labels[dim] is None else labels[dim][start : start + n]
        outputs.append([*labels[:dim], part, *labels[dim + 1 :]])
        pieces.append(part)
        start += n
    if labels[dim] is not None:
        _split_by_sizes(call, x, dim, pieces)
    return outputs


def _split_by_sizes(call: Call, x: fx.Node, dim: int, pieces: list[Label]) -> None:
    def rewrite(alive: Survivors) -> tuple:
        sizes = [alive.count(p) for p in pieces if p is not None]
        return torch.ops.aten.split_with_sizes.default, (x, sizes, dim), {}

    call.fact.rewrite = rewrite


@rule("unbind")
def unbind(call: Call) -> list[Labels | None]:
    labels = call.labels(call["self"])
    dim = call["dim"] % len(labels)
    call.lock(labels[dim], "every index is used by itself")
    rest = [*labels[:dim], *labels[dim + 1 :]]
    return [list(rest) for _ in call.out]


@rule("select")
def select(call: Call) -> Labels:
    labels, shape = call.labels(call["self"]), call.shape(call["self"])
    dim = call["dim"] % len(labels)
    label = labels[dim]
    if label is not None:
        index = call.numbers(call["index"]) % shape[dim]
        call.lock(label[index : index + 1], "index used by itself")
        call.set("index", lambda alive: alive.before(label, index))
    return [*labels[:dim], *labels[dim + 1 :]]


@rule("slice", "narrow")
def slice_(call: Call) -> Labels:
    x = call["self"]
    labels, shape = call.labels(x), call.shape(x)
    dim = (call["dim"] or 0) % len(labels)
    label, n = labels[dim], shape[dim]
    if label is None:
        return labels
    if call.name == "narrow":
        start, step = call.numbers(call["start"]) % n, 1
        end = start + call.numbers(call["length"])
    else:
        start, end, step = slice(call.numbers(call["start"]), call.numbers(call["end"]), call["step"] or 1).indices(n)
    if (start, end, step) == (0, n, 1):
        return labels
    labels[dim] = label[start:end:step]
    if step != 1 and written_in_place(call.node):  # survivors are gathered into a copy, the write would be lost
        call.lock(label, "written through a strided view")
    elif step != 1:
        call.fact.gather = Gather(x, dim, label, np.arange(start, end, step))
    elif call.name == "narrow":
        part = label[start:end]
        call.set("start", lambda alive: alive.before(label, start))
        call.set("length", lambda alive: alive.count(part))
    else:
        call.set("start", lambda alive: alive.before(label, start))
        call.set("end", lambda alive: alive.before(label, end))
    return labels


@rule("index")
def index(call: Call) -> Labels:
    """x[..., i, ...] with tensors as indices: the indexed dimensions stay whole, the others pass.

    One tensor of chosen positions looks up rows of what it was chosen from.
    """
    labels = call.labels(call["self"])
    indices = list(call["indices"]) + [None] * (len(labels) - len(call["indices"]))
    used = [d for d, i in enumerate(indices) if i is not None]
    tensors = [indices[d] for d in used]
    if any(t.meta["val"].dtype in (torch.bool, torch.uint8) for t in tensors):
        return _masked_entries(call, labels, used, tensors)
    for t in tensors:
        for label in call.labels(t):
            call.lock(label, "used as an index")
    if len(tensors) == 1 and len(call.shape(tensors[0])) == 1 and (order := call.constant(tensors[0])) is not None:
        return permuted(call, call["self"], used[0], np.asarray(order) % call.shape(call["self"])[used[0]])
    if len(tensors) > 1 or not call.look_up(call["self"], used[0], tensors[0]):
        for d in used:
            call.lock(labels[d], "indexed by value")
    rank = max(len(call.shape(t)) for t in tensors)
    adjacent = used == list(range(used[0], used[-1] + 1))
    at = used[0] if adjacent else 0
    rest = [label for d, label in enumerate(labels) if d not in used]
    return [*rest[:at], *[None] * rank, *rest[at:]]


def _masked_entries(call: Call, labels: Labels, used: list[int], masks: list[fx.Node]) -> Labels:
    """x[mask]: the dimensions that the mask covers become one, which stays whole."""
    if len(masks) > 1:
        return call.opaque()
    covered = range(used[0], used[0] + len(call.shape(masks[0])))
    for label in (*(labels[d] for d in covered), *call.labels(masks[0])):
        call.lock(label, "chosen by a mask")
    return [*labels[: covered.start], None, *labels[covered.stop :]]


@rule("index_select")
def index_select(call: Call) -> Labels:
    x, positions = call["self"], call["index"]
    values = call.constant(positions)
    for label in call.labels(positions):
        call.lock(label, "used as an index")
    labels = call.labels(x)
    dim = call["dim"] % len(labels)
    if values is None:
        if not call.look_up(x, dim, positions):
            call.lock(labels[dim], "indexed by value")
        labels[dim] = None
        return labels
    return permuted(call, x, dim, values)


@rule("pad", "constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d")
def pad(call: Call) -> Labels:
    """Padding a tracked dimension with a constant is a concatenation with constant indices that can be dropped too."""
    x = call["self"]
    labels, shape = call.labels(x), call.shape(x)
    amounts = call.numbers(call["pad"] if call["pad"] is not None else call["padding"])
    constant = call.name == "constant_pad_nd" or (call.name == "pad" and call["mode"] == "constant")
    for i in range(len(amounts) // 2):
        d = len(shape) - 1 - i
        low, high = amounts[2 * i], amounts[2 * i + 1]
        if labels[d] is None or (low, high) == (0, 0):
            continue
        if constant and low >= 0 and high >= 0:
            before, after = (call.fresh(n) if n else None for n in (low, high))
            labels[d] = stack_labels([(before, low), (labels[d], shape[d]), (after, high)])
            argument = "pad" if call["pad"] is not None else "padding"
            for position, label in ((2 * i, before), (2 * i + 1, after)):
                if label is not None:
                    call.set(argument, functools.partial(Survivors.count, label=label), position)
        else:
            call.lock(labels[d], "padded with its own entries")
            labels[d] = None
    return labels


@rule("roll", "flip")
def reorder(call: Call) -> Labels:
    x = call["self"]
    labels, shape = call.labels(x), call.shape(x)
    dims = [d % len(labels) for d in (call["dims"] or [])]
    if not dims:  # roll of the flattened tensor
        return call.opaque()
    tracked = [d for d in dims if labels[d] is not None]
    if len(dims) > 1 or not tracked:
        for d in tracked:
            call.lock(labels[d], "reordered together with another dimension")
        return labels
    source = np.arange(shape[dims[0]])
    source = source[::-1].copy() if call.name == "flip" else np.roll(source, call.numbers(call["shifts"])[0])
    return permuted(call, x, dims[0], source)
