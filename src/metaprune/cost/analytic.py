"""MACs, parameters and bytes as polynomials in the group widths: exact integers, no forward pass.

Every cost is a sum of products of surviving sizes (`cost/sizes.py`), so thousands of candidates are evaluated in one
vectorised call.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import fx

from metaprune.cost.sizes import Polynomial, owners, polynomial_of, sizes_at
from metaprune.graph.call import Dim, Survivors, alias_kind
from metaprune.graph.capture import Captured
from metaprune.graph.labelling import Labelled
from metaprune.values import Cost, Space


@dataclass(frozen=True)
class Term:
    """numerator / denominator x product of the surviving sizes with these ids."""

    sizes: tuple[int, ...]
    numerator: int
    denominator: int


class CostModel:
    """Costs of one sample unless `batch` says otherwise.

    `inexact` lists dimensions whose size is no polynomial of the widths (two channels of one group in one index): their
    cost by widths is rounded up, their cost by plan is exact.
    """

    def __init__(self, captured: Captured, labelled: Labelled, space: Space, batch: int = 1):
        self._captured, self._labelled, self._space = captured, labelled, space
        self._batch = batch if captured.symbols else None
        self._owner = owners(space, labelled)
        self._sizes: list[tuple[Polynomial, np.ndarray]] = []
        self._ids: dict[Any, int] = {}
        self.inexact: list[str] = []
        # widths [n, groups] -> ms [n], of a latency table
        self.predict_ms: Callable[[np.ndarray], np.ndarray] | None = None
        self._macs = self._merge(self._term(t) for f in labelled.facts.values() for t in f.macs)
        self._params, self._weight_bytes = self._weights()
        self._tensors, self._allocated, self._freed, self._steps = self._liveness()

    def with_latency(self, predict_ms: Callable[[np.ndarray], np.ndarray] | None) -> CostModel:
        """The same costs, and milliseconds from a latency table (None: without)."""
        new = copy.copy(self)
        new.predict_ms = predict_ms
        return new

    # ------------------------------------------------------------------------------------------ evaluation

    def of_widths(self, widths: np.ndarray) -> Cost:
        """widths: int64 [groups] or [candidates, groups]; a Cost of ints or of arrays [candidates]."""
        widths = np.asarray(widths, dtype=np.int64)
        if widths.shape[-1:] != (len(self._space),):
            raise ValueError(f"widths must end in {len(self._space)} groups, got shape {widths.shape}")
        scalar, batch = widths.ndim == 1, np.atleast_2d(widths)
        cost = self._evaluate(self._sizes_of(batch), scalar)
        if self.predict_ms is None:
            return cost
        latency = self.predict_ms(batch)
        return replace(cost, latency_ms=float(latency[0]) if scalar else latency)

    def metric(self, name: str, widths: np.ndarray) -> np.ndarray:
        """One metric of int64 [candidates, groups]: what a search asks for, without the cost of the others."""
        if name == "latency_ms" and self.predict_ms is not None:
            return self.predict_ms(widths)
        if name not in ("macs", "params", "nonzero"):
            return np.asarray(self.of_widths(widths).metric(name))
        return self._total(self._macs if name == "macs" else self._params, self._sizes_of(widths))

    def _sizes_of(self, widths: np.ndarray) -> np.ndarray:
        return sizes_at([polynomial for polynomial, _ in self._sizes], self._space.widths, widths)

    def of_survivors(self, alive: Survivors) -> Cost:
        """Exact cost of one concrete set of survivors."""
        sizes = np.array([alive.count(label) for _, label in self._sizes], dtype=np.int64).reshape(-1, 1)
        return self._evaluate(sizes, scalar=True)

    def _evaluate(self, sizes: np.ndarray, scalar: bool) -> Cost:
        change = np.zeros((self._steps + 2, sizes.shape[1]), dtype=np.int64)
        for term, allocated, freed in zip(self._tensors, self._allocated, self._freed, strict=True):
            held = self._value(term, sizes)
            change[allocated] += held
            change[freed + 1] -= held
        figures = (
            self._total(self._macs, sizes),
            self._total(self._params, sizes),
            np.cumsum(change, axis=0).max(axis=0),
            self._total(self._weight_bytes, sizes),
        )
        return Cost(*(int(f[0]) if scalar else f for f in figures))

    @staticmethod
    def _value(term: Term, sizes: np.ndarray) -> np.ndarray:
        """sizes: int64 [sizes, candidates] -> [candidates] (a number, where the term has no size)."""
        product: Any = math.prod(sizes[s] for s in term.sizes) * term.numerator
        return product if term.denominator == 1 else product // term.denominator

    def _total(self, terms: list[Term], sizes: np.ndarray) -> np.ndarray:
        total = np.zeros(sizes.shape[1], dtype=np.int64)
        for term in terms:
            total += self._value(term, sizes)
        return total

    # ------------------------------------------------------------------------------------------ construction

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
        polynomial, exact = self._polynomial(final)
        key = polynomial if exact else id(raw)
        if key not in self._ids:
            self._ids[key] = len(self._sizes)
            self._sizes.append((polynomial, raw))
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
            self.inexact.append(f"dimension of {len(final)}")
        return polynomial, exact

    @staticmethod
    def _merge(terms: Any) -> list[Term]:
        """Sum terms of equal sizes; those with a fraction stay apart, each is an integer by itself."""
        whole: dict[tuple[int, ...], int] = defaultdict(int)
        rest = []
        for term in terms:
            if term.denominator == 1:
                whole[term.sizes] += term.numerator
            else:
                rest.append(term)
        counted: dict[Term, int] = defaultdict(int)
        for term in rest:
            counted[term] += 1
        return [Term(s, n, 1) for s, n in whole.items()] + [t for t, n in counted.items() for _ in range(n)]

    def _weights(self) -> tuple[list[Term], list[Term]]:
        params, weight_bytes = [], []
        for name, tensor in self._captured.tensors.items():
            labels = self._labelled.parameters.get(name, [None] * tensor.dim())
            dims = [Dim(label, n) for label, n in zip(labels, tensor.shape, strict=True)]
            if isinstance(tensor, torch.nn.Parameter):
                params.append(self._term(dims))
            weight_bytes.append(self._term(dims, tensor.element_size()))
        return self._merge(params), self._merge(weight_bytes)

    def _liveness(self) -> tuple[list[Term], list[int], list[int], int]:
        """Tensors that own memory, with the steps in which they are allocated and last used."""
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
                if isinstance(tensor, torch.Tensor):
                    dims = [
                        Dim(label, n) for label, n in zip(labels or [None] * tensor.dim(), tensor.shape, strict=True)
                    ]
                    owner[node].append(len(terms))
                    terms.append(self._term(dims, tensor.element_size()))
                    allocated.append(step)
                    freed.append(len(nodes) if node.op == "placeholder" else step)
        freed = [min(f, step) for f in freed]
        return terms, allocated, freed, step


def _padded(groups: tuple[int, ...], length: int) -> np.ndarray:
    """As a sorted row of owners: what no group owns comes first."""
    return np.array([-1] * (length - len(groups)) + list(groups))
