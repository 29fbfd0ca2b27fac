"""Products that sum over a shared dimension: contracted dimensions unify, output dimensions inherit."""

from __future__ import annotations

from metaprune.graph.call import Call, Dim, Labels
from metaprune.graph.rules.elementwise import broadcast
from metaprune.graph.rules.registry import rule


def dims_of(labels: Labels, sizes: tuple) -> list[Dim]:
    return [Dim(label, size) for label, size in zip(labels, sizes, strict=True)]


@rule("linear")
def linear(call: Call) -> Labels:
    """input [..., I], weight [O, I] (or [I])."""
    x, weight = call["input"], call["weight"]
    labels, w_labels = call.labels(x), call.labels(weight)
    call.equate(labels[-1], w_labels[-1])
    out = [*labels[:-1], *w_labels[:-1]]
    if call["bias"] is not None and call.shape(call["bias"]) == call.shape(weight)[:-1]:
        for a, b in zip(call.labels(call["bias"]), w_labels[:-1], strict=True):
            call.equate(a, b)
    elif call["bias"] is not None:
        out = broadcast(
            call, [(out, call.out_shape), (call.labels(call["bias"]), call.shape(call["bias"]))], call.out_shape
        )
    call.macs(*dims_of(out, call.out_symbolic), Dim(w_labels[-1], call.shape(weight)[-1]))
    call.consume("weight", -1)
    return out


def product(call: Call, a_labels: Labels, a_shape: tuple, b_labels: Labels, b_shape: tuple) -> Labels:
    """[..., M, K] @ [..., K, N], with broadcasting batch dimensions; vectors as torch.matmul takes them."""
    if len(b_shape) == 1:
        call.equate(a_labels[-1], b_labels[0])
        out = a_labels[:-1]
    elif len(a_shape) == 1:
        call.equate(a_labels[0], b_labels[-2])
        out = [*b_labels[:-2], b_labels[-1]]
    else:
        call.equate(a_labels[-1], b_labels[-2])
        lead_shape = call.out_shape[:-2]
        lead = broadcast(call, [(a_labels[:-2], a_shape[:-2]), (b_labels[:-2], b_shape[:-2])], lead_shape)
        out = [*lead, a_labels[-2], b_labels[-1]]
    return out


@rule("matmul", "bmm", "mm", "mv", "dot")
def matmul(call: Call) -> Labels:
    names = list(call.arguments)
    a, b = call[names[0]], call[names[1]]
    call.consume(names[0], -1)
    out = product(call, call.labels(a), call.shape(a), call.labels(b), call.shape(b))
    if min(len(call.shape(a)), len(call.shape(b))) > 1:  # PyTorch's counter leaves out products with a vector, so do we
        call.macs(*dims_of(out, call.out_symbolic), Dim(call.labels(a)[-1], call.symbolic(a)[-1]))
    return out


@rule("addmm", "baddbmm", "addbmm")
def addmm(call: Call) -> Labels:
    names = list(call.arguments)
    a, b = call[names[1]], call[names[2]]
    call.consume(names[1], -1)
    out = product(call, call.labels(a), call.shape(a), call.labels(b), call.shape(b))
    call.macs(*dims_of(out, call.out_symbolic), Dim(call.labels(a)[-1], call.symbolic(a)[-1]))
    bias = call[names[0]]
    return broadcast(call, [(out, call.out_shape), (call.labels(bias), call.shape(bias))], call.out_shape)


@rule("einsum")
def einsum(call: Call) -> Labels:
    """Equate the dimensions of each letter; MACs of a two-operand einsum are the product over its letters.

    torch sums a letter of one operand alone before it multiplies, and only multiplies where no letter is contracted.
    """
    equation = call["equation"].replace(" ", "")
    tensors = call["tensors"]
    left, _, right = equation.partition("->")
    terms = left.split(",")
    if "." in equation or not right or len(terms) != len(tensors):
        return call.opaque()
    known: dict[str, Dim] = {}
    for term, tensor in zip(terms, tensors, strict=True):
        for letter, label, size in zip(term, call.labels(tensor), call.symbolic(tensor), strict=True):
            if letter in known:
                call.equate(known[letter].label, label)
            else:
                known[letter] = Dim(label, size)
    for letter in set(left) - set(right) - {","}:
        if len(terms) == 1:
            call.lock(known[letter].label, "summed")
        first = next(i for i, term in enumerate(terms) if letter in term)
        call.consume("tensors", terms[first].index(letter), first)
    if len(terms) == 2 and (set(terms[0]) & set(terms[1])) - set(right):
        alone = (set(terms[0]) ^ set(terms[1])) - set(right)
        call.macs(*(dim for letter, dim in known.items() if letter not in alone))
    elif len(terms) > 2:
        call.lock_all()
    return [known[letter].label for letter in right]
