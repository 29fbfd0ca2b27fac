"""New tensors and embeddings. A constant fill is uniform, and noise is as good anywhere: fresh atoms, which tie."""

from __future__ import annotations

from metaprune.graph.call import Call, Labels
from metaprune.graph.rules.registry import rule


@rule("zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty", "rand", "randn", "randint")
def filled(call: Call) -> Labels:
    labels: Labels = []
    for i, size in enumerate(call.out_symbolic):
        if isinstance(size, int) and size > 1:
            labels.append(call.fresh(size))
            call.scale("size", labels[-1], i)
        else:
            labels.append(None)  # a batch dimension
    return labels


@rule("arange", "linspace", "eye", "scalar_tensor", "tensor", "tril_indices", "triu_indices")
def distinct(call: Call) -> Labels:
    """Entries differ by position: nothing can be dropped."""
    for tensor in call.tensors():
        for label in call.labels(tensor):
            call.lock(label, "positions matter")
    return [None] * len(call.out_shape)


@rule("tril", "triu", "tril_", "triu_")
def triangle(call: Call) -> Labels:
    labels = call.labels(call["self"])
    for label in labels[-2:]:
        call.lock(label, "positions matter")
    return [*labels[:-2], None, None]


@rule("embedding")
def embedding(call: Call) -> Labels:
    """weight [V, D], indices [...]: rows are looked up by value, so the vocabulary stays."""
    vocabulary, width = call.labels(call["weight"])
    if not call.look_up(call["weight"], 0, call["indices"]):
        call.lock(vocabulary, "rows are looked up by value")
    return [*call.labels(call["indices"]), width]


@rule("meshgrid")
def meshgrid(call: Call) -> list[Labels | None]:
    for tensor in call.tensors():
        for label in call.labels(tensor):
            call.lock(label, "positions matter")
    return [[None] * t.dim() for t in call.out]
