"""`allocate="sensitivity"`: widths by what narrow groups cost, measured on the network's own outputs."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from metaprune.calibration.closed_form import OutputLoss
from metaprune.calibration.sensitivity import Curve, output_loss, sensitivities
from metaprune.core.rng import Rng
from metaprune.protocol.method import PruneTask
from metaprune.search.allocate import Allocator
from metaprune.search.units import Unit
from metaprune.values import Plan

RELAXED = 1.05
"""By how much a bound is relaxed to say what it costs."""


class MeasuredWidths:
    """Chooses widths by the change of the outputs; later steps and other budgets read the same curves."""

    def __init__(self, task: PruneTask, method: str, rng: Rng):
        self._task, self._rng = task, rng
        self._data = task.require_data(method)
        self._curves: dict[tuple[bytes, bytes], Curve] = {}
        self._prices: dict[str, Any] = {}
        self._seconds = 0.0

    def plan(self, allocator: Allocator, scores: Sequence[np.ndarray]) -> Plan:
        """Choose widths of least measured loss; in each group the channels that score highest stay."""
        began = time.perf_counter()
        losses = [self._curve(unit, scores).at(unit.ratios()) for unit in allocator.units]
        plan, loss = allocator.by_losses(scores, losses)
        relaxed = {m: allocator.relaxed(m, RELAXED).by_losses(scores, losses)[1] for m in allocator.bounds}
        self._prices = {"loss": loss, "relaxed": relaxed}
        self._seconds += time.perf_counter() - began
        return plan

    def _curve(self, unit: Unit, scores: Sequence[np.ndarray]) -> Curve:
        key = unit.groups.tobytes(), unit.levels.tobytes()
        if key not in self._curves:
            (self._curves[key],) = sensitivities(self._task.network.space, self._loss, [unit], scores)
        return self._curves[key]

    @functools.cached_property
    def _loss(self) -> OutputLoss:
        return output_loss(self._task.network, self._data, self._rng)

    def details(self) -> dict[str, Any]:
        """What the record says: the curve of every unit, what each bound costs, and the seconds.

        `prices` hold the expected loss, and that of the same widths' choice where one bound is `RELAXED` as large.
        """
        curves = [{k: list(v) for k, v in dataclasses.asdict(curve).items()} for curve in self._curves.values()]
        return {"sensitivity": {"curves": curves, "prices": self._prices, "seconds": round(self._seconds, 2)}}
