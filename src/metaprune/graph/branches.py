"""Residual branches that can be dropped whole, read off the labelled graph: no module class is looked at.

A branch is what one addition adds. All that is computed for it alone are the nodes that it post-dominates; its groups
are those that occur nowhere else. It can be dropped where, with no channel left in them, it depends on no input:
products over nothing are zero, their biases are left, and what follows them is a number per channel.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx

from metaprune.graph.call import alias_kind, bound_arguments, written_in_place
from metaprune.graph.captured import Captured, module_of, op_name
from metaprune.graph.labelling import Labelled
from metaprune.graph.shapes import BatchedSize, TensorValue
from metaprune.values import Branch, Space

# products that are zero where a dimension of their operands is empty, and the argument that they add
_CONVOLUTIONS = dict.fromkeys((f"conv{kind}{n}d" for kind in ("", "_transpose") for n in (1, 2, 3)), "bias")
BIAS_OF = {"linear": "bias", "convolution": "bias", **_CONVOLUTIONS, "addmm": "self", "baddbmm": "self"}
BIAS_OF |= dict.fromkeys(("matmul", "bmm", "mm", "einsum"), "")


@dataclass(frozen=True)
class Candidate:
    """A branch before it is known what is left of it.

    rest: nodes that compute it once it is empty, in order: products over nothing, and what follows them.
    products: those of `rest` that are over nothing.
    """

    branch: Branch
    rest: tuple[fx.Node, ...]
    products: frozenset[fx.Node]


def branch_candidates(captured: Captured, labelled: Labelled, space: Space) -> Iterator[Candidate]:
    """Additions of which one operand no longer depends on any input once its own groups are empty."""
    finder = _Finder(captured, labelled, space)
    for node in captured.graph.nodes:
        if node.op != "call_function" or op_name(node.target) not in ("add", "add_"):
            continue
        operands = [n for n in node.args[:2] if isinstance(n, fx.Node) and _is_tensor(n)]
        if len(set(operands)) < 2 or bound_arguments(node).get("alpha") != 1:
            continue
        for addend, stream in (operands, operands[::-1]):
            if addend.op == "call_function" and (found := finder.candidate(node, addend, stream)) is not None:
                yield found


def rest_of(captured: Captured, labelled: Labelled, space: Space, branch: Branch) -> Candidate:
    """Find again what is left of a branch of `space`."""
    nodes = {n.name: n for n in captured.graph.nodes}
    atoms = np.concatenate([space[g].atoms for g in branch.groups])
    found = _rest(nodes[branch.addend], captured, labelled, atoms)
    assert found is not None
    return Candidate(branch, *found)


class _Finder:
    def __init__(self, captured: Captured, labelled: Labelled, space: Space):
        self.captured, self.labelled, self.space = captured, labelled, space
        self.nodes = list(captured.graph.nodes)
        self.number = {n: i for i, n in enumerate(self.nodes)}
        self.dominators = _PostDominators(self.nodes, self.number)
        self.inputs = {n for n in self.nodes if n.name in captured.inputs}
        self.weights = {n for n in self.nodes if n.op == "get_attr" or n.name in captured.sources}
        self.inputs_before = self._ancestors()
        self.last = self._meeting_nodes()
        self.modules = self._nodes_of_modules()

    def candidate(self, addition: fx.Node, addend: fx.Node, stream: fx.Node) -> Candidate | None:
        if list(addend.users) != [addition] or stream.meta["val"] != addition.meta["val"]:
            return None  # read elsewhere, or a stream that the addition makes larger or more precise
        at = self.number[addend]
        groups = [g for g, i in zip(self.space, self.last, strict=True) if self.dominators.over(at, i)]
        gone = self._gone(addend) if groups else set()
        if not groups or any(map(_writes_outside(gone), gone)) or not self._reads_stream(gone, stream):
            return None
        found = _rest(addend, self.captured, self.labelled, np.concatenate([g.atoms for g in groups]))
        if found is None:
            return None
        rest, products = found
        name = self._name(addend, next(n for n in rest if n in products))
        names = tuple(g.name for g in groups)
        nodes = frozenset(n.name for n in gone)
        branch = Branch(name, names, addition.name, addend.name, nodes, self._tensors_of(gone))
        return Candidate(branch, rest, products)

    def _gone(self, addend: fx.Node) -> set[fx.Node]:
        """Nodes computed for `addend` alone, those that nothing reads included."""
        at = self.number[addend]
        gone = {n for n in self.nodes if self.dominators.over(at, self.number[n]) and n not in self.inputs}
        for n in self.nodes:
            if n in self.dominators.unread and not gone.isdisjoint(n.all_input_nodes):
                gone.add(n)
        return gone

    def _tensors_of(self, gone: set[fx.Node]) -> frozenset[str]:
        """Tensors that only `gone` reads, with those that nothing reads of modules that lose all others."""
        sources = {n: self.captured.sources[n.name] for n in self.nodes if n.name in self.captured.sources}
        lost = {name for n, name in sources.items() if n in gone}
        read = {name for n, name in sources.items() if n not in self.dominators.unread}
        kept = {name.rpartition(".")[0] for name in read - lost}
        around = {name.rpartition(".")[0] for name in lost} - kept
        return frozenset(lost | {n for n in self.captured.tensors if n not in read and n.rpartition(".")[0] in around})

    def _reads_stream(self, gone: set[fx.Node], stream: fx.Node) -> bool:
        """Whether an activation that enters the branch also leads to the other operand."""
        entering = {n for inner in gone for n in inner.all_input_nodes} - gone
        before = self.inputs_before[stream]
        return any(_is_tensor(n) and n not in self.weights and before >> self.number[n] & 1 for n in entering)

    def _ancestors(self) -> dict[fx.Node, int]:
        """Bit set of every node and all that it depends on."""
        before: dict[fx.Node, int] = {}
        for i, node in enumerate(self.nodes):
            bits = 1 << i
            for n in node.all_input_nodes:
                bits |= before[n]
            before[node] = bits
        return before

    def _meeting_nodes(self) -> list[int | None]:
        """Of every group the nearest node that post-dominates all nodes it occurs in; None: it leaves the graph."""
        owner = np.full(len(self.labelled.atoms) + 1, -1, dtype=np.int64)
        for g, group in enumerate(self.space):
            owner[group.atoms] = g
        known: dict[int, list[int]] = {}
        nearest: list[int | None] = [-1] * len(self.space)  # -1: met nowhere yet
        for i, node in enumerate(self.nodes):
            if node in self.dominators.unread:
                continue
            for label in (x for labels in self.labelled.facts[node.name].labels for x in labels or []):
                final = None if label is None else self.labelled.atoms.final(label)
                if final is None:
                    continue
                if id(final) not in known:
                    known[id(final)] = [g for g in np.unique(owner[final]).tolist() if g >= 0]
                for g in known[id(final)]:
                    met = nearest[g]
                    if met is not None and (met == -1 or not self.dominators.over(met, i)):
                        nearest[g] = i if met == -1 else self.dominators.meet(met, i)
        used_in_training = {self.captured.sources.get(n.name) for n in self.nodes}
        return [
            None if i == -1 or any(m.parameter not in used_in_training for m in g.members) else i
            for i, g in zip(nearest, self.space, strict=True)
        ]

    def _nodes_of_modules(self) -> dict[str, list[int]]:
        inside: dict[str, list[int]] = {}
        for i, n in enumerate(self.nodes):
            if n.op == "call_function" and n not in self.dominators.unread and not hands_on(n):
                parts = module_of(n).split(".")
                for k in range(1, len(parts) + 1):
                    inside.setdefault(".".join(parts[:k]), []).append(i)
        return inside

    def _name(self, addend: fx.Node, product: fx.Node) -> str:
        """The largest module around the product that is run for this branch alone; else the node itself."""
        path = module_of(product)
        name = f"{path}.{product.name}".lstrip(".")
        while path and all(self.dominators.over(self.number[addend], i) for i in self.modules[path]):
            name, path = path, path.rpartition(".")[0]
        return name


def hands_on(node: fx.Node) -> bool:
    """Tell whether a node returns its input as it is: a cast to the type that it has, say."""
    before = node.args[0].meta.get("val") if node.args and isinstance(node.args[0], fx.Node) else None
    return op_name(node.target) in ("to", "contiguous", "alias") and node.meta.get("val") == before


def folded_addition(node: fx.Node, branch: Branch) -> tuple[Any, fx.Node]:
    """(operator, stream) in place of the addition of an empty branch; the operator is None where the stream stays.

    Where a constant is left, the operator adds it.
    """
    stream = next(n for n in node.args[:2] if isinstance(n, fx.Node) and n.name != branch.addend)
    in_place = op_name(node.target) == "add_" and node.args[0] is stream
    if branch.constant:
        return torch.ops.aten.add_.Tensor if in_place else torch.ops.aten.add.Tensor, stream
    if not in_place and (written_in_place(node) or written_in_place(stream)):
        return torch.ops.aten.clone.default, stream
    return None, stream


def _writes_outside(gone: set[fx.Node]) -> Callable[[fx.Node], bool]:
    """Whether a node of `gone` writes in place into what others read."""

    def writes(node: fx.Node) -> bool:
        if node.op != "call_function" or alias_kind(node.target) != "inplace":
            return False
        base = node.args[0]
        while isinstance(base, fx.Node) and base in gone and base.op == "call_function":
            if alias_kind(base.target) == "new":
                return False
            base = base.args[0]
        return True

    return writes


class _PostDominators:
    """The tree of post-dominators: through which node every way from a node to the output leads next.

    unread: nodes without an effect that no other reads; they are left out.
    """

    def __init__(self, nodes: list[fx.Node], number: Mapping[fx.Node, int]):
        self.unread: set[fx.Node] = set()
        self._next: list[int | None] = [None] * len(nodes)  # None: the output, or several ways
        self._depth = [0] * len(nodes)
        for i in reversed(range(len(nodes))):
            node = nodes[i]
            users = [number[u] for u in node.users if u not in self.unread]
            if not users:
                if node.op in ("placeholder", "get_attr") or (node.op == "call_function" and _is_pure(node)):
                    self.unread.add(node)
                continue
            meeting: int | None = users[0]
            for user in users[1:]:
                meeting = self.meet(meeting, user)
            self._next[i] = meeting
            self._depth[i] = 0 if meeting is None else self._depth[meeting] + 1
        self._first, self._last = self._numbered()

    def _numbered(self) -> tuple[list[int], list[int]]:
        """First and last place of what each node post-dominates, in an order in which that stands together."""
        size = [1] * len(self._next)
        for i, after in enumerate(self._next):  # a node stands before what post-dominates it
            if after is not None:
                size[after] += size[i]
        first, taken, free = [0] * len(self._next), [1] * len(self._next), 0
        for i in reversed(range(len(self._next))):
            after = self._next[i]
            if after is None:
                first[i], free = free, free + size[i]
            else:
                first[i] = first[after] + taken[after]
                taken[after] += size[i]
        return first, [f + n for f, n in zip(first, size, strict=True)]

    def meet(self, a: int | None, b: int | None) -> int | None:
        """The nearest node on all ways from both; None: the output."""
        while a != b and a is not None and b is not None:
            if self._depth[a] < self._depth[b]:
                a, b = b, a
            a = self._next[a]
        return a if a == b else None

    def over(self, a: int, b: int | None) -> bool:
        """Tell whether all ways from `b` to the output lead through `a`, or both are one."""
        return b is not None and self._first[a] <= self._first[b] < self._last[a]


def _is_pure(node: fx.Node) -> bool:
    """Whether a node only returns something."""
    if isinstance(node.target, torch._ops.OpOverload):
        return alias_kind(node.target) != "inplace"
    return node.target is operator.getitem


def _rest(
    addend: fx.Node, captured: Captured, labelled: Labelled, atoms: np.ndarray
) -> tuple[tuple[fx.Node, ...], frozenset[fx.Node]] | None:
    """What computes `addend` without these atoms, and the products over nothing in it; None if it needs an input."""
    dead = np.zeros(len(labelled.atoms) + 1, dtype=bool)
    dead[atoms] = True

    def empty(node: object) -> bool:
        if not isinstance(node, fx.Node) or not _is_tensor(node):
            return False
        finals = (labelled.atoms.final(x) for x in labelled.facts[node.name].labels[0] or [] if x is not None)
        return any(final is not None and bool(dead[final].any(axis=1).all()) for final in finals)

    rest: list[fx.Node] = []
    products: set[fx.Node] = set()
    pending, seen = [addend], {addend}
    while pending:
        node = pending.pop()
        if node.op == "placeholder" and _is_tensor(node) and node.name not in captured.sources:
            return None
        if node.op != "call_function" or isinstance(node.meta.get("val"), (int, BatchedSize)):
            continue  # tensors of the model, and sizes
        if empty(node):
            return None
        rest.append(node)
        inputs = node.all_input_nodes
        if any(map(empty, inputs)):
            added = BIAS_OF.get(op_name(node.target))
            bias = None if added is None else bound_arguments(node).get(added)
            if added is None or empty(bias):
                return None
            products.add(node)
            inputs = [bias] if isinstance(bias, fx.Node) else []
        for n in inputs:
            if n not in seen:
                seen.add(n)
                pending.append(n)
    order = {n: i for i, n in enumerate(addend.graph.nodes)}
    return (tuple(sorted(rest, key=order.__getitem__)), frozenset(products)) if products else None


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), TensorValue)
