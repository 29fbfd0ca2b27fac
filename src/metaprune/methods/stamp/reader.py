"""What the mask generator sees of a data set: one pass of the frozen reference network over a sample of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from metaprune.core.errors import NotAvailableError
from metaprune.elastic.gated import Gated
from metaprune.elastic.program import Step
from metaprune.graph.call import bound_arguments
from metaprune.graph.captured import op_name
from metaprune.network import Network


@dataclass(frozen=True)
class Head:
    """The last linear layer. weight [classes, features]; bias [classes] or None; node: its operator in the graph."""

    weight: str
    bias: str | None
    node: str
    features: int

    @classmethod
    def of(cls, network: Network) -> Head:
        """Raises NotAvailableError if the last product of the network is no linear layer with weights of its own."""
        products = [n for n in network.captured.graph.nodes if network.labelled.facts[n.name].macs]
        sources, last = network.captured.sources, products[-1] if products else None
        if last is not None and op_name(last.target) == "linear":
            arguments = bound_arguments(last)
            weight, bias = arguments["weight"], arguments["bias"]
            if weight.name in sources and (bias is None or bias.name in sources):
                name = sources[weight.name]
                features = network.tensors[name].shape[1]
                return cls(name, None if bias is None else sources[bias.name], last.name, features)
        raise NotAvailableError(
            "stamp replaces the classifier for every data set, and this network does not end in a linear layer: wrap "
            "it in a module that ends in nn.Linear, or use a method such as taylor"
        )


@dataclass(frozen=True)
class SetView:
    """features: [B, F] before the head. pooled: [width] per group, mean |activation|; None where none is read."""

    features: Tensor
    pooled: list[Tensor | None]


@dataclass(frozen=True)
class _Tap:
    """Where a group lives in an operator's argument: row i of `dim` belongs to channel `channel[i]`, -1: to none."""

    group: int
    argument: str
    number: int  # of the argument among the operator's
    dim: int
    channel: np.ndarray


class Reader:
    """The frozen reference network, tapped where every group is first consumed. Gates and the head do not matter."""

    def __init__(self, network: Network, gated: Gated, head: Head, tensors: Mapping[str, Tensor]):
        self.network, self.head, self.tensors = network, head, tensors
        self._taps: dict[str, list[_Tap]] = {}
        open_groups = set(range(len(network.space)))
        ends = np.cumsum([0, *gated.widths])
        for node in network.captured.graph.nodes:
            for tap in self._taps_of(node, gated, ends) if node.name in gated.places else ():
                if tap.group in open_groups:
                    open_groups.discard(tap.group)
                    self._taps.setdefault(node.name, []).append(tap)

    def _taps_of(self, node: fx.Node, gated: Gated, ends: np.ndarray) -> list[_Tap]:
        wanted = set(np.concatenate([slot.slots.ravel() for slot in gated.places[node.name]]).tolist())
        taps = []
        for number, (argument, value) in enumerate(bound_arguments(node).items()):
            if not isinstance(value, fx.Node) or value.name in self.network.captured.sources:
                continue
            labels = self.network.labelled.facts[value.name].labels
            for dim, label in enumerate((labels[0] if labels else None) or []):
                slots = gated.slots(label)
                if slots is None:
                    continue
                for g in range(len(ends) - 1):
                    inside = (slots >= ends[g]) & (slots < ends[g + 1])
                    if inside.any() and wanted.intersection(slots[inside].tolist()):
                        channel = np.where(inside.any(axis=1), (slots * inside).max(axis=1) - ends[g], -1)
                        taps.append(_Tap(g, argument, number, dim, channel))
        return taps

    @torch.no_grad()
    def __call__(self, args: tuple, kwargs: Mapping[str, Any]) -> SetView:
        seen: dict[int, Tensor] = {}
        features: list[Tensor] = []

        def call(step: Step, a: list, k: dict) -> Any:
            name = step.node.name
            for tap in self._taps.get(name, ()):
                seen[tap.group] = _pooled(a[tap.number] if tap.number < len(a) else k[tap.argument], tap)
            if name == self.head.node:
                features.append(a[0])
            return step.target(*a, **k)

        self.network.at().execute(args, kwargs, tensors=self.tensors, call=call)
        return SetView(by_sample(features[0]), [seen.get(g) for g in range(len(self.network.space))])

    @property
    def tapped(self) -> set[int]:
        return {tap.group for taps in self._taps.values() for tap in taps}


def by_sample(features: Tensor) -> Tensor:
    """What enters the head as [B, F]: the mean over positions, where there are any."""
    return features if features.dim() == 2 else features.flatten(1, -2).mean(dim=1)


def _pooled(x: Tensor, tap: _Tap) -> Tensor:
    """Mean |x| of every channel over samples, positions and the channel's rows."""
    rows = x.abs().mean(dim=[d for d in range(x.dim()) if d != tap.dim])
    index = torch.from_numpy(tap.channel).to(x.device)
    rows, index = rows[index >= 0], index[index >= 0]
    count = torch.bincount(index)
    return torch.zeros(len(count), dtype=x.dtype, device=x.device).index_add_(0, index, rows) / count.clamp(min=1)
