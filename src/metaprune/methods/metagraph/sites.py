"""`Sites`: what `wire` writes while it walks the graph; nodes get their numbers when all sites are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from metaprune.graph.labels import Label
from metaprune.methods.metagraph.channel_ids import ChannelIds, match_channels
from metaprune.methods.metagraph.network_graph import Attribute, Edges, Site


@dataclass(frozen=True, eq=False)
class Part:
    """Some nodes of a site (all of them, until something slices them), with their keys."""

    site: int
    nodes: np.ndarray
    keys: np.ndarray


class Sites:
    """Sites in the order they are met, the parts of them that values carry, edges and attributes."""

    def __init__(self) -> None:
        self.keys = ChannelIds()
        self.sites: list[Site] = []
        self.parts: list[Part] = []
        self.edges: list[Edges] = []
        self.attributes: list[Attribute] = []
        self.same: dict[int, Tensor] = {}  # site that was joined to another -> the nodes it became

    def numbers(self) -> Tensor:
        """New number of every node, after sites were joined."""
        total = sum(s.size for s in self.sites)
        number = torch.full((total,), -1)
        count = 0
        for i, site in enumerate(self.sites):
            if i not in self.same:
                number[site.first : site.first + site.size] = torch.arange(count, count + site.size)
                count += site.size
        for i in reversed(list(self.same)):  # what was joined last may be joined to something itself
            site = self.sites[i]
            number[site.first : site.first + site.size] = number[self.same[i]]
        return number

    def site(self, name: str, kind: str, size: int, final: Label, before: Sequence[int]) -> int:
        """Add a site; return the part that is all of it."""
        first = self.sites[-1].first + self.sites[-1].size if self.sites else 0
        depth = 1 + max((self.site_of(i).depth for i in before), default=-1)
        self.sites.append(Site(name, kind, first, size, final, depth))
        return self.part(len(self.sites) - 1, np.arange(first, first + size), self.keys.of(final, size))

    def part(self, site: int, nodes: np.ndarray, keys: np.ndarray) -> int:
        self.parts.append(Part(site, nodes, keys))
        return len(self.parts) - 1

    def site_of(self, part: int) -> Site:
        return self.sites[self.parts[part].site]

    def nodes_of(self, part: int) -> Tensor:
        return torch.from_numpy(self.parts[part].nodes)

    def positions(self, parts: Sequence[int], keys: np.ndarray, flattened: bool = False) -> np.ndarray:
        """Node of every key among the parts, or -1; see `places`."""
        at = match_channels(keys, [self.parts[i].keys for i in parts], flattened)
        nodes = np.concatenate([self.parts[i].nodes for i in parts] or [np.empty(0, dtype=np.int64)])
        return np.where(at >= 0, nodes[at], -1) if len(nodes) else at

    def identity(self, before: Sequence[int], part: int, kind: str) -> None:
        """Add one edge per channel that a site takes over from those before."""
        positions = self.positions(before, self.parts[part].keys)
        rows = np.flatnonzero(positions >= 0)
        site = self.site_of(part)
        site.depth = max([site.depth, *(self.site_of(i).depth + 1 for i in before)])
        self.pair(site.name, kind, self.nodes_of(part)[rows], torch.from_numpy(positions[rows]))

    def pairs(self, a: Sequence[int], b: Sequence[int]) -> None:
        """Connect channels that are multiplied with one another."""
        for part in a:
            positions = self.positions([i for i in b if i != part], self.parts[part].keys)
            rows = np.flatnonzero(positions >= 0)
            self.pair(self.site_of(part).name, "product", self.nodes_of(part)[rows], torch.from_numpy(positions[rows]))

    def pair(self, name: str, kind: str, out: Tensor, into: Tensor) -> None:
        if len(out):
            self.edges.append(Edges(name, kind, out[:, None], into[:, None]))

    def join(self, keep: int, join: int) -> bool:
        """Let two sites be one, if they have the same channels."""
        a, b = self.site_of(keep), self.site_of(join)
        positions = self.positions([keep], self.parts[join].keys)
        if a is b or (positions < 0).any() or not len(positions) == a.size == b.size == len(self.parts[keep].nodes):
            return False
        self.same[self.parts[join].site] = torch.from_numpy(positions)
        a.depth = max(a.depth, b.depth)
        return True
