"""Sensitivity: how far the outputs move when one unit alone gets narrower, its consumers solved in closed form.

BatchNorm statistics are the dense ones, moved by what the cut changed on the batch, so that no cut costs nothing. With
other statistics in the dense network, every first cut would seem to cost the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metaprune.calibration.calibrate import Calibration
from metaprune.calibration.moments import Moments
from metaprune.calibration.products import Product, find_products
from metaprune.elastic.batchnorm import OneBatch
from metaprune.network import Network
from metaprune.objective import Objective
from metaprune.objective.batch import call_arguments
from metaprune.search.allocate import top
from metaprune.search.units import Unit
from metaprune.values import Plan

SHARES = (0.75, 0.5, 0.25)
RIDGE = 1e-2  # of the mean diagonal of the Gram matrix
LEAST = 1e-4  # loss that a cut is taken to cost at least, once measured


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
        dropped = np.log([*(1 - share for share in self.shares), 1.0])
        losses = np.maximum.accumulate([max(loss, LEAST) for loss in self.losses])
        logs = np.log([*losses, 3 * losses[-1]])
        power = np.clip((logs[1] - logs[0]) / (dropped[1] - dropped[0]), 1, 3)  # towards the full width
        at = np.log(np.maximum(1 - np.asarray(ratios), 1e-9))
        inside = np.exp(np.interp(at, dropped, logs))
        return np.where(at < dropped[0], np.exp(logs[0] + power * (at - dropped[0])), inside)


@torch.no_grad()
def sensitivities(
    network: Network,
    calibration: Calibration,
    units: Sequence[Unit],
    scores: Sequence[np.ndarray],
    batch: tuple[Any, Any],
    objective: Objective,
) -> list[Curve]:
    """Measure every unit alone at a few shares of its width, on one (inputs, target) batch.

    Args:
        scores: one array [width] per group; the highest stay.
        objective: says how far two outputs are apart, by `distillation`; the target is only passed on to it.
    """
    args, kwargs = call_arguments(batch[0])
    products, _ = find_products(network)

    statistics = OneBatch()
    dense = network.at().execute(args, kwargs, call=statistics.dense)

    def output(plan: Plan) -> Any:
        at = network.at(plan)
        tensors = closed_form(network, calibration, products, plan)
        call = statistics.cut(lambda t: network.sliced(at.survivors, tensors=t), tensors)
        return at.execute(args, kwargs, tensors=tensors, call=call)

    curves = []
    for unit in units:
        ratios = unit.ratios()
        levels = sorted({int(np.argmin(np.abs(ratios - share))) for share in SHARES} - {len(ratios) - 1}, reverse=True)
        losses = []
        for level in levels:
            masks = [np.ones(g.width, dtype=bool) for g in network.space]
            for g, width in zip(unit.groups, unit.levels[level], strict=True):
                masks[g] = top(scores[g], int(width))
            loss = objective.distillation(output(Plan.of(network.space, masks)), dense, batch[1], 1.0)
            losses.append(float(loss))
        names = tuple(network.space.groups[g].name for g in unit.groups)
        curves.append(Curve(names, tuple(float(ratios[i]) for i in levels), tuple(losses)))
    return curves


def closed_form(
    network: Network, calibration: Calibration, products: Mapping[str, Product], plan: Plan
) -> dict[str, Tensor]:
    """Tensors at the widths of a plan; what consumes dropped channels makes up for them, by dense Gram matrices alone.

    That is right where what stays is as it was: one unit is cut, and nothing before its consumers.
    """
    alive, labels = network.survivors(plan), network.labelled.parameters
    full: dict[str, Tensor] = {n: t.detach() for n, t in network.tensors.items()}
    for node, product in products.items():
        seen, label = calibration.places[node], labels[product.weight][1 - product.out_dim]
        if seen.gram is None or seen.inputs is None or len(seen.gram) != 1 or label is None or not alive.cut(label):
            continue
        weight = full[product.weight]
        matrix = product.matrix(weight, 1).to(seen.gram)
        entries = matrix.shape[-1] // len(label)
        kept = torch.from_numpy(alive.index(label)).to(weight.device)
        kept = (kept[:, None] * entries + torch.arange(entries, device=weight.device)).flatten()
        targets = (matrix @ seen.inputs[..., None])[..., 0]
        part = seen.gram[:, kept]
        moments = Moments(1, seen.inputs[:, kept], targets, part[..., kept], part @ matrix.mT, targets.square())
        solved = moments.ridge(matrix[..., kept], RIDGE, with_constant=True)
        if product.bias is not None:
            full[product.bias] = full[product.bias] + moments.intercept(solved).flatten().to(weight)
        changed = matrix.clone()
        changed[..., kept] = solved
        full[product.weight] = product.weight_of(changed, weight)
    return dict(network.sliced(alive, tensors=full))
