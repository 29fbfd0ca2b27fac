"""Network <-> graph: channels are nodes, pairs of channels that share weights are edges, whatever the architecture.

A *site* is a layer's output: one node per channel. Layers whose outputs are added before anything else reads them share
one site; what an addition carries on is an identity edge. An *attribute* is a vector over the nodes of a site
(normalisation weights, biases, statistics); an *edge block* is dense: all pairs of `into` and `out` nodes, with the
flattened kernel as features. Everything holds positions in the model's tensors, so that encoding is a gather, decoding
a scatter, and each element of a covered parameter is found exactly once (`positions` themselves prove it).

Nodes that are channels and edges that carry kernels are Y. Liu et al.'s (arXiv 2506.12041, 2025); reading all of it off
the channel algebra, and the nodes of attention heads, are ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metaprune.graph.call import Survivors

MAX_FEATURES = 256
"""Values of one parameter per node or edge; what has more (position tables, large vocabularies) is not covered."""


@dataclass(eq=False)
class Site:
    """Nodes first .. first + size - 1, one per channel of a layer's output.

    kind: the operator that made it. final: [size, k] atoms of every channel; None where all are locked.
    """

    name: str
    kind: str
    first: int
    size: int
    final: np.ndarray | None
    depth: int = 0
    activation: str = "none"


@dataclass(frozen=True, eq=False)
class Edges:
    """`blocks` dense blocks of one layer: `out` [blocks, outputs] and `into` [blocks, inputs] are node numbers.

    positions: int64 [blocks, outputs, inputs, features] in `parameter`, flattened; None for edges without weights.
    slots: [features] where in the kernel each feature lies, see `taps`.
    """

    name: str
    kind: str
    out: Tensor
    into: Tensor
    parameter: str | None = None
    positions: Tensor | None = None
    slots: Tensor | None = None
    stride: int = 1

    @property
    def count(self) -> int:
        return self.out.shape[0] * self.out.shape[1] * self.into.shape[1]


@dataclass(frozen=True, eq=False)
class Attribute:
    """A tensor over nodes [n]: positions int64 [n, features]. Statistics are read and never written."""

    kind: str
    nodes: Tensor
    parameter: str
    positions: Tensor
    written: bool = True


@dataclass(frozen=True, eq=False)
class NetworkGraph:
    """The graph of a network. Holds no weights: `values` reads them, `written` puts them back."""

    sites: tuple[Site, ...]
    edges: tuple[Edges, ...]
    attributes: tuple[Attribute, ...]
    nodes: int
    uncovered: Mapping[str, int] = field(default_factory=dict)
    """Parameter -> elements that are in no node or edge, and pass as they are."""
    breaks: tuple[str, ...] = ()
    """Layers that read channels which come from others, nobody knows how: an operator without a rule lies between."""

    @property
    def edge_count(self) -> int:
        return sum(e.count for e in self.edges)

    def counts(self) -> dict[str, dict[str, int]]:
        """Nodes by what made them, edges by kind, attributes by kind."""
        nodes, edges, attributes = Counter[str](), Counter[str](), Counter[str]()
        for site in self.sites:
            nodes[site.kind] += site.size
        for e in self.edges:
            edges[e.kind] += e.count
        for a in self.attributes:
            attributes[a.kind] += len(a.nodes)
        return {"nodes": dict(nodes), "edges": dict(edges), "attributes": dict(attributes)}

    def drawn(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Sites, and blocks of edges between pairs of them, as plain data for a drawing."""
        site_of = torch.cat([torch.full((s.size,), i) for i, s in enumerate(self.sites)])
        sites = [{"name": s.name, "kind": s.kind, "nodes": s.size, "depth": s.depth} for s in self.sites]
        edges = []
        for e in self.edges:
            ends = [torch.unique(site_of[side]).tolist() for side in (e.into, e.out)]
            edges += [{"kind": e.kind, "count": e.count, "into": i, "out": o} for i in ends[0] for o in ends[1]]
        return sites, edges

    def parts(self) -> list[Edges | Attribute]:
        """List all that carries weights, in a fixed order."""
        return [*(e for e in self.edges if e.positions is not None), *self.attributes]

    def values(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        """Copies of the weights, one [..., features] per part."""
        return [tensors[p.parameter].detach().reshape(-1)[_on(p, tensors)] for p in self.parts()]  # type: ignore[index]

    def written(self, tensors: Mapping[str, Tensor], values: list[Tensor]) -> dict[str, Tensor]:
        """Return `tensors` with `values` in place, differentiable in `values`; the given tensors stay as they are."""
        rewritten_tensors = dict(tensors)
        flat: dict[str, Tensor] = {}
        for part, value in zip(self.parts(), values, strict=True):
            if isinstance(part, Attribute) and not part.written:
                continue
            name = part.parameter
            assert name is not None
            before = flat.get(name, tensors[name].detach().reshape(-1))
            flat[name] = before.scatter(0, _on(part, tensors).reshape(-1), value.reshape(-1).to(before.dtype))
        return rewritten_tensors | {name: value.view(tensors[name].shape) for name, value in flat.items()}

    def at(self, alive: Survivors | None) -> NetworkGraph:
        """Cut the graph to the structure that survives; positions still are those of the full tensors."""
        if alive is None:
            return self
        stays = torch.ones(self.nodes, dtype=torch.bool)
        for site in self.sites:
            if site.final is not None:
                stays[site.first : site.first + site.size] = torch.from_numpy(alive.rows_of(site.final))
        number = torch.cumsum(stays, 0) - 1
        sites, first = [], 0
        for site in self.sites:
            mask = stays[site.first : site.first + site.size].numpy()
            final = None if site.final is None else site.final[mask]
            sites.append(replace(site, first=first, size=int(mask.sum()), final=final))
            first += int(mask.sum())
        edges = tuple(_cut_edges(e, stays, number) for e in self.edges)
        attributes = tuple(_cut_attribute(a, stays, number) for a in self.attributes)
        return replace(self, sites=tuple(sites), edges=edges, attributes=attributes, nodes=first)


def _on(part: Edges | Attribute, tensors: Mapping[str, Tensor]) -> Tensor:
    assert part.positions is not None and part.parameter is not None
    return part.positions.to(tensors[part.parameter].device)


def _cut_edges(e: Edges, stays: Tensor, number: Tensor) -> Edges:
    """Blocks stay rectangular: a channel of a grouped layer goes in all groups or with its whole group."""
    out, into = stays[e.out], stays[e.into]
    blocks = out.any(1) & into.any(1)
    if not blocks.any():
        return replace(e, out=e.out[:0], into=e.into[:0], positions=None if e.positions is None else e.positions[:0])
    rows, columns = out[blocks][0], into[blocks][0]
    if not (out[blocks] == rows).all() or not (into[blocks] == columns).all():
        raise AssertionError(f"{e.name}: blocks lose different channels")
    positions = None if e.positions is None else e.positions[blocks][:, rows][:, :, columns]
    out, into = number[e.out[blocks][:, rows]], number[e.into[blocks][:, columns]]
    return replace(e, out=out, into=into, positions=positions)


def _cut_attribute(a: Attribute, stays: Tensor, number: Tensor) -> Attribute:
    mask = stays[a.nodes]
    return replace(a, nodes=number[a.nodes[mask]], positions=a.positions[mask])
