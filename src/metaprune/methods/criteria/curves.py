"""`allocate="sensitivity"`: curves of every unit, measured once for a task, and what they say of widths."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from metaprune.calibration.batches import affordable_samples
from metaprune.calibration.calibrate import calibrate
from metaprune.calibration.sensitivity import Curve, sensitivities
from metaprune.core.errors import ConfigError
from metaprune.core.rng import Rng
from metaprune.objective import Objective
from metaprune.protocol.method import PruneTask
from metaprune.search.allocate import Allocator

SAMPLES = 192
CALIBRATION_SAMPLES = 512
MEMORY_BYTES = 2**30


class MeasuredCurves:
    """Measures when widths are first asked for; with several steps, later ones read the same curves."""

    def __init__(self, task: PruneTask, method: str, rng: Rng):
        self._task, self._rng = task, rng
        self._data = task.require_data(method)
        self._curves: list[Curve] = []
        self._seconds = 0.0

    def losses(self, allocator: Allocator, scores: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Loss of every unit at each of its levels."""
        if not self._curves:
            began = time.perf_counter()
            network, objective = self._task.network, self._data.objective or Objective()
            seed = self._rng.child("calibration").integer() >> 1
            calibration = calibrate(network, self._data, samples=CALIBRATION_SAMPLES, seed=seed)
            size, rng = affordable_samples(network, SAMPLES, 1, MEMORY_BYTES), self._rng.child("batch")
            with rng.torch_global():
                stream = self._data.train.batches(size, device=network.device, rng=rng)
                batch = next(iter(stream), None)
            if batch is None:
                raise ConfigError("the training split gave no batch")
            self._curves = sensitivities(network, calibration, allocator.units, scores, batch, objective)
            self._seconds = time.perf_counter() - began
        return [curve.at(unit.ratios()) for curve, unit in zip(self._curves, allocator.units, strict=True)]

    def details(self) -> dict[str, Any]:
        """What the record says: the curve of every unit, and the seconds."""
        curves = [{k: list(v) for k, v in dataclasses.asdict(curve).items()} for curve in self._curves]
        return {"sensitivity": {"curves": curves, "seconds": round(self._seconds, 2)}}
