"""Sensitivity: how far the outputs move when one unit alone gets narrower, its consumers solved in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from metaprune.calibration.batches import affordable_samples, judged_batches
from metaprune.calibration.calibrate import calibrate_on
from metaprune.calibration.closed_form import ClosedForm, OutputLoss
from metaprune.calibration.config import SHARES
from metaprune.core.rng import Rng
from metaprune.data import Data
from metaprune.data.loader_split import replayed
from metaprune.network import Network
from metaprune.objective import Objective
from metaprune.objective.batch import batch_size_of
from metaprune.search.allocate import top
from metaprune.search.units import Unit
from metaprune.values import Plan, Space

LEAST = 1e-4  # loss that a cut is taken to cost at least, once measured
SAMPLES, LEAST_SAMPLES, LEAST_ITEMS = 192, 16, 256
MACS = 1e12  # of all measurements of the curves together: some minutes on one core
CALIBRATION_SAMPLES = 512
MEMORY_BYTES = 2**30


@dataclass(frozen=True)
class Curve:
    """Loss of one unit alone: its groups, the shares of their widths that were tried, and the divergence there."""

    groups: tuple[str, ...]
    shares: tuple[float, ...]
    losses: tuple[float, ...]

    def at(self, ratios: np.ndarray) -> np.ndarray:
        """Interpolate the loss at shares of the width: a power of the share that is dropped, between what was measured.

        Straight lines would put every optimum where two of them meet. Nothing was measured near an empty group: its
        loss is taken to be three times the last one.
        """
        if not self.shares:  # nothing to choose
            return np.zeros(len(ratios))
        if self.shares == (0.0,):  # a branch: there or not
            return np.where(np.asarray(ratios) > 0, 0.0, max(self.losses[0], LEAST))
        dropped = np.log([*(1 - share for share in self.shares), 1.0])
        losses = np.maximum.accumulate([max(loss, LEAST) for loss in self.losses])
        logs = np.log([*losses, 3 * losses[-1]])
        power = np.clip((logs[1] - logs[0]) / (dropped[1] - dropped[0]), 1, 3)  # towards the full width
        at = np.log(np.maximum(1 - np.asarray(ratios), 1e-9))
        inside = np.exp(np.interp(at, dropped, logs))
        return np.where(at < dropped[0], np.exp(logs[0] + power * (at - dropped[0])), inside)


def curve_samples(network: Network, items: float = 1.0, shares: Sequence[float] = SHARES) -> int:
    """Choose how many samples curves are measured on: 192, fewer where that would take over 1e12 MACs or 1 GiB.

    Every group costs a forward pass per share. 16 samples are measured whatever they take, unless they do not fit;
    fewer where these hold 256 items.

    Args:
        items: what the objective's loss is a mean over, per sample: tokens of a sequence, pixels of a map.
    """
    passes = len(shares) * max(1, len(network.space))
    wanted = int(MACS / (passes * max(1, network.cost().macs)))
    least = min(LEAST_SAMPLES, math.ceil(LEAST_ITEMS / max(1.0, items)))
    return affordable_samples(network, min(SAMPLES, max(least, wanted)), 1, MEMORY_BYTES)


def output_loss(network: Network, data: Data, rng: Rng, shares: Sequence[float] = SHARES) -> OutputLoss:
    """Draw training samples to solve with and others to judge on, and make what says the loss of a plan on them.

    Raises:
        DataError: too few training samples.
    """
    objective, draw, train = data.objective or Objective(), rng.child("samples"), data.train
    with replayed(train, draw):
        inputs, target = next(iter(train.batches(1, device=network.device, rng=draw)))
    samples = curve_samples(network, objective.items(target) / batch_size_of(inputs), shares)
    batch, others = judged_batches(network, train, samples, CALIBRATION_SAMPLES, draw)
    calibration = calibrate_on(network, others, rng.child("calibration"))
    return OutputLoss(ClosedForm(network, calibration), batch, objective)


def sensitivities(
    space: Space,
    loss_of: Callable[[Plan], float],
    units: Sequence[Unit],
    scores: Sequence[np.ndarray],
    shares: Sequence[float] = SHARES,
) -> list[Curve]:
    """Measure every unit alone at a few shares of its width.

    Args:
        loss_of: what a plan costs, as `OutputLoss` says it.
        scores: one array [width] per group; the highest stay.
        shares: of the width, in 0..1; of each unit, the nearest that it may take.
    """
    curves = []
    for unit in units:
        ratios = unit.ratios()
        levels = sorted({int(np.argmin(np.abs(ratios - share))) for share in shares} - {len(ratios) - 1}, reverse=True)
        losses = []
        for level in levels:
            masks = [np.ones(g.width, dtype=bool) for g in space]
            for g, width in zip(unit.groups, unit.levels[level], strict=True):
                masks[g] = top(scores[g], int(width))
            losses.append(loss_of(Plan.of(space, masks)))
        names = tuple(space.groups[g].name for g in unit.groups)
        curves.append(Curve(names, tuple(float(ratios[i]) for i in levels), tuple(losses)))
    return curves
