"""A network's costs as sums of products of surviving sizes, read off the labelled graph once."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import fx

from metaprune.cost.sizes import Polynomial, Size, Switch, owners, polynomial_of
from metaprune.graph.branches import folded_addition
from metaprune.graph.call import Dim, alias_kind
from metaprune.graph.captured import Captured
from metaprune.graph.labelling import Labelled
from metaprune.graph.look_ups import looked_up
from metaprune.graph.shapes import TensorValue
from metaprune.values import Branch, Space


@dataclass(frozen=True)
class Term:
    """numerator / denominator x product of the surviving sizes with these numbers (see `CostTerms.sizes`)."""

    sizes: tuple[int, ...]
    numerator: int
    denominator: int


@dataclass(frozen=True)
class Activation:
    """A tensor that owns memory: bytes, and the steps in which it is allocated and last used."""

    bytes: Term
    allocated: int
    freed: int


@dataclass(frozen=True)
class CostTerms:
    """Everything that a cost of a network is made of.

    full: full widths, int64 [groups].
    sizes: the sizes that terms multiply; a switch for what is there only where a branch is, or is not.
    macs, params, active_params, weight_bytes: sums of terms.
    node_macs: MACs of every node of the graph that has any, by its name; `macs` is their sum.
    parameters: elements of every parameter by name; `params` is their sum.
    activations, steps: tensors that are alive between steps 0 and `steps`.
    inexact: dimensions whose size is no polynomial of the widths (two channels of one group in one index). Their cost
        by widths is rounded up, their cost by survivors is exact.
    """

    full: np.ndarray
    sizes: tuple[Size | Switch, ...]
    macs: tuple[Term, ...]
    params: tuple[Term, ...]
    active_params: tuple[Term, ...]
    weight_bytes: tuple[Term, ...]
    node_macs: Mapping[str, tuple[Term, ...]]
    parameters: Mapping[str, Term]
    activations: tuple[Activation, ...]
    steps: int
    inexact: tuple[str, ...]


def cost_terms(captured: Captured, labelled: Labelled, space: Space, batch: int = 1) -> CostTerms:
    """Build the terms of `batch` samples per forward pass."""
    return _Builder(captured, labelled, space, batch).build()


class _Builder:
    def __init__(self, captured: Captured, labelled: Labelled, space: Space, batch: int):
        self._captured, self._labelled, self._space = captured, labelled, space
        self._batch = batch if captured.batch is not None else None
        self._owner = owners(space, labelled)
        self._sizes: list[Size | Switch] = []
        self._ids: dict[Any, int] = {}
        self._polynomials: dict[Any, tuple[Polynomial, bool]] = {}
        self._inexact: list[str] = []
        inner = sorted(space.branches, key=lambda b: -len(b.gone))  # of branches inside one another, the inmost counts
        self._branch_of = {n: b for b in inner for n in b.gone}
        self._branch_of_tensor = {n: b for b in inner for n in b.tensors}

    def build(self) -> CostTerms:
        facts = self._labelled.facts.items()
        node_macs = {
            name: tuple(self._term(t, branch=self._branch_of.get(name)) for t in f.macs) for name, f in facts if f.macs
        }
        parameters, active, weight_bytes = self._weights()
        activations, steps = self._liveness()
        return CostTerms(
            self._space.widths,
            tuple(self._sizes),
            _merged(term for terms in node_macs.values() for term in terms),
            _merged(parameters.values()),
            _merged({**parameters, **active}.values()),
            weight_bytes,
            node_macs,
            parameters,
            activations,
            steps,
            tuple(self._inexact),
        )

    def _term(self, dims: list[Dim], factor: int = 1, branch: Branch | None = None, present: bool = True) -> Term:
        """Cost of `dims`; with a branch, only where that is there (or where it is empty)."""
        ids, numerator, denominator = [], factor, 1
        for dim in dims:
            size = self._captured.concrete(dim.size, self._batch) if not isinstance(dim.size, int) else dim.size
            final = None if dim.label is None else self._labelled.atoms.final(dim.label)
            if final is None or (self._owner[final] < 0).all():
                numerator *= size
                continue
            ids.append(self._size_id(dim.label, final))
            numerator *= size  # a dimension that merges batch and channels was labelled at the traced batch size
            denominator *= len(final)
        if branch is not None and not (present and self._vanishes(ids, branch)):
            ids.append(self._switch(branch, present))
        common = math.gcd(numerator, denominator)
        return Term(tuple(sorted(ids)), numerator // common, denominator // common)

    def _vanishes(self, ids: list[int], branch: Branch) -> bool:
        """Whether one of the sizes is zero by itself where the branch is empty."""
        groups = {self._space.index[g] for g in branch.groups}
        sizes = (s for s in map(self._sizes.__getitem__, ids) if isinstance(s, Size))
        return any(all(groups.intersection(of) for of, _ in size.polynomial) for size in sizes)

    def _switch(self, branch: Branch, present: bool) -> int:
        switch = Switch(tuple(self._space.index[g] for g in branch.groups), present)
        if switch not in self._ids:
            self._ids[switch] = len(self._sizes)
            self._sizes.append(switch)
        return self._ids[switch]

    def _size_id(self, raw: np.ndarray | None, final: np.ndarray) -> int:
        assert raw is not None
        contents = (final.shape, final.tobytes())  # many dimensions hold the same channels
        if contents not in self._polynomials:
            self._polynomials[contents] = self._polynomial(final)
        polynomial, exact = self._polynomials[contents]
        key = polynomial if exact else id(raw)
        if key not in self._ids:
            self._ids[key] = len(self._sizes)
            self._sizes.append(Size(polynomial, raw))
        return self._ids[key]

    def _polynomial(self, final: np.ndarray) -> tuple[Polynomial, bool]:
        """Whether it is exact, too: every combination of channels occurs once, and no row has two of one group."""
        rows, exact = np.sort(self._owner[final], axis=1), True
        polynomial = polynomial_of(rows)
        for groups, _ in polynomial:
            if len(groups) > 1:
                mine = (rows == _padded(groups, rows.shape[1])).all(axis=1)
                atoms = np.where(self._owner[final] >= 0, final, -1)[mine]
                distinct = len(np.unique(np.sort(atoms, axis=1), axis=0))
                full = math.prod(int(self._space.widths[g]) for g in groups)
                exact &= distinct == full and len(set(groups)) == len(groups)
        if not exact:
            self._inexact.append(f"dimension of {len(final)}")
        return polynomial, exact

    def _weights(self) -> tuple[dict[str, Term], dict[str, Term], tuple[Term, ...]]:
        """Elements of every parameter, those that one choice reads of some (experts), and the bytes of all tensors."""
        parameters, active, weight_bytes = {}, {}, []
        chosen = dict(looked_up(self._captured, self._labelled))
        for name, tensor in self._captured.tensors.items():
            labels = self._labelled.parameters.get(name, [None] * tensor.dim())
            dims = [Dim(label, n) for label, n in zip(labels, tensor.shape, strict=True)]
            branch = self._branch_of_tensor.get(name)
            if isinstance(tensor, torch.nn.Parameter):
                parameters[name] = self._term(dims, branch=branch)
            if name in parameters and name in chosen:
                at, taken = chosen[name]
                active[name] = self._term([*dims[:at], Dim(None, taken), *dims[at + 1 :]], branch=branch)
            weight_bytes.append(self._term(dims, tensor.element_size(), branch))
        values = {n.name: n.meta.get("val") for n in self._captured.graph.nodes}
        for branch in (b for b in self._space.branches if b.constant):
            size, label = values[branch.addend].shape, self._labelled.facts[branch.addend].labels[0]
            dims = [Dim(None if label is None else label[branch.channel_dim], size[branch.channel_dim])]
            parameters[branch.constant_name] = self._left(branch, dims)
            weight_bytes.append(self._left(branch, dims, values[branch.addend].dtype.itemsize))
        return parameters, active, _merged(weight_bytes)

    def _left(self, branch: Branch, dims: list[Dim], factor: int = 1) -> Term:
        """Cost where the branch is empty and still inside a network: the one around it is not empty."""
        term = self._term(dims, factor, branch, present=False)
        around = self._branch_of.get(branch.addition)
        return term if around is None else replace(term, sizes=(*term.sizes, self._switch(around, True)))

    def _liveness(self) -> tuple[tuple[Activation, ...], int]:
        """Tensors that own memory, and the number of steps."""
        owner: dict[fx.Node, list[int]] = {}
        terms: list[Term] = []
        allocated: list[int] = []
        freed: list[int] = []
        step = 0
        nodes = list(self._captured.graph.nodes)
        added = {b.addition: b for b in self._space.branches}

        def allocate(node: fx.Node, at: int, until: int, branch: Branch | None, present: bool = True) -> None:
            value, labels = node.meta.get("val"), self._labelled.facts[node.name].labels
            for tensor, of in zip(value if isinstance(value, (list, tuple)) else [value], labels, strict=False):
                if isinstance(tensor, TensorValue):
                    dims = [Dim(x, n) for x, n in zip(of or [None] * tensor.dim(), tensor.shape, strict=True)]
                    owner[node].append(len(terms))
                    terms.append(self._term(dims, tensor.dtype.itemsize, branch, present))
                    allocated.append(at)
                    freed.append(until)

        for node in nodes:
            step += node.op == "call_function"
            for used in node.all_input_nodes:
                for i in owner.get(used, []):
                    freed[i] = len(nodes) if node.op == "output" else max(freed[i], step)
            if node.name in self._captured.sources or node.op not in ("placeholder", "call_function"):
                continue
            owner[node] = []
            makes_new = node.op == "placeholder" or alias_kind(node.target) == "new"
            if not makes_new:
                owner[node] = list(owner.get(node.all_input_nodes[0], [])) if node.all_input_nodes else []
            inside = self._branch_of.get(node.name)
            if node.name in added:
                operator, stream = folded_addition(node, added[node.name])
                moved = 0 if operator is not None else 1  # the stream itself is handed on
                if makes_new and not moved:
                    allocate(node, step, step, inside)
                elif stream is not node.all_input_nodes[0] or makes_new:
                    if makes_new:
                        allocate(node, step, step, added[node.name])
                    allocate(node, step + moved, step, added[node.name], present=False)
            elif makes_new:
                allocate(node, step, len(nodes) if node.op == "placeholder" else step, inside)
        lives = zip(terms, allocated, freed, strict=True)
        return tuple(Activation(term, start, min(end, step)) for term, start, end in lives), step


def _merged(terms: Iterable[Term]) -> tuple[Term, ...]:
    """Sum terms of equal sizes; those with a fraction stay apart, each is an integer by itself."""
    whole: dict[tuple[int, ...], int] = defaultdict(int)
    fractions: dict[Term, int] = defaultdict(int)
    for term in terms:
        if term.denominator == 1:
            whole[term.sizes] += term.numerator
        else:
            fractions[term] += 1
    return (*(Term(s, n, 1) for s, n in whole.items()), *(t for t, n in fractions.items() for _ in range(n)))


def _padded(groups: tuple[int, ...], length: int) -> np.ndarray:
    """As a sorted row of owners: what no group owns comes first."""
    return np.array([-1] * (length - len(groups)) + list(groups))
