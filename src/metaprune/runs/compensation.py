"""Compensation as a step of a run: with which samples, and where it has nothing to do."""

from __future__ import annotations

import warnings

from metaprune.calibration.batches import affordable_samples, calibration_batches
from metaprune.calibration.compensate import SIDES, Compensation, compensate
from metaprune.core.errors import DataError, NoEffectWarning
from metaprune.core.rng import Rng
from metaprune.data.types import NO_SAMPLES
from metaprune.runs.prepare import Prepared
from metaprune.values import Proposal

SAMPLES = 1024
MEMORY_BYTES = 2**31


def compensated(prepared: Prepared, proposal: Proposal, rng: Rng) -> Compensation | None:
    """Solve for new weights of a proposal; None where none are asked for, or the method brings its own.

    Raises:
        DataError: too few training samples.
    """
    network, data, kind = prepared.network, prepared.data, prepared.compensate
    if kind == "none" or data is None:
        return None
    if proposal.weights is not None or proposal.masks:
        what = "masks of single weights" if proposal.masks else "weights of its own"
        warnings.warn(f"method {prepared.method.name!r} brings {what}: they are left as they are", NoEffectWarning, 4)
        return None
    if not proposal.plan.keep:
        return None
    if data.train is NO_SAMPLES:
        raise DataError(f"data {data.name!r} has no train split: compensation reads training samples")
    samples = affordable_samples(network, SAMPLES, SIDES, MEMORY_BYTES)
    batches = calibration_batches(network, data.train, samples, rng.child("samples"))
    return compensate(network, proposal.plan, batches, kind=kind, rng=rng)
