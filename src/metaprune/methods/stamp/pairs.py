"""Gates per pair of an output and an input of a layer: variant `filter`. What is kept are masks of weights.

A pair is weight[output, input, *kernel] of a linear layer or a convolution: all kernel positions together, of a linear
layer a single weight, of a depthwise convolution a channel. The form of the gates is ours, as all of STAMP's is. The
network keeps its shape: group sparsity brings no dense speed-up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metaprune.core.errors import ConfigError
from metaprune.methods.gating.distributions import PRIORS
from metaprune.methods.stamp.generator import MaskGenerator, Part
from metaprune.methods.stamp.learner import Learner
from metaprune.methods.stamp.reader import Head
from metaprune.methods.weight_masks.method import MaskedLayers, layer_groups
from metaprune.protocol.method import PruneTask
from metaprune.values import Budget, Plan, Proposal

_RANK = 4
_STRIP, _SAMPLED = 100, 20_000  # probabilities of a layer, and kept pairs, that the record holds at most


class PairLayers(MaskedLayers):
    """Weights whose pairs have gates: of all linear layers and convolutions but the head, which is new for every set.

    layers: all of them, whatever the constraints, so that an artifact serves any. names: those that are masked.
    """

    def __init__(self, task: PruneTask):
        super().__init__(task, Plan(), None)
        self.groups = layer_groups(self.network)
        head = Head.of(self.network).weight
        self.layers = [n for n in self.matrices if n in self.groups and n != head]
        self.names = [n for n in self.names if n in self.layers]
        if not self.names:
            raise ConfigError(
                "stamp.variant='filter' has nothing to mask: beside the head, the constraints leave no linear layer "
                "and no convolution. Relax ignore and only, or take variant='weights', which prunes channels"
            )

    def shape(self, name: str) -> tuple[int, int]:
        """Outputs and inputs (of one group)."""
        return self.sizes[name][0], self.sizes[name][1]

    def positions(self, name: str) -> int:
        """Count the weights of a pair."""
        return math.prod(self.sizes[name][2:])

    def spread(self, pairs: Tensor, name: str) -> Tensor:
        """[outputs * inputs] -> the weight's shape, the same at all kernel positions; a view."""
        size = self.sizes[name]
        return pairs.view(*size[:2], *[1] * (len(size) - 2)).expand(size)

    def least(self) -> int:
        """Count the weights in one pair of every tensor."""
        return sum(self.positions(n) for n in self.names)


class PairGenerator(MaskGenerator):
    """Gates [outputs, inputs] of every layer from vectors of its outputs and inputs, not one value per pair.

    A layer's network gives every output o a vector u(o) and a number a(o), every input i a vector v(i) and b(i):
    raw[o, i] = bias[o, i] + slope[o, i] * share + a(o) + b(i) + (u(o) . t(i) + s(o) . v(i)) / sqrt(rank), with learned
    vectors s, t that are the same for all data sets. u(o) . v(i) would be even in what is known of the set: its mean
    over data sets is not zero, so that the pressure to drop, which all share, could saturate it (see MaskGenerator).
    """

    def __init__(self, layers: PairLayers, widths: Sequence[int], tapped: set[int], features: int, **options: Any):
        """options: as of MaskGenerator."""
        self.shapes = [layers.shape(n) for n in layers.layers]
        parts = [
            Part(math.prod(shape), sum(shape) * (_RANK + 1), _groups_of(layers, n))
            for n, shape in zip(layers.layers, self.shapes, strict=True)
        ]
        super().__init__(widths, tapped, features, parts=parts, **options)
        self.active = [layers.layers.index(n) for n in layers.names]
        values = len(PRIORS[options["prior"]].start(options["keep"]))
        self.vectors = nn.ParameterDict(
            {number: nn.Parameter(torch.randn(sum(self.shapes[int(number)]), _RANK, values)) for number in self.bodies}
        )

    def gates_from(self, number: int, values: Tensor) -> Tensor:
        """Raw gates [outputs * inputs, parameters of a gate]."""
        outputs = self.shapes[number][0]
        fixed = self.vectors[str(number)]
        given = values.view(len(fixed), _RANK + 1, -1)
        (u, v), (s, t) = given[:, :_RANK].tensor_split([outputs]), fixed.tensor_split([outputs])
        a, b = given[:, _RANK].tensor_split([outputs])
        products = torch.einsum("ork,irk->oik", u, t) + torch.einsum("ork,irk->oik", s, v)
        return (a[:, None] + b + products / _RANK**0.5).flatten(0, 1)


def _groups_of(layers: PairLayers, name: str) -> tuple[int, ...]:
    """Channel groups of a weight's inputs and outputs."""
    space = layers.network.space
    groups = [
        g
        for dim in (1, 0)
        for g, group in enumerate(space)
        if any(m.parameter == name and m.dim == dim for m in group.members)
    ]
    return tuple(dict.fromkeys(groups))


