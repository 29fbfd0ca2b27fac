"""`allocate="sensitivity"`: widths by what narrow groups cost, measured on the network's own outputs."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from metaprune.calibration.batches import affordable_samples, judged_batches
from metaprune.calibration.calibrate import calibrate_on
from metaprune.calibration.closed_form import ClosedForm, OutputLoss
from metaprune.calibration.sensitivity import SHARES, Curve, sensitivities
from metaprune.core.rng import Rng
from metaprune.data.loader_split import replayed
from metaprune.network import Network
from metaprune.objective import Objective
from metaprune.objective.batch import batch_size_of
from metaprune.protocol.method import PruneTask
from metaprune.search.allocate import Allocator
from metaprune.search.units import Unit
from metaprune.values import Plan

SAMPLES, LEAST_SAMPLES, LEAST_ITEMS = 192, 16, 256
MACS = 1e12  # of all measurements of the curves together: some minutes on one core
CALIBRATION_SAMPLES = 512
MEMORY_BYTES = 2**30
RELAXED = 1.05
"""By how much a bound is relaxed to say what it costs."""


def curve_samples(network: Network, items: float = 1.0) -> int:
    """Choose how many samples curves are measured on: 192, fewer where that would take over 1e12 MACs or 1 GiB.

    Every group costs three forward passes. 16 samples are measured whatever they take, unless they do not fit; fewer
    where these hold 256 items.

    Args:
        items: what the objective's loss is a mean over, per sample: tokens of a sequence, pixels of a map.
    """
    passes = len(SHARES) * max(1, len(network.space))
    wanted = int(MACS / (passes * max(1, network.cost().macs)))
    least = min(LEAST_SAMPLES, math.ceil(LEAST_ITEMS / max(1.0, items)))
    return affordable_samples(network, min(SAMPLES, max(least, wanted)), 1, MEMORY_BYTES)


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
        network, objective = self._task.network, self._data.objective or Objective()
        rng, train = self._rng.child("samples"), self._data.train
        with replayed(train, rng):
            inputs, target = next(iter(train.batches(1, device=network.device, rng=rng)))
        samples = curve_samples(network, objective.items(target) / batch_size_of(inputs))
        batch, others = judged_batches(network, train, samples, CALIBRATION_SAMPLES, rng)
        calibration = calibrate_on(network, others, self._rng.child("calibration"))
        return OutputLoss(ClosedForm(network, calibration), batch, objective)

    def details(self) -> dict[str, Any]:
        """What the record says: the curve of every unit, what each bound costs, and the seconds.

        `prices` hold the expected loss, and that of the same widths' choice where one bound is `RELAXED` as large.
        """
        curves = [{k: list(v) for k, v in dataclasses.asdict(curve).items()} for curve in self._curves.values()]
        return {"sensitivity": {"curves": curves, "prices": self._prices, "seconds": round(self._seconds, 2)}}
