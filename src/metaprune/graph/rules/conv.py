"""Convolutions. Grouped: index (g, i) = {R_g, K_i}, so whole groups go, or the same offset in every group."""

from __future__ import annotations

from metaprune.graph.call import Call, Dim, Labels
from metaprune.graph.labels import Label, merge_labels
from metaprune.graph.rules.registry import rule


@rule("conv1d", "conv2d", "conv3d", "convolution")
def conv(call: Call) -> Labels:
    """weight [O, I/G, *kernel], input [N, I, *space] or [I, *space]."""
    if call["transposed"]:
        return _transposed(call)
    x, weight = call["input"], call["weight"]
    labels, w_labels, w_shape = call.labels(x), call.labels(weight), call.shape(weight)
    channel = len(labels) - len(w_shape[2:]) - 1
    out_label = _couple(call, labels[channel], w_labels[0], w_labels[1], w_shape[0], w_shape[1])
    _bias(call, out_label)
    space = _space(call, labels[channel + 1 :], w_labels[2:])
    out = [*labels[:channel], out_label, *space]
    call.consume("weight", 1)
    _count(call, out, [(w_labels[1], w_shape[1]), *[(None, k) for k in w_shape[2:]]])
    return out


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def conv_transpose(call: Call) -> Labels:
    return _transposed(call)


def _transposed(call: Call) -> Labels:
    """weight [I, O/G, *kernel]: as a convolution with the two sides exchanged."""
    x, weight = call["input"], call["weight"]
    labels, w_labels, w_shape = call.labels(x), call.labels(weight), call.shape(weight)
    channel = len(labels) - len(w_shape[2:]) - 1
    groups, in_per_group = call["groups"], w_shape[0] // call["groups"]
    if groups == 1:
        call.equate(labels[channel], w_labels[0])
        out_label = w_labels[1]
    else:
        rows, inner = call.fresh(groups), call.fresh(in_per_group)
        both = merge_labels([(rows, groups), (inner, in_per_group)])
        call.equate(labels[channel], both)
        call.equate(w_labels[0], both)
        out_label = merge_labels([(rows, groups), (w_labels[1], w_shape[1])])
        call.set("groups", lambda alive: alive.count(rows))
    _bias(call, out_label)
    call.consume("weight", 0)
    _keep_space(call, labels[channel + 1 :], w_labels[2:])
    # every input pixel meets every kernel entry once: MACs = input pixels x O/G x kernel
    space = call.symbolic(x)[channel + 1 :]
    leading = [Dim(labels[i], s) for i, s in enumerate(call.symbolic(x)[: channel + 1])]
    kernel = [Dim(None, k) for k in w_shape[2:]]
    call.macs(*leading, *[Dim(None, s) for s in space], Dim(w_labels[1], w_shape[1]), *kernel)
    return [*labels[:channel], out_label, *[None] * len(w_shape[2:])]


def _couple(call: Call, x: Label, w_out: Label, w_in: Label, out: int, in_per_group: int) -> Label:
    """Equate input channels with weight [O, I/G] and return the label of the output channels."""
    groups = call.numbers(call["groups"])
    if groups == 1:
        call.equate(x, w_in)
        return w_out
    rows = call.fresh(groups)
    call.equate(x, merge_labels([(rows, groups), (w_in if in_per_group > 1 else None, in_per_group)]))
    if in_per_group == 1:
        call.lock(w_in, "depthwise")
    per_group = out // groups
    offsets = call.fresh(per_group) if per_group > 1 else None
    call.equate(w_out, merge_labels([(rows, groups), (offsets, per_group)]))
    if isinstance(call["groups"], int):  # else it is the batch: every sample has a kernel of its own
        call.set("groups", lambda alive: alive.count(rows))
    return w_out


def _bias(call: Call, out_label: Label) -> None:
    if call["bias"] is not None:
        call.equate(call.labels(call["bias"])[0], out_label)


def _space(call: Call, space: Labels, kernel: Labels) -> Labels:
    """A kernel of one entry without stride or padding treats every position alike; any other mixes them."""
    alike = set(call.shape(call["weight"])[2:]) == {1} and set(call["stride"]) == {1} and set(call["padding"]) == {0}
    _keep_space(call, [] if alike else space, kernel)
    return space if alike else [None] * len(space)


def _keep_space(call: Call, space: Labels, kernel: Labels) -> None:
    for label in (*space, *kernel):
        call.lock(label, "spatial dimension of a convolution")


def _count(call: Call, out: Labels, reduced: list[tuple[Label, int]]) -> None:
    dims = [Dim(label, size) for label, size in zip(out, call.out_symbolic, strict=True)]
    call.macs(*dims, *[Dim(label, size) for label, size in reduced])
