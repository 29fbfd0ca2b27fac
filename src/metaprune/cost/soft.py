"""Expected cost as a function of real-valued widths, with gradients: what a regulariser over soft gates needs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metaprune.core.errors import NotAvailableError
from metaprune.cost.analytic import CostModel, Term


class SoftCost:
    """One metric of a network at real-valued widths [groups], relative to the full network.

    MACs and parameters are the exact polynomials: at whole widths they are what `CostModel` counts, and for independent
    gates the polynomial of the expected widths is the expected cost (up to dimensions that meet themselves). Peak
    memory and milliseconds are no polynomials: their value is taken at the nearest whole widths, their gradient from
    differences of one channel up and down.

    Raises:
        NotAvailableError: milliseconds without a latency table.
    """

    def __init__(self, costs: CostModel, metric: str):
        if metric == "latency_ms" and costs.predict_ms is None:
            raise NotAvailableError(
                "a cost in latency_ms needs a table measured on this device: make one with `metaprune latency MODEL`, "
                "and pass it as latency_table=FILE (latency.table in a recipe)"
            )
        self._costs, self.metric = costs, metric
        self._full = costs._space.widths
        self._terms = {"macs": costs._macs, "params": costs._params, "nonzero": costs._params}.get(metric)
        self.full = float(costs.metric(metric, self._full[None])[0])

    def __call__(self, widths: Tensor) -> Tensor:
        """widths: float [groups] -> share of the full cost, []."""
        if self._terms is None:
            return _Differences.apply(widths, self._costs, self.metric) / self.full
        sizes = [self._size(polynomial, widths) for polynomial, _ in self._costs._sizes]
        total: Any = sum(self._value(term, sizes) for term in self._terms)
        return torch.as_tensor(total, dtype=widths.dtype, device=widths.device) / self.full

    def _size(self, polynomial: Any, widths: Tensor) -> Any:
        return sum(
            rows / math.prod(int(self._full[g]) for g in groups) * math.prod(widths[g] for g in groups)
            for groups, rows in polynomial
        )

    @staticmethod
    def _value(term: Term, sizes: list[Any]) -> Any:
        return math.prod(sizes[s] for s in term.sizes) * (term.numerator / term.denominator)


class _Differences(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, widths: Tensor, costs: CostModel, metric: str) -> Tensor:  # type: ignore[override]
        full = costs._space.widths
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
