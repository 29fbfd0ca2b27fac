"""Expected cost as a function of real-valued widths, with gradients: what a regulariser over soft gates needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metaprune.core.errors import NotAvailableError
from metaprune.cost.analytic import CostModel
from metaprune.cost.metrics import cost_metric
from metaprune.cost.sizes import Polynomial, Size
from metaprune.cost.terms import CostTerms, Term


class SoftCost:
    """One metric of a network at real-valued widths [groups], relative to the full network.

    MACs and parameters are the exact polynomials: at whole widths they are what `CostModel` counts, and for independent
    gates the polynomial of the expected widths is the expected cost (up to dimensions that meet themselves). So is
    every metric that is `soft`. The others (peak memory, milliseconds) are no polynomials: their value is taken at the
    nearest whole widths, their gradient from differences of one channel up and down.

    Raises:
        NotAvailableError: a metric that needs a latency table, without one.
    """

    def __init__(self, costs: CostModel, metric: str):
        if not costs.knows(metric):
            raise NotAvailableError(
                f"a cost in {metric} needs a table measured on this device: make one with `metaprune latency MODEL`, "
                "and pass it as latency_table=FILE (latency.table in a recipe)"
            )
        self._costs, self.metric = costs, metric
        self.full = float(costs.metric(metric, costs.terms.full[None])[0])

    def __call__(self, widths: Tensor) -> Tensor:
        """widths: float [groups] -> share of the full cost, []."""
        metric = cost_metric(self.metric)
        if not metric.soft:
            return _Differences.apply(widths, self._costs, self.metric) / self.full
        total = metric.of(SoftFigures(self._costs.terms, widths))
        return torch.as_tensor(total, dtype=widths.dtype, device=widths.device) / self.full


class SoftFigures:
    """`Figures` of one structure of real-valued widths [groups], with gradients; no branch of it is empty."""

    masked = 0

    def __init__(self, terms: CostTerms, widths: Tensor):
        self.terms, self.widths = terms, widths
        self._sizes = [
            _size(s.polynomial, widths, terms.full) if isinstance(s, Size) else float(s.present) for s in terms.sizes
        ]

    @cached_property
    def macs(self) -> Any:
        return self.total(self.terms.macs)

    @cached_property
    def params(self) -> Any:
        return self.total(self.terms.params)

    @cached_property
    def active_params(self) -> Any:
        return self.total(self.terms.active_params)

    @cached_property
    def weight_bytes(self) -> Any:
        return self.total(self.terms.weight_bytes)

    @property
    def peak_bytes(self) -> Any:
        raise NotAvailableError("peak_bytes has no gradient: a metric that uses it is not soft")

    @property
    def latency_ms(self) -> Any:
        raise NotAvailableError("latency_ms has no gradient: a metric that uses it is not soft")

    def total(self, terms: Sequence[Term]) -> Any:
        return sum(math.prod(self._sizes[s] for s in t.sizes) * (t.numerator / t.denominator) for t in terms)


def _size(polynomial: Polynomial, widths: Tensor, full: np.ndarray) -> Any:
    return sum(
        rows / math.prod(int(full[g]) for g in groups) * math.prod(widths[g] for g in groups)
        for groups, rows in polynomial
    )


class _Differences(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, widths: Tensor, costs: CostModel, metric: str) -> Tensor:  # type: ignore[override]
        full = costs.terms.full
        here = np.clip(np.rint(widths.detach().cpu().numpy()).astype(np.int64), 1, full)
        each = np.eye(len(full), dtype=np.int64)
        up, down = np.minimum(here + each, full), np.maximum(here - each, 1)
        values = np.asarray(costs.metric(metric, np.concatenate([here[None], up, down])), dtype=np.float64)
        change = (values[1 : 1 + len(full)] - values[1 + len(full) :]) / np.maximum((up - down).sum(axis=1), 1)
        ctx.save_for_backward(torch.as_tensor(change, dtype=widths.dtype, device=widths.device))
        return torch.as_tensor(values[0], dtype=widths.dtype, device=widths.device)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        return gradient * ctx.saved_tensors[0], None, None
