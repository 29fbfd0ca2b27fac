"""The metanetwork: message passing over dense blocks of edges, and the rewrite it decodes.

Equivariant by construction: it knows nodes by their features and edges only, so that a permutation of the channels of
any group permutes its output. The decoders start at zero: an untrained metanetwork rewrites nothing.

form = "paper" is the update of Y. Liu et al. 2025 as read in their code (product messages, multiplicative edge update);
form = "gated" is ours: edges get an additive part, are normalised before use, and messages are normalised too. Typed
inputs, kernels placed by their centre, the rewrite relative to each tensor's size and the strength input are ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from metaprune.core.errors import ConfigError
from metaprune.methods.metagraph.config import MetanetConfig
from metaprune.methods.metagraph.kernels import SLOTS
from metaprune.methods.metagraph.network_graph import MAX_FEATURES, Attribute, Edges, NetworkGraph
from metaprune.methods.metagraph.operators import ACTIVATIONS

EDGE_KINDS = ("conv", "grouped", "linear", "identity", "product", "head")
NORM_KINDS = ("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm")
VECTORS = ("weight", "bias", "running_mean", "running_var")
ATTRIBUTE_KINDS = (
    *(f"{norm}.{vector}" for norm in NORM_KINDS for vector in VECTORS),
    "bias",
    "scale",
    "other",
    "embedding.weight",
)
SITE_KINDS = ("conv", "linear", "norm", "add", "input", "head", "embedding")
_EDGE_META, _SITE_META = len(EDGE_KINDS) + 4, len(SITE_KINDS) + len(ACTIVATIONS) + 2
_SMALLEST_RMS, _TINY = 1e-3, 1e-12
_MANY_BYTES = 2e9


class Graph:
    """One network's graph with its weights, ready for a metanetwork of `dtype`: scaled to unit size, and typed."""

    def __init__(self, network_graph: NetworkGraph, tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.float32):
        self.network_graph = network_graph
        self.values = [v.to(dtype) for v in network_graph.values(tensors)]
        if not self.values:
            raise ConfigError(f"no parameter of this network is in its graph: {', '.join(network_graph.uncovered)}")
        device = self.values[0].device
        self.scales = [_rms(v) for v in self.values]
        deepest = max([s.depth for s in network_graph.sites], default=0) or 1
        depth = torch.zeros(network_graph.nodes)
        meta = torch.zeros(network_graph.nodes, _SITE_META)
        for site in network_graph.sites:
            rows = slice(site.first, site.first + site.size)
            depth[rows] = site.depth / deepest
            meta[rows, SITE_KINDS.index(_site_kind(site.kind))] = 1
            meta[rows, len(SITE_KINDS) + ACTIVATIONS.index(site.activation)] = 1
            meta[rows, -2], meta[rows, -1] = site.depth / deepest, math.log2(max(site.size, 1)) / 8
        self.node_meta = meta.to(device, dtype)
        edges = [e for e in network_graph.edges if e.count]
        weighted = {id(p): i for i, p in enumerate(network_graph.parts())}
        self.edges = [(e, weighted.get(id(e))) for e in edges]
        self.edge_meta = [self._edge_meta(e, i, depth).to(device, dtype) for e, i in self.edges]
        self.ends = [(e.out.to(device), e.into.to(device)) for e, _ in self.edges]
        self.attributes = [
            (p, i) for i, p in enumerate(network_graph.parts()) if isinstance(p, Attribute) and len(p.nodes)
        ]

    def _edge_meta(self, e: Edges, index: int | None, depth: Tensor) -> Tensor:
        kind = torch.zeros(len(EDGE_KINDS))
        kind[EDGE_KINDS.index(e.kind)] = 1
        features = 1 if e.slots is None else len(e.slots)
        scale = 0.0 if index is None else math.log(float(self.scales[index])) / 4
        rest = [math.log2(e.stride), scale, math.log2(e.into.shape[1] * features) / 8, float(depth[e.out].mean())]
        return torch.cat([kind, torch.tensor(rest)])


def _rms(value: Tensor) -> Tensor:
    if not value.numel():
        return torch.ones((), device=value.device)
    return value.square().mean().sqrt().clamp_min(_SMALLEST_RMS)


def _site_kind(kind: str) -> str:
    if kind in NORM_KINDS:
        return "norm"
    if kind.startswith("conv"):
        return "conv"
    return kind if kind in SITE_KINDS else "linear"


