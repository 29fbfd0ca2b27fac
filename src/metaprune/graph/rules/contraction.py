"""Products that sum over a shared dimension: contracted dimensions unify, output dimensions inherit."""

from __future__ import annotations

from collections.abc import Iterator

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


@rule("matmul", "bmm", "mm", "mv", "dot", "vdot")
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


@rule("tensordot")
def tensordot(call: Call) -> Labels:
    a, b = call["self"], call["other"]
    labels, others = call.labels(a), call.labels(b)
    summed = [d % len(labels) for d in call["dims_self"]]
    summed_other = [d % len(others) for d in call["dims_other"]]
    for i, j in zip(summed, summed_other, strict=True):
        call.equate(labels[i], others[j])
        call.consume("self", i)
    out = [label for d, label in enumerate(labels) if d not in summed]
    out += [label for d, label in enumerate(others) if d not in summed_other]
    inner = [Dim(labels[d], call.symbolic(a)[d]) for d in summed]
    call.macs(*dims_of(out, call.out_symbolic), *inner)
    return out


@rule("bilinear")
def bilinear(call: Call) -> Labels:
    """input1 [.., I], input2 [.., J], weight [O, I, J]: both inputs are contracted."""
    out, first, second = call.labels(call["weight"])
    one, two = call.labels(call["input1"]), call.labels(call["input2"])
    call.equate(one[-1], first)
    call.equate(two[-1], second)
    for a, b in zip(one[:-1], two[:-1], strict=True):
        call.equate(a, b)
    if call["bias"] is not None:
        call.equate(call.labels(call["bias"])[0], out)
    call.consume("weight", 1)
    call.consume("weight", 2)
    return [*one[:-1], out]


@rule("einsum")
def einsum(call: Call) -> Labels:
    """Equate the dimensions of each letter; what is contracted two operands at a time costs MACs.

    torch sums a letter of one operand alone before it multiplies, and only multiplies where no letter is contracted.
    """
    tensors = call["tensors"]
    shapes = [call.shape(t) for t in tensors]
    parsed = _parsed(call["equation"], [len(shape) for shape in shapes])
    if parsed is None:
        return call.opaque()
    terms, right = parsed
    known: dict[str, Dim] = {}
    for term, tensor in zip(terms, tensors, strict=True):
        for letter, label, size in zip(term, call.labels(tensor), call.symbolic(tensor), strict=True):
            if letter not in known:
                known[letter] = Dim(label, size)
            elif call.numbers(size) == call.numbers(known[letter].size):
                call.equate(known[letter].label, label)
            else:  # a dimension of size one that is broadcast
                return call.opaque()
    for letter in set("".join(terms)) - set(right):
        if len(terms) == 1:
            call.lock(known[letter].label, "summed")
        first = next(i for i, term in enumerate(terms) if letter in term)
        call.consume("tensors", terms[first].index(letter), first)
    for letters in _products(terms, right, call["path"]):
        call.macs(*(known[letter] for letter in letters))
    return [known[letter].label for letter in right]


def _parsed(equation: str, ranks: list[int]) -> tuple[list[str], str] | None:
    """Letters of every operand and of the result, with letters of their own for an ellipsis; None for other forms."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow or len(terms) != len(ranks):
        return None
    spare = [c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if c not in equation]
    lengths = [rank - len(t.replace("...", "")) for t, rank in zip(terms, ranks, strict=True)]
    longest = max([n for t, n in zip(terms, lengths, strict=True) if "..." in t], default=0)
    if longest > len(spare) or any(n for t, n in zip(terms, lengths, strict=True) if "..." not in t):
        return None
    stands = "".join(spare[:longest])
    terms = [t.replace("...", stands[longest - n :]) for t, n in zip(terms, lengths, strict=True)]
    if any(len(set(t)) != len(t) for t in terms):  # a diagonal
        return None
    return terms, right.replace("...", stands)


def _products(terms: list[str], right: str, path: list[int] | None) -> Iterator[str]:
    """Letters whose sizes multiply, for every product of two operands that contracts something."""
    waiting = list(terms)
    steps = list(zip(path[::2], path[1::2], strict=True)) if path else [(0, 1)] * (len(terms) - 1)
    for i, j in steps:
        a, b = waiting[i], waiting[j]
        waiting = [t for k, t in enumerate(waiting) if k not in (i, j)]
        needed = set(right).union(*waiting)
        alone = (set(a) ^ set(b)) - needed
        if (set(a) & set(b)) - needed:
            yield "".join(letter for letter in dict.fromkeys(a + b) if letter not in alone)
        result = "".join(letter for letter in dict.fromkeys(a + b) if letter in needed)
        waiting = [*waiting, result] if path else [result, *waiting]
