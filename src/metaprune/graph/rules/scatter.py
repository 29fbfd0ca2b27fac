"""Reading and writing by an index tensor along one dimension: the others pass.

That one stays whole, unless the index holds positions along it that were chosen (see `positions`).
"""

from __future__ import annotations

from metaprune.graph.call import Call, Labels
from metaprune.graph.labels import Label
from metaprune.graph.rules.registry import rule


def _along(call: Call, dim: int, first: Labels, first_shape: tuple, other: Labels, other_shape: tuple) -> None:
    """Tie two tensors of one rank in all dimensions but `dim`, which is locked in both."""
    for d, (a, b) in enumerate(zip(first, other, strict=True)):
        if d != dim and first_shape[d] == other_shape[d]:
            call.equate(a, b)
            continue
        for label in (a, b):
            call.lock(label, "indexed by value")


@rule("gather")
def gather(call: Call) -> Labels:
    """out[.., j, .., c] = x[.., index[.., j, .., c], .., c]."""
    x, index = call["self"], call["index"]
    labels, dim = call.labels(x), call["dim"] % len(call.shape(x))
    if call.look_up(x, dim, index):
        labels[dim] = None
        call.consume("self", dim)
    _along(call, dim, labels, call.shape(x), call.labels(index), call.shape(index))
    return [None if d == dim else call.norm(label) for d, label in enumerate(call.labels(index))]


@rule("take_along_dim")
def take_along_dim(call: Call) -> Labels:
    """As gather, with broadcasting between the tensor and the index."""
    x, index = call["self"], call["indices"]
    labels, shape, index_labels, index_shape = call.labels(x), call.shape(x), call.labels(index), call.shape(index)
    if call["dim"] is None:
        return call.opaque()
    dim = call["dim"] % len(shape)
    out: Labels = []
    for d, (a, b) in enumerate(zip(labels, index_labels, strict=True)):
        if d != dim and shape[d] == index_shape[d]:
            call.equate(a, b)
        elif d != dim and index_shape[d] == 1:
            call.lock(b, "size-1 dimension broadcast")
        else:
            call.lock(a, "indexed by value")
            call.lock(b, "indexed by value")
        out.append(None if d == dim or shape[d] == 1 else call.norm(a))
    return out


@rule("scatter", "scatter_", "scatter_add", "scatter_add_", "scatter_reduce", "scatter_reduce_")
def scatter(call: Call) -> Labels:
    """self[.., index[.., j, .., c], .., c] takes src[.., j, .., c] (or a number)."""
    x, index, source = call["self"], call["index"], call["src"]
    labels, dim = call.labels(x), call["dim"] % len(call.shape(x))
    written = labels[dim] if call.look_up(x, dim, index) else None
    if written is not None:
        labels[dim] = None
    _along(call, dim, labels, call.shape(x), call.labels(index), call.shape(index))
    if call.is_tensor(source):
        _along(call, dim, labels, call.shape(x), call.labels(source), call.shape(source))
    return [call.norm(written if d == dim else label) for d, label in enumerate(labels)]


@rule("index_add", "index_add_", "index_copy", "index_copy_", "index_reduce", "index_reduce_")
def index_write(call: Call) -> Labels:
    """self[.., index[j], ..] takes source[.., j, ..]."""
    x, source = call["self"], call["source"]
    labels, dim = call.labels(x), call["dim"] % len(call.shape(x))
    for label in call.labels(call["index"]):
        call.lock(label, "used as an index")
    if len(call.shape(source)) != len(call.shape(x)):
        return call.opaque()
    _along(call, dim, labels, call.shape(x), call.labels(source), call.shape(source))
    return [None if d == dim else call.norm(label) for d, label in enumerate(labels)]


@rule("index_fill", "index_fill_")
def index_fill(call: Call) -> Labels:
    labels = call.labels(call["self"])
    dim = call["dim"] % len(labels)
    for label in (labels[dim], *call.labels(call["index"])):
        call.lock(label, "indexed by value")
    return [None if d == dim else label for d, label in enumerate(labels)]


@rule("index_put", "index_put_")
def index_put(call: Call) -> Labels:
    """x[i, :] = values, with index tensors of one dimension first; all else is locked."""
    x, values, indices = call["self"], call["values"], call["indices"]
    labels, shape = call.labels(x), call.shape(x)
    used = [d for d, index in enumerate(indices) if index is not None]
    tensors = [indices[d] for d in used]
    rest = labels[len(used) :]
    plain = used == list(range(len(used))) and all(len(call.shape(t)) == 1 for t in tensors)
    if not plain or call.shape(values)[-len(rest) or len(labels) :] != shape[len(used) :]:
        return call.opaque()
    for label in [*labels[: len(used)], *(label for t in tensors for label in call.labels(t))]:
        call.lock(label, "indexed by value")
    written: Labels = call.labels(values)
    lead: list[Label] = written[: len(written) - len(rest)]
    for label in lead:
        call.lock(label, "written by an index")
    for a, b in zip(rest, written[len(lead) :], strict=True):
        call.equate(a, b)
    return [*[None] * len(used), *map(call.norm, rest)]