class Metanet(nn.Module):
    """forward(graph, strength) -> new values, one per part of the network_graph.

    strength: how hard the network is going to be pruned, 0 (not at all) to 1.
    """

    def __init__(self, config: MetanetConfig):
        super().__init__()
        h = config.hidden
        self.config = config
        self.kernel_in = nn.Parameter(torch.randn(SLOTS, h) / math.sqrt(9))
        self.edge_type = nn.Linear(_EDGE_META, h)
        self.vector_in = nn.Parameter(torch.randn(len(ATTRIBUTE_KINDS), h) / 2)
        self.vector_type = nn.Parameter(torch.randn(len(ATTRIBUTE_KINDS), 2, h) / 2)
        self.entry = nn.Parameter(torch.cat([torch.ones(1, h), torch.randn(MAX_FEATURES // 4 - 1, h)]))
        self.node_type = nn.Linear(_SITE_META, h)
        self.strength = nn.Linear(2, h)
        self.rounds = nn.ModuleList(_ROUNDS[config.form](h) for _ in range(config.layers))
        self.edge_out, self.node_out = nn.Linear(h, h), nn.Linear(h, h)
        self.kernel_add = nn.Parameter(torch.zeros(SLOTS, h))
        self.kernel_scale = nn.Linear(h, 1)
        self.vector_add = nn.Parameter(torch.zeros(len(ATTRIBUTE_KINDS), h))
        self.vector_scale = nn.Parameter(torch.zeros(len(ATTRIBUTE_KINDS), h))
        nn.init.zeros_(self.kernel_scale.weight)
        nn.init.zeros_(self.kernel_scale.bias)

    def forward(self, graph: Graph, strength: float) -> list[Tensor]:
        nodes, vectors = self._nodes(graph, strength)
        edges = [self._edge(graph, i) for i in range(len(graph.edges))]
        again = self.config.checkpointing
        if again is None:
            again = self.config.kept_bytes(graph.network_graph.edge_count) > _MANY_BYTES
        for one in self.rounds:
            if again and self.training:
                nodes, *edges = checkpoint(self._round, one, nodes, graph.ends, *edges, use_reentrant=False)  # type: ignore[misc]
            else:
                nodes, *edges = self._round(one, nodes, graph.ends, *edges)
        return self._decoded(graph, nodes, edges, vectors)

    @staticmethod
    def _round(one: nn.Module, nodes: Tensor, ends: Sequence[Any], *edges: Tensor) -> tuple[Tensor, ...]:
        nodes, edges = one(nodes, list(edges), ends)
        return (nodes, *edges)

    def _nodes(self, graph: Graph, strength: float) -> tuple[Tensor, list[Tensor]]:
        given = graph.node_meta.new_tensor([strength, strength**2])
        nodes = self.node_type(graph.node_meta) + self.strength(given)
        vectors = []
        for attribute, i in graph.attributes:
            kind = ATTRIBUTE_KINDS.index(attribute.kind)
            value, scale = graph.values[i] / graph.scales[i], graph.scales[i].log() / 4
            row = value @ (self.entry[: value.shape[1]] * self.vector_in[kind])
            row = row + self.vector_type[kind, 0] + scale * self.vector_type[kind, 1]
            vectors.append(row)
            nodes = nodes.index_add(0, attribute.nodes.to(nodes.device), row)
        return nodes, vectors

    def _edge(self, graph: Graph, position: int) -> Tensor:
        """State [blocks, outputs, inputs, hidden] of a block of edges."""
        (edges, i), kind = graph.edges[position], self.edge_type(graph.edge_meta[position])
        if i is None:
            blocks, outputs, inputs = *edges.out.shape, edges.into.shape[1]
            return kind.expand(blocks, outputs, inputs, -1)
        return (graph.values[i] / graph.scales[i]) @ self.kernel_in[edges.slots] + kind

    def _decoded(self, graph: Graph, nodes: Tensor, edges: list[Tensor], vectors: list[Tensor]) -> list[Tensor]:
        new, rho = list(graph.values), self.config.rho
        for (block, i), state in zip(graph.edges, edges, strict=True):
            if i is None:
                continue
            hidden = functional.silu(self.edge_out(functional.layer_norm(state, state.shape[-1:])))
            add = hidden @ self.kernel_add[block.slots].t()
            new[i] = new[i] + rho * (graph.scales[i] * add + new[i] * self.kernel_scale(hidden))
        nodes = functional.layer_norm(nodes, nodes.shape[-1:])
        for (attribute, i), row in zip(graph.attributes, vectors, strict=True):
            if not attribute.written:
                continue
            kind = ATTRIBUTE_KINDS.index(attribute.kind)
            hidden = functional.silu(self.node_out(nodes[attribute.nodes.to(nodes.device)] + row))
            add = hidden @ (self.vector_add[kind] * self.entry[: new[i].shape[1]]).t()
            scale = (hidden @ self.vector_scale[kind])[:, None]
            new[i] = new[i] + rho * (graph.scales[i] * add + new[i] * scale)
        if self.config.keep_norms:
            weights = [i for _, i in graph.edges if i is not None]
            weights += [i for attribute, i in graph.attributes if attribute.kind.endswith("weight")]
            for i in weights:
                new[i] = new[i] * (graph.values[i].norm() / new[i].norm().clamp_min(_TINY))
        return new


class _Messages(nn.Module):
    """Mean, spread, largest and smallest of what comes in along all edges of a node, in one direction."""

    def __init__(self, hidden: int):
        super().__init__()
        self.source, self.target = (nn.Linear(hidden, hidden) for _ in range(2))
        self.combine = nn.Linear(4 * hidden, hidden)

    def forward(
        self, nodes: Tensor, edges: list[Tensor], ends: Sequence[tuple[Tensor, Tensor]], dim: int, sign: Tensor
    ) -> Tensor:
        """dim: the dimension of the edges that is summed over (2: towards outputs, 1: towards inputs)."""
        source, target = functional.silu(self.source(nodes)) * sign, functional.silu(self.target(nodes))
        messages: list[list[Tensor]] = []
        for state, (out, into) in zip(edges, ends, strict=True):
            sender, receiver = (into, out) if dim == 2 else (out, into)
            reduced = _Reduced.apply(state, source[sender], dim)
            messages.append([receiver.reshape(-1), receiver.new_full((receiver.numel(),), sender.shape[1]), *reduced])
        to, counts, total, squares, highest, lowest = (torch.cat(f) for f in zip(*messages, strict=True))
        wide, zeros = to[:, None].expand_as(total), torch.zeros_like(nodes)
        count = nodes.new_zeros(len(nodes)).index_add(0, to, counts.to(nodes.dtype))[:, None].clamp_min(1)
        mean = zeros.index_add(0, to, total) / count
        spread = (zeros.index_add(0, to, squares) / count - mean.square()).clamp_min(1e-5).sqrt()
        highest = zeros.scatter_reduce(0, wide, highest, "amax", include_self=False)
        lowest = zeros.scatter_reduce(0, wide, lowest, "amin", include_self=False)
        return self.combine(torch.cat([target * f for f in (mean, spread, highest, lowest)], dim=1))


class _Reduced(torch.autograd.Function):
    """Sum, sum of squares, largest and smallest of state [b, o, i, h] * source [b, n, h] along `dim`, each [b * m, h].

    The product, as large as all states together, is not kept but made again in the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, state: Tensor, source: Tensor, dim: int) -> tuple[Tensor, ...]:
        product = state * source.unsqueeze(3 - dim)
        (highest, at_highest), (lowest, at_lowest) = product.max(dim), product.min(dim)
        ctx.save_for_backward(state, source, at_highest, at_lowest)
        ctx.dim = dim
        reduced = product.sum(dim), product.square_().sum(dim), highest, lowest
        return tuple(f.flatten(0, 1) for f in reduced)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        state, source, at_highest, at_lowest = ctx.saved_tensors
        dim, wide = ctx.dim, source.unsqueeze(3 - ctx.dim)
        total, squares, highest, lowest = (g.view_as(at_highest).unsqueeze(dim) for g in grads)
        grad = (state * wide).mul_(2 * squares).add_(total)
        grad.scatter_add_(dim, at_highest.unsqueeze(dim), highest).scatter_add_(dim, at_lowest.unsqueeze(dim), lowest)
        return grad * wide, (grad * state).sum(3 - dim), None


class _Round(nn.Module):
    """What both forms share: nodes hear from both directions, edges from their two ends."""

    def __init__(self, hidden: int):
        super().__init__()
        self.messages = _Messages(hidden)
        self.into, self.out = (nn.Linear(hidden, hidden) for _ in range(2))
        sign = torch.ones(hidden)
        sign[hidden // 2 :] = -1
        self.register_buffer("sign", sign, persistent=False)

    def heard(self, nodes: Tensor, edges: list[Tensor], ends: Sequence[Any]) -> Tensor:
        """nodes are normalised. Half of the state changes its sign against the direction, as in the paper."""
        return self.messages(nodes, edges, ends, 2, torch.ones_like(self.sign)) + self.messages(
            nodes, edges, ends, 1, self.sign
        )


class _PaperRound(_Round):
    def forward(self, nodes: Tensor, edges: list[Tensor], ends: Sequence[Any]) -> tuple[Tensor, list[Tensor]]:
        n = functional.layer_norm(nodes, nodes.shape[-1:])
        into, out = functional.silu(self.into(n)), functional.silu(self.out(n))
        new = []
        for e, (o, i) in zip(edges, ends, strict=True):
            both = into[i][:, None] * out[o][:, :, None] + into[o][:, :, None] * out[i][:, None]
            new.append(e * (1 + both))
        return nodes + self.heard(n, edges, ends), new


class _GatedRound(_Round):
    def __init__(self, hidden: int):
        super().__init__(hidden)
        self.add_into, self.add_out = (nn.Linear(hidden, hidden) for _ in range(2))

    def forward(self, nodes: Tensor, edges: list[Tensor], ends: Sequence[Any]) -> tuple[Tensor, list[Tensor]]:
        n = functional.layer_norm(nodes, nodes.shape[-1:])
        used = [functional.rms_norm(e, e.shape[-1:]) for e in edges]
        into, out, add_into, add_out = self.into(n), self.out(n), self.add_into(n), self.add_out(n)
        new = []
        for e, u, (o, i) in zip(edges, used, ends, strict=True):
            gate = torch.tanh(into[i][:, None] + out[o][:, :, None])
            new.append(e + u * gate + add_into[i][:, None] + add_out[o][:, :, None])
        return nodes + self.heard(n, used, ends), new


_ROUNDS = {"gated": _GatedRound, "paper": _PaperRound}
