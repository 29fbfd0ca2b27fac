"""MACs, parameters and bytes as polynomials in the group widths: exact integers, no forward pass.

Every cost is made of sums of products of surviving sizes (`cost/terms.py`), so thousands of candidates are evaluated
in one vectorised call. Which costs there are says the registry of `cost/metrics.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from metaprune.cost.metrics import CostMetric, cost_metric, cost_metrics
from metaprune.cost.sizes import Size, Switch, sizes_at
from metaprune.cost.terms import CostTerms, Term
from metaprune.graph.call import Survivors
from metaprune.values import Cost, Space

PredictMs = Callable[[np.ndarray], np.ndarray]  # widths [n, groups] -> milliseconds [n], as a latency table does


class ExactFigures:
    """`Figures` of whole structures: integers. Each is computed when it is first asked for.

    sizes: surviving sizes, int64 [sizes, structures].
    """

    def __init__(
        self, terms: CostTerms, sizes: np.ndarray, widths: np.ndarray, predict_ms: PredictMs | None, masked: int = 0
    ):
        self.terms, self.widths, self.masked = terms, widths, masked
        self._sizes, self._predict_ms = sizes, predict_ms

    @cached_property
    def macs(self) -> np.ndarray:
        return self.total(self.terms.macs)

    @cached_property
    def params(self) -> np.ndarray:
        return self.total(self.terms.params)

    @cached_property
    def active_params(self) -> np.ndarray:
        return self.total(self.terms.active_params)

    @cached_property
    def weight_bytes(self) -> np.ndarray:
        return self.total(self.terms.weight_bytes)

    @cached_property
    def peak_bytes(self) -> np.ndarray:
        change = np.zeros((self.terms.steps + 2, self._sizes.shape[1]), dtype=np.int64)
        for activation in self.terms.activations:
            held = self._value(activation.bytes)
            change[activation.allocated] += held
            change[activation.freed + 1] -= held
        return np.cumsum(change, axis=0).max(axis=0)

    @cached_property
    def latency_ms(self) -> np.ndarray | None:
        return None if self._predict_ms is None else self._predict_ms(self.widths)

    def total(self, terms: Sequence[Term]) -> np.ndarray:
        """int64 [structures]."""
        total = np.zeros(self._sizes.shape[1], dtype=np.int64)
        for term in terms:
            total += self._value(term)
        return total

    def _value(self, term: Term) -> np.ndarray:
        """int64 [structures] (a number, where the term has no size)."""
        product: Any = math.prod(self._sizes[s] for s in term.sizes) * term.numerator
        return product if term.denominator == 1 else product // term.denominator


@dataclass(frozen=True)
class CostModel:
    """Costs of a network at any widths.

    predict_ms: milliseconds of a latency table; None: no metric that needs one.
    """

    terms: CostTerms
    space: Space
    predict_ms: PredictMs | None = None

    @property
    def inexact(self) -> tuple[str, ...]:
        """Dimensions whose cost by widths is rounded up; see `CostTerms`."""
        return self.terms.inexact

    def knows(self, metric: str) -> bool:
        """Tell whether the metric can be computed: without a latency table, some cannot."""
        return self.predict_ms is not None or not cost_metric(metric).needs_table

    def of_widths(self, widths: np.ndarray) -> Cost:
        """widths: int64 [groups] or [candidates, groups]; a Cost of ints or of arrays [candidates]."""
        widths = np.asarray(widths, dtype=np.int64)
        if widths.shape[-1:] != (len(self.space),):
            raise ValueError(f"widths must end in {len(self.space)} groups, got shape {widths.shape}")
        figures = self._at(np.atleast_2d(widths))
        return _of_one(figures) if widths.ndim == 1 else _of_many(figures)

    def elements(self, widths: np.ndarray) -> dict[str, int]:
        """Count the elements of every parameter at widths int64 [groups]."""
        figures = self._at(np.atleast_2d(widths))
        return {name: int(figures.total([term])[0]) for name, term in self.terms.parameters.items()}

    def of_survivors(self, alive: Survivors, masked: int = 0) -> Cost:
        """Exact cost of one concrete set of survivors, of which `masked` single weights are held at zero."""
        return _of_one(self._of_alive(alive, masked))

    def macs_by_node(self, alive: Survivors) -> dict[str, int]:
        """Count the MACs of every node of the graph that has any, exactly; they add up to those of `of_survivors`."""
        figures = self._of_alive(alive)
        return {name: int(figures.total(terms)[0]) for name, terms in self.terms.node_macs.items()}

    def _of_alive(self, alive: Survivors, masked: int = 0) -> ExactFigures:
        widths = alive.widths(self.space)[None]
        counted = [alive.count(s.label) if isinstance(s, Size) else s.at(widths)[0] for s in self.terms.sizes]
        sizes = np.array(counted, dtype=np.int64).reshape(-1, 1)
        return ExactFigures(self.terms, sizes, widths, self.predict_ms, masked)

    def metric(self, name: str, widths: np.ndarray) -> np.ndarray:
        """Compute one metric of int64 [candidates, groups]: what a search asks for, without the cost of the others."""
        return np.asarray(cost_metric(name).of(self._at(widths)))

    def _at(self, widths: np.ndarray) -> ExactFigures:
        polynomials = [s.polynomial if isinstance(s, Size) else () for s in self.terms.sizes]
        sizes = sizes_at(polynomials, self.space.widths, widths)
        for row, size in zip(sizes, self.terms.sizes, strict=True):
            if isinstance(size, Switch):
                row[:] = size.at(widths)
        return ExactFigures(self.terms, sizes, widths, self.predict_ms)


def _of_one(figures: ExactFigures) -> Cost:
    def number(metric: CostMetric, values: np.ndarray) -> float:
        return (int if metric.count else float)(values[0])

    return Cost({m.name: number(m, values) for m in cost_metrics() if (values := m.of(figures)) is not None})


def _of_many(figures: ExactFigures) -> Cost:
    return Cost({m.name: values for m in cost_metrics() if (values := m.of(figures)) is not None})
