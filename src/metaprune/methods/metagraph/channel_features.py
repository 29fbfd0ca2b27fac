"""What a scoring rule knows of a channel: how far readers, loss and cost depend on it, by calibration on any network.

All features are the same for networks that compute the same: a channel that is multiplied by a positive number behind
a ReLU, and divided by it where it is read, has the features that it had; so has a convolution that is scaled before its
BatchNorm. For that, what a reader sees and what it gives is brought to one size. Features of a channel are logarithms
of shares of its group's mean, and features of a group are centred over groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from metaprune.calibration.calibrate import calibrate
from metaprune.core.rng import Rng
from metaprune.methods.criteria.calibrated import mean_share
from metaprune.methods.criteria.obs import elimination, unexplained
from metaprune.methods.criteria.readers import Reader, readers_of
from metaprune.methods.criteria.scores import require_finite
from metaprune.methods.criteria.taylor import first_order_changes
from metaprune.protocol.method import PruneTask
from metaprune.values import Plan

OF_CHANNELS = (
    "taylor",  # squared first-order change of the loss, per sample, were the channel zero
    "taylor about mean",  # the same, were it its mean, which a bias or a BatchNorm can take up
    "energy",  # second moment times squared weights that read it
    "variance",  # the same about the mean
    "mean",  # the same of the mean alone
    "norm",  # root mean square times absolute weights
    "unexplained",  # error of the readers without it, the other channels solved anew
    "elimination",  # the same, all cheaper channels being gone
)
OF_GROUPS = (
    "level of taylor",
    "level of taylor about mean",
    "level of unexplained",
    "width",
    "macs",  # that a channel costs
    "depth",
    "stream",
    "attention or experts",
)
SAMPLES, BATCHES = 512, 4
RIDGE = 1e-2  # of what an input strays
FLOOR = 1e-4  # of the group's mean: what is less counts as much
LEAST = 1e-30


@dataclass(frozen=True)
class Features:
    """Features of all channels of a network.

    Attributes:
        of_channels: float64 [width, len(OF_CHANNELS)] per group.
        of_groups: float64 [groups, len(OF_GROUPS)].
    """

    of_channels: Sequence[np.ndarray]
    of_groups: np.ndarray


def channel_features(task: PruneTask, rng: Rng) -> Features:
    """Calibrate the full network on 512 training samples, take gradients on four batches, read the features off.

    Raises:
        WeightsError: activations or gradients that are not finite. DataError: too few samples.
    """
    network, data = task.network, task.require_data("metagraph")
    calibration = calibrate(network, data, samples=SAMPLES, seed=rng.child("calibration").integer() >> 1)
    means = {name: place.mean for name, place in calibration.places.items()}
    changes = [first_order_changes(task, Plan(), BATCHES, rng.child("gradients"), about) for about in (None, means)]
    read = [
        _of_readers(readers, g.width)
        for g, readers in zip(network.space, readers_of(network, calibration, Plan()), strict=True)
    ]
    raw = [np.stack([*parts], axis=1) for parts in zip(*changes, strict=True)]
    raw = [np.concatenate([gradients, others], axis=1) for gradients, others in zip(raw, read, strict=True)]
    require_finite(all(np.isfinite(r).all() for r in raw))
    return Features([_log_shares(r) for r in raw], _of_groups(task, raw))


def _of_readers(readers: Sequence[Reader], width: int) -> np.ndarray:
    """What the readers of a group say of its channels, float64 [width, 6]; ones where there are none."""
    if not readers:
        return np.ones((width, len(OF_CHANNELS) - 2))

    readers = [_unit(reader) for reader in readers]

    def shares(moment: str, power: int = 2) -> Tensor:
        return mean_share([_read(r, moment, power) for r in readers])

    energy, variance, norm = shares("second"), shares("variance"), shares("second", 1)
    parts = [energy, variance, shares("mean"), norm, unexplained(readers, RIDGE), elimination(readers, RIDGE)]
    return torch.stack(parts, dim=1).cpu().numpy()


def _unit(reader: Reader) -> Reader:
    """Scale what a reader sees, and its outputs, to one size: layers before and behind may scale them as they like."""
    seen = reader.seen
    moment = seen.variance.maximum(FLOOR * seen.second) if reader.takes_mean else seen.second
    scale = torch.where(moment > 0, moment.sqrt(), 1.0)
    per_input = reader.by_input(scale)
    entries = per_input.repeat_interleave(reader.matrix.shape[3], dim=1)  # [conv groups, K]
    gram = None if seen.gram is None else seen.gram / (entries[:, :, None] * entries[:, None])
    inputs = None if seen.inputs is None else seen.inputs / entries
    scaled = replace(seen, mean=seen.mean / scale, second=seen.second / scale.square(), gram=gram, inputs=inputs)
    matrix = reader.matrix * reader.by_input(moment.sqrt())[:, None, :, None]  # 0 where nothing is seen
    weights, apart = matrix.flatten(2), matrix.square().sum((2, 3))
    energy = apart if gram is None else ((weights @ gram) * weights).sum(2).maximum(1e-6 * apart)  # beyond round-off
    return replace(reader, seen=scaled, matrix=matrix / energy.clamp(min=LEAST).sqrt()[..., None, None])


def _read(reader: Reader, moment: str, power: int) -> Tensor:
    """Sum over a reader's weights of |weight|^power times the moment's root to that power: [channels]."""
    weights = (reader.matrix.abs() ** power).sum((1, 3))
    seen = reader.seen.mean.square() if moment == "mean" else getattr(reader.seen, moment)
    return reader.by_channel(reader.by_input(seen).sqrt() ** power * weights)


def _log_shares(raw: np.ndarray) -> np.ndarray:
    """Logarithms of each column as shares of its mean, as plain criteria are normalised."""
    return np.log(raw / np.maximum(raw.mean(0), LEAST) + FLOOR)


def _of_groups(task: PruneTask, raw: Sequence[np.ndarray]) -> np.ndarray:
    """Features of groups, centred over groups."""
    space = task.network.space
    means = np.log(np.maximum([r.mean(0)[[0, 1, 6]] for r in raw], LEAST)).reshape(len(space), 3)
    means = np.maximum(means, means.max(0, initial=-np.inf) + 2 * np.log(FLOOR))
    roles = np.array([g.role for g in space])
    columns = [
        *means.T,
        np.log(space.widths),
        np.log(_macs_of_channels(task)),
        np.linspace(-0.5, 0.5, len(space)),
        roles == "stream",
        ~np.isin(roles, ("stream", "hidden")),
    ]
    groups = np.stack(columns, axis=1).astype(np.float64)
    return groups - groups.mean(0)


def _macs_of_channels(task: PruneTask) -> np.ndarray:
    """MACs that the last channel of every group costs in the full network, at least one: [groups]."""
    widths = task.network.space.widths
    one_less = np.maximum(widths - np.eye(len(widths), dtype=np.int64), 1)
    costs = task.network.cost_model()
    saved = float(costs.of_widths(widths).macs) - np.asarray(costs.of_widths(one_less).macs, dtype=np.float64)
    return np.maximum(saved, 1.0)
