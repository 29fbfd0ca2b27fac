"""What reads a group's channels: the layers that sum over them, with what a calibration recorded there.

A channel is one or more inputs of a reader: all positions behind a Flatten, all dimensions of a head.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from metaprune.calibration.calibrate import Calibration, Consumption
from metaprune.calibration.products import Product, find_products
from metaprune.calibration.sums import branch_of
from metaprune.elastic.gated import label_at
from metaprune.graph.call import Survivors
from metaprune.network import Network
from metaprune.values import ChannelGroup, Plan


@dataclass(frozen=True)
class Reader:
    """A layer that sums over the channels of a group, at the widths of a plan.

    Attributes:
        rows: where every channel is among the layer's inputs, int64 [channels, n]; -1 for nowhere.
        matrix: its weight, float64 [conv groups, outputs, inputs, kernel positions].
        seen: what it is multiplied with.
        takes_mean: whether a bias or a BatchNorm behind it makes up for the mean of what goes.
        is_layer: False for what stands for an operator without weights.
    """

    rows: Tensor
    matrix: Tensor
    seen: Consumption
    takes_mean: bool
    is_layer: bool = True

    def by_channel(self, values: Tensor) -> Tensor:
        """Sum values [conv groups, inputs] over the rows of every channel: [channels]."""
        padded = torch.cat([values.sum(0), values.new_zeros(1)])  # -1 reads the zero
        return padded[self.rows].sum(1)

    def by_input(self, moment: Tensor) -> Tensor:
        """Lay a moment [channels of the input] out as [conv groups, inputs]."""
        return moment.reshape(len(self.matrix), -1)


def readers_of(network: Network, calibration: Calibration, plan: Plan) -> list[list[Reader]]:
    """Find the readers of every group.

    Layers with weights; where there are none, operators without (attention), as if weights of one read each channel.
    None at all where nothing sums over the group.
    """
    alive, tensors = network.survivors(plan), network.at(plan).tensors
    products = {p.weight: p for p in find_products(network)[0].values()}
    found: list[list[Reader]] = []
    for group, mask in zip(network.space, plan.masks(network.space), strict=True):
        readers = []
        for member in group.members:
            product = products.get(member.parameter)
            if product is not None and member.dim == 1 - product.out_dim:
                seen, weight = calibration.of_weight(member.parameter), tensors[member.parameter].detach()
                label = network.labelled.parameters[member.parameter][member.dim]
                rows = _ranks(member.rows[mask], alive, label).to(weight.device)
                readers.append(Reader(rows, _matrix(product, weight, seen), seen, _takes_mean(product, network)))
        found.append(readers or _without_weights(network, calibration, group, mask, alive))
    return found


def _matrix(product: Product, weight: Tensor, seen: Consumption) -> Tensor:
    """A weight as [conv groups, outputs, inputs, kernel positions]."""
    inputs = weight.shape[1 - product.out_dim]
    groups = len(seen.mean) // inputs
    return product.matrix(weight, groups).double().reshape(groups, -1, inputs, weight[0, 0].numel())


def _takes_mean(product: Product, network: Network) -> bool:
    return product.bias is not None or branch_of(product.node, network).norm is not None


def _ranks(rows: np.ndarray, alive: Survivors, label: np.ndarray | None) -> Tensor:
    """Rows of the full network as those of the cut one; -1 where another group's channel is gone."""
    if label is None or not alive.cut(label):
        return torch.from_numpy(rows)
    survive = np.append(alive.rows(label), False)  # -1 reads the last entry
    return torch.from_numpy(np.where(survive[rows], (np.cumsum(survive) - 1)[rows], -1))


def _without_weights(
    network: Network, calibration: Calibration, group: ChannelGroup, mask: np.ndarray, alive: Survivors
) -> list[Reader]:
    """Stand-ins for the operators without weights that sum over a group: weights of one."""
    first = int(network.space.widths[: network.space.index[group.name]].sum())
    readers = []
    for node in network.captured.graph.nodes:
        place = next(iter(network.gated.carriers.get(node.name, ())), None)
        seen = calibration.places.get(node.name)
        if place is None or seen is None:
            continue
        at, slots = np.nonzero((place.slots >= first) & (place.slots < first + group.width))
        if not len(at):
            continue
        channels = place.slots[at, slots] - first
        each = [at[channels == c] for c in np.flatnonzero(mask)]
        rows = np.array([[*own, *[-1] * (max(map(len, each)) - len(own))] for own in each])
        ranks = _ranks(rows, alive, label_at(network.labelled, node, place.where))
        ones = torch.ones(1, 1, len(seen.mean), 1, dtype=torch.float64, device=seen.mean.device)
        readers.append(Reader(ranks.to(ones.device), ones, seen, takes_mean=False, is_layer=False))
    return readers
