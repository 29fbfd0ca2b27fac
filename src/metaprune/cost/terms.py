"""A network's costs as sums of products of surviving sizes, read off the labelled graph once."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx

from metaprune.cost.sizes import Polynomial, owners, polynomial_of
from metaprune.graph.call import Dim, alias_kind
from metaprune.graph.captured import Captured
from metaprune.graph.labelling import Labelled
from metaprune.graph.shapes import TensorValue
from metaprune.values import Space


@dataclass(frozen=True)
class Term:
    """numerator / denominator x product of the surviving sizes with these numbers (see `CostTerms.sizes`)."""

    sizes: tuple[int, ...]
    numerator: int
    denominator: int


@dataclass(frozen=True)
class Size:
    """How many indices of one dimension survive.

    polynomial: in the group widths. label: the dimension's, which counts exactly for given survivors.
    """

    polynomial: Polynomial
    label: np.ndarray


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
    sizes: the sizes that terms multiply.
    macs, params, weight_bytes: sums of terms.
    parameters: elements of every parameter by name; `params` is their sum.
    activations, steps: tensors that are alive between steps 0 and `steps`.
    inexact: dimensions whose size is no polynomial of the widths (two channels of one group in one index). Their cost
        by widths is rounded up, their cost by survivors is exact.
    """

    full: np.ndarray
    sizes: tuple[Size, ...]
    macs: tuple[Term, ...]
    params: tuple[Term, ...]
    weight_bytes: tuple[Term, ...]
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
        self._sizes: list[Size] = []
        self._ids: dict[Any, int] = {}
        self._polynomials: dict[Any, tuple[Polynomial, bool]] = {}
        self._inexact: list[str] = []

    def build(self) -> CostTerms:
        macs = _merged(self._term(t) for f in self._labelled.facts.values() for t in f.macs)
        parameters, weight_bytes = self._weights()
        activations, steps = self._liveness()
        return CostTerms(
            self._space.widths,
            tuple(self._sizes),
            macs,
            _merged(parameters.values()),
            weight_bytes,
            parameters,
            activations,
            steps,
            tuple(self._inexact),
        )

    def _term(self, dims: list[Dim], factor: int = 1) -> Term:
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
        common = math.gcd(numerator, denominator)
        return Term(tuple(sorted(ids)), numerator // common, denominator // common)

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

    def _weights(self) -> tuple[dict[str, Term], tuple[Term, ...]]:
        parameters, weight_bytes = {}, []
        for name, tensor in self._captured.tensors.items():
            labels = self._labelled.parameters.get(name, [None] * tensor.dim())
            dims = [Dim(label, n) for label, n in zip(labels, tensor.shape, strict=True)]
            if isinstance(tensor, torch.nn.Parameter):
                parameters[name] = self._term(dims)
            weight_bytes.append(self._term(dims, tensor.element_size()))
        return parameters, _merged(weight_bytes)

    def _liveness(self) -> tuple[tuple[Activation, ...], int]:
        """Tensors that own memory, and the number of steps."""
        owner: dict[fx.Node, list[int]] = {}
        terms: list[Term] = []
        allocated: list[int] = []
        freed: list[int] = []
        step = 0
        nodes = list(self._captured.graph.nodes)
        for node in nodes:
            step += node.op == "call_function"
            for used in node.all_input_nodes:
                for i in owner.get(used, []):
                    freed[i] = len(nodes) if node.op == "output" else max(freed[i], step)
            if node.name in self._captured.sources or node.op not in ("placeholder", "call_function"):
                continue
            if node.op == "call_function" and alias_kind(node.target) != "new":
                owner[node] = owner.get(node.all_input_nodes[0], []) if node.all_input_nodes else []
                continue
            owner[node] = []
            value = node.meta.get("val")
            for tensor, labels in zip(
                value if isinstance(value, (list, tuple)) else [value],
                self._labelled.facts[node.name].labels,
                strict=False,
            ):
                if isinstance(tensor, TensorValue):
                    dims = [
                        Dim(label, n) for label, n in zip(labels or [None] * tensor.dim(), tensor.shape, strict=True)
                    ]
                    owner[node].append(len(terms))
                    terms.append(self._term(dims, tensor.dtype.itemsize))
                    allocated.append(step)
                    freed.append(len(nodes) if node.op == "placeholder" else step)
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