class PairLearner(Learner):
    """The network runs whole, its weights multiplied by the gates of their pairs; the price is of nonzero weights."""

    def __init__(self, layers: PairLayers, *arguments: Any):
        """arguments: as of Learner."""
        super().__init__(*arguments)
        self.layers = layers
        self._full = int(self.network.cost().params)
        self._fixed = self._full - sum(math.prod(layers.sizes[n]) for n in layers.names)

    @property
    def gates(self) -> int:
        return sum(math.prod(self.layers.shape(n)) for n in self.layers.names)

    def run(
        self, tensors: Mapping[str, Tensor], gates: Sequence[Tensor], args: tuple, kwargs: Mapping[str, Any]
    ) -> Any:
        pairs = zip(self.layers.names, gates, strict=True)
        under = {n: tensors[n] * self.layers.spread(gate, n).to(tensors[n].dtype) for n, gate in pairs}
        return self.network.at().execute(args, kwargs, tensors={**tensors, **under}, training=True)

    def expected_share(self, probabilities: Sequence[Tensor]) -> Tensor:
        pairs = zip(self.layers.names, probabilities, strict=True)
        return (self._fixed + torch.stack([self.layers.positions(n) * p.sum() for n, p in pairs]).sum()) / self._full


class Pairs:
    """One gate per pair of every masked layer."""

    def __init__(self, task: PruneTask):
        self.task, self.layers = task, PairLayers(task)
        self.identity = {"masked": self.layers.names}

    def generator(self, *arguments: Any, **options: Any) -> PairGenerator:
        return PairGenerator(self.layers, *arguments, **options)

    def learner(self, *arguments: Any) -> PairLearner:
        return PairLearner(self.layers, *arguments)

    def slack(self, budget: Budget) -> bool:
        """Tell whether the network without masks meets `budget`. Raises what `WeightMasks.require_feasible` raises."""
        return self.layers.room(budget, "filter") == sum(math.prod(self.layers.sizes[n]) for n in self.layers.names)

    def best(self, budget: Budget, probabilities: Sequence[np.ndarray]) -> Proposal:
        """Keep the most probable pairs that fit."""
        positions = [self.layers.positions(n) for n in self.layers.names]
        return self._masked(most_probable(probabilities, positions, self.layers.room(budget, "filter")))

    def above(self, threshold: float, probabilities: Sequence[np.ndarray]) -> Proposal:
        """Keep the pairs that are more probable than `threshold`, and the most probable one of every layer."""
        masks = [p > threshold for p in probabilities]
        for mask, p in zip(masks, probabilities, strict=True):
            mask[p.argmax()] = True
        return self._masked(masks)

    def _masked(self, kept_pairs: Sequence[np.ndarray]) -> Proposal:
        device, layers = self.task.network.device, self.layers
        masks = {
            n: layers.spread(torch.from_numpy(k), n).contiguous().to(device)
            for n, k in zip(layers.names, kept_pairs, strict=True)
        }
        whole = [n for n in layers.matrices if n not in layers.names]
        return Proposal(Plan(), details={"masks": {"pattern": "filter", "whole": whole}}, masks=masks)

    def figures(self, proposal: Proposal, probabilities: Sequence[np.ndarray]) -> dict[str, Any]:
        """Collect for the record every masked layer's group sparsity, sorted probabilities, and numbers of kept pairs.

        Of the probabilities of a layer 100 at most, and of all pairs every n-th, so that 20,000 are looked at.
        """
        rows, flat = [], []
        for name, mask in proposal.masks.items():
            pairs = mask.reshape(*self.layers.shape(name), -1)[..., 0].cpu()
            flat.append(pairs.flatten())
            by_group = pairs.view(self.layers.groups[name], -1, pairs.shape[1])
            rows.append(
                {
                    "name": name,
                    "pairs": pairs.numel(),
                    "zero": int((~pairs).sum()),
                    "empty_outputs": int((~pairs.any(dim=1)).sum()),
                    "empty_inputs": int((~by_group.any(dim=1)).sum()),
                }
            )
        every = torch.cat(flat).numpy()
        step = -(-len(every) // _SAMPLED)
        return {
            "pairs": {"sparsity": float((~every).mean()), "layers": rows},
            "kept": (step * np.flatnonzero(every[::step])).tolist(),
            "probabilities": {n: _strip(p) for n, p in zip(proposal.masks, probabilities, strict=True)},
        }


def most_probable(scores: Sequence[np.ndarray], positions: Sequence[int], room: int) -> list[np.ndarray]:
    """Masks of the pairs that score highest, within `room` weights: in order, then whatever still fits.

    Args:
        scores: [pairs] of every layer. positions: weights of a pair of every layer.

    Returns:
        bool [pairs] of every layer, at least one pair of each; ties go to the earlier layer and the lower number.
    """
    raised = [s.astype(np.float64) for s in scores]
    for s in raised:
        s[s.argmax()] = np.inf  # the best of a layer stays: without any, nothing passes
    counts = [len(s) for s in scores]
    order = np.argsort(-np.concatenate(raised), kind="stable")
    weights = np.repeat(positions, counts)[order]
    within = np.cumsum(weights) <= room
    left = room - int(weights[within].sum())
    while (fits := ~within & (weights <= left)).any():  # fewer times than a pair has weights
        first = int(fits.argmax())
        within[first] = True
        left -= int(weights[first])
    mask = np.zeros(len(order), dtype=bool)
    mask[order[within]] = True
    return np.split(mask, np.cumsum(counts)[:-1])


def _strip(probabilities: np.ndarray) -> list[float]:
    """Highest first, evenly spaced ones of many."""
    places = np.linspace(0, len(probabilities) - 1, min(len(probabilities), _STRIP)).round().astype(int)
    return [round(float(p), 4) for p in -np.sort(-probabilities)[places]]
