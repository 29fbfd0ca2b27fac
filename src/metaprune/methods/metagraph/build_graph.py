"""`build_network_graph`: one pass over a traced graph that finds its sites, edges and attributes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from metaprune.graph.call import alias_kind, bound_arguments
from metaprune.graph.captured import module_of, op_name
from metaprune.graph.labels import Label
from metaprune.graph.roles import HEADS, KV_HEADS
from metaprune.graph.rules.elementwise import is_pointwise
from metaprune.graph.shapes import TensorValue
from metaprune.methods.metagraph.kernels import folded, taps_of
from metaprune.methods.metagraph.network_graph import MAX_FEATURES, Attribute, Edges, NetworkGraph
from metaprune.methods.metagraph.operators import (
    ADDS,
    CASTS,
    CONVS,
    LINEAR,
    MATRICES,
    NORMS,
    PRODUCTS,
    SLICES,
    SMOOTH,
    VECTORS,
)
from metaprune.methods.metagraph.sites import Sites
from metaprune.network import Network


@dataclass(frozen=True)
class Constant:
    """Entries of one parameter or buffer, reached by views only: positions has the value's shape."""

    name: str
    positions: Tensor


@dataclass(frozen=True)
class Value:
    """What is known of a node's result.

    Attributes:
        parts: indices of the sites whose channels it carries, in the order of production.
        open: only a norm lies between the value and its layer.
        own: the value is computed from the model's tensors alone, not from the data.
        constant: which entries of which tensor it is, where that is known.
    """

    parts: tuple[int, ...] = ()
    open: bool = False
    own: bool = False
    constant: Constant | None = None
    pieces: tuple[int, ...] = ()  # of an operator with several results, the part of each


def build_network_graph(network: Network) -> NetworkGraph:
    """Build the graph of a traced network.

    Never fails: parameters that no rule places are listed in `NetworkGraph.uncovered`, channels that no rule follows
    become nodes without a producer, in `NetworkGraph.breaks`.
    """
    return _Builder(network).build()


class _Builder(Sites):
    def __init__(self, network: Network):
        super().__init__()
        self.network, self.captured, self.labelled = network, network.captured, network.labelled
        self.values: dict[fx.Node, Value] = {}
        self.breaks: list[str] = []
        self.seen = {n: torch.zeros(t.numel(), dtype=torch.bool) for n, t in network.tensors.items()}

    def build(self) -> NetworkGraph:
        for node in self.captured.graph.nodes:
            self.values[node] = self._value(node)
        self._heads()
        number = self.numbers()
        sites, first = [], 0
        for i, site in enumerate(self.sites):
            if i not in self.same:
                sites.append(replace(site, first=first))
                first += site.size
        edges = tuple(replace(e, out=number[e.out], into=number[e.into]) for e in self.edges)
        attributes = tuple(replace(a, nodes=number[a.nodes]) for a in self.attributes)
        left = {n: int((~self.seen[n]).sum()) for n, t in self.network.tensors.items() if isinstance(t, nn.Parameter)}
        left = {n: k for n, k in left.items() if k}
        return NetworkGraph(tuple(sites), edges, attributes, first, left, tuple(dict.fromkeys(self.breaks)))

    # ------------------------------------------------------------------------------------------ values

    def _value(self, node: fx.Node) -> Value:
        if node.op == "placeholder":
            name = self.captured.sources.get(node.name)
            if name is None:
                return Value()
            tensor = self.captured.tensors[name]
            return Value(own=True, constant=Constant(name, torch.arange(tensor.numel()).view(tensor.shape)))
        if node.op != "call_function":
            return Value(own=node.op == "get_attr")
        inputs = [self.values[n] for n in node.all_input_nodes if isinstance(n.meta.get("val"), TensorValue)]
        if inputs and all(v.own for v in inputs):
            return Value(own=True, constant=self._derived(node))
        name, bound = op_name(node.target), bound_arguments(node)
        if name in (*CONVS, *MATRICES, "embedding") and (layer_value := self._layer(node, name, bound)) is not None:
            return layer_value
        if name in NORMS:
            return self._norm(node, name, bound)
        if name in SLICES and (layer_value := self._sliced(node, bound)) is not None:
            return layer_value
        if name == "getitem" and (pieces := self.values[node.args[0]].pieces):  # type: ignore[index]
            return Value((pieces[node.args[1]],))  # type: ignore[index]
        return self._other(node, name)

    def _derived(self, node: fx.Node) -> Constant | None:
        """Views are done to the positions; what has the parameter's shape (a standardised weight) is taken for it."""
        known = [c for n in node.all_input_nodes if (c := self.values[n].constant) is not None]
        if not known:
            return None
        name = op_name(node.target)
        shape = self._shape(node)
        if name in CASTS:
            return known[0]
        if alias_kind(node.target) == "view" or name in ("reshape", "clone"):
            if shape is None:
                return None
            if name in ("view_as", "reshape_as"):
                first = self.values[node.args[0]].constant  # type: ignore[index]
                return None if first is None else Constant(first.name, first.positions.reshape(shape))
            if len(node.all_input_nodes) > 1:
                return None
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda _: known[0].positions)
            derived = node.target(*args, **kwargs)  # type: ignore[operator]
            return Constant(known[0].name, derived) if isinstance(derived, Tensor) else None
        return next((c for c in known if tuple(c.positions.shape) == shape), None)

    def _shape(self, node: fx.Node) -> tuple[int, ...] | None:
        value = node.meta.get("val")
        return self.captured.concrete(value) if isinstance(value, TensorValue) else None

    def _label(self, node: fx.Node, dim: int, result: int = 0) -> Label:
        """Final label of one dimension of an operator's result."""
        labels = self.labelled.facts[node.name].labels
        raw = labels[result][dim] if labels and labels[result] is not None else None  # type: ignore[index]
        return None if raw is None else self.labelled.atoms.final(raw)

    def _sliced(self, node: fx.Node, bound: dict[str, Any]) -> Value | None:
        """Parts of the channels: packed queries, keys, values, halves of a gated layer; None for other dimensions."""
        x = next(iter(bound.values()))
        value, shape, dim = self.values[x], self._shape(x), bound["dim"]
        if not value.parts or shape is None or not self._holds_channels(x, dim % len(shape)):
            return None
        positions = self.positions(value.parts, self.keys.of(self._label(x, dim), shape[dim]))
        if (positions < 0).any() or len(np.unique(positions)) < len(positions):
            return None
        flat = torch.from_numpy(positions).view([-1 if d == dim % len(shape) else 1 for d in range(len(shape))])
        args = [flat if a is x else a for a in node.args]
        if any(isinstance(a, fx.Node) for a in args[1:]):
            return None
        out = node.target(*args, **node.kwargs)  # type: ignore[operator]
        several = isinstance(out, (list, tuple))
        pieces = []
        for i, piece in enumerate(out if several else [out]):
            nodes = piece.reshape(-1).numpy()
            site = int(np.searchsorted([s.first for s in self.sites], nodes[0], side="right")) - 1
            pieces.append(self.part(site, nodes, self.keys.of(self._label(node, dim, i), len(nodes))))
        return Value(pieces=tuple(pieces)) if several else Value(tuple(pieces))

    # ------------------------------------------------------------------------------------------ layers

    def _layer(self, node: fx.Node, name: str, bound: dict[str, Any]) -> Value | None:
        """A product of the data with weights: a new site, its edges and its bias. None if it is something else."""
        x, weight, bias = self._operands(name, bound)
        if x is None or self.values[x].own or not self.values[weight].own:
            return None
        shape, out_shape = self._shape(weight), self._shape(node)
        if shape is None or out_shape is None or len(shape) < 2:  # a linear layer of one output without a dimension
            return None
        spatial = len(shape) - 2 if name in CONVS else 0
        dim = len(out_shape) - spatial - 1
        into = None if name == "embedding" else self._inputs(node, x, spatial)
        site = self.site(module_of(node) or name, name, out_shape[dim], self._label(node, dim), self.values[x].parts)
        constant = self.values[weight].constant
        if name == "embedding":
            if constant is not None:
                self._attribute(f"{name}.weight", constant, site, constant.positions.t())
        elif constant is not None and into is not None:
            self._kernel(node, name, bound, into, constant, shape, site)
        if (
            isinstance(bias, fx.Node)
            and (constant_bias := self.values[bias].constant) is not None
            and constant_bias.positions.dim() == 1
        ):
            self._attribute("bias", constant_bias, site, constant_bias.positions[:, None])
        return Value((site,), open=True)

    def _inputs(self, node: fx.Node, x: fx.Node, spatial: int) -> Tensor:
        """Nodes of the channels that a layer reads; what comes from nowhere (the network's input) gets its own."""
        value, shape = self.values[x], self._shape(x)
        assert shape is not None
        dim = len(shape) - spatial - 1
        final = self._label(x, dim)
        positions = self.positions(value.parts, self.keys.of(final, shape[dim]), flattened=not spatial)
        missing = np.flatnonzero(positions < 0)
        if len(missing):
            if value.parts and len(missing) == len(positions):
                self.breaks.append(module_of(node) or node.name)
            site = self.site(x.name, "input", len(missing), None if final is None else final[missing], ())
            self.values[x] = Value((*value.parts, site), value.open, value.own, value.constant)
            positions[missing] = self.parts[site].nodes
        return torch.from_numpy(positions)

    def _operands(self, name: str, bound: dict[str, Any]) -> tuple[Any, Any, Any]:
        """(data, weight, bias)."""
        if name == "embedding":
            return bound["indices"], bound["weight"], None
        if name in CONVS or name == "linear":
            return bound["input"], bound["weight"], bound["bias"]
        arguments = list(bound.values())
        bias, (x, weight) = (arguments[0], arguments[1:3]) if name == "addmm" else (None, arguments[:2])
        return (x, weight, bias) if len(self._shape(weight) or ()) == 2 else (None, None, None)

    def _kernel(
        self,
        node: fx.Node,
        name: str,
        bound: dict[str, Any],
        into: Tensor,
        constant: Constant,
        shape: tuple[int, ...],
        site: int,
    ) -> None:
        """Edges of a layer: its weights as [groups, outputs, inputs, kernel]."""
        transposed = name.startswith("conv_transpose") or bool(bound.get("transposed"))
        groups, kernel = bound.get("groups") or 1, int(np.prod(shape[2:], dtype=int)) if name in CONVS else 1
        outputs, into = len(self.parts[site].nodes) // groups, into.reshape(groups, -1)
        size, stride = shape[2:] if name in CONVS else (), bound.get("stride")
        stride = max(stride) if isinstance(stride, (list, tuple)) and stride else 1
        out = self.nodes_of(site).reshape(groups, outputs)
        kind = ("grouped" if groups > 1 else "conv") if name in CONVS else "linear"
        p = constant.positions
        if tuple(p.shape) != shape:
            return
        if transposed:
            p = p.reshape(groups, into.shape[1], outputs, kernel).transpose(1, 2)
        elif name in ("matmul", "mm", "addmm"):
            p = p.t().reshape(1, outputs, -1, 1)
        else:
            p = p.reshape(groups, outputs, -1, kernel)
        into, p = folded(into, p)
        taps = p.shape[3]
        if taps > MAX_FEATURES or not self._claim(constant.name, p):
            return
        slots = taps_of(size if taps == kernel else (), taps)
        title = module_of(node) or constant.name
        self.edges.append(Edges(title, kind, out, into, constant.name, p.contiguous(), slots, stride))

    def _claim(self, name: str, positions: Tensor) -> bool:
        """Whether these entries are in the graph for the first time: tied weights are encoded once."""
        seen, flat = self.seen[name], positions.reshape(-1)
        if seen[flat].any() or len(flat.unique()) < len(flat):  # the latter: windows that overlap
            return False
        seen[flat] = True
        return True

    def _attribute(
        self, kind: str, constant: Constant, site: int, positions: Tensor, nodes: Tensor | None = None
    ) -> None:
        """positions [n, features], one row per node of the site (or of `nodes`)."""
        nodes = self.nodes_of(site) if nodes is None else nodes
        tensor = self.network.tensors[constant.name]
        fits = len(positions) == len(nodes) and positions.shape[1] <= MAX_FEATURES // 4 and tensor.is_floating_point()
        if fits and self._claim(constant.name, positions):
            written = isinstance(tensor, nn.Parameter)
            self.attributes.append(Attribute(kind, nodes, constant.name, positions.contiguous(), written))

    def _norm(self, node: fx.Node, name: str, bound: dict[str, Any]) -> Value:
        """Belongs to the layer it follows; where others read the same value, it gets nodes of its own."""
        x = bound["input"]
        value, shape = self.values[x], self._shape(node)
        assert shape is not None
        held = {n: self.values[bound[n]].constant for n in VECTORS if isinstance(bound.get(n), fx.Node)}
        known = {n: c for n, c in held.items() if c is not None and c.positions.dim() == 1}
        dim = len(shape) - 1 if name in ("layer_norm", "rms_norm") else 1
        if not known or len(next(iter(known.values())).positions) != shape[dim]:
            return Value(value.parts, value.open and _alone(x))
        if len(value.parts) == 1 and _alone(x) and len(self.parts[value.parts[0]].nodes) == shape[dim]:
            site = value.parts[0]
        else:
            site = self.site(module_of(node) or name, name, shape[dim], self._label(node, dim), value.parts)
            self.identity(value.parts, site, "identity")
        for vector, constant in known.items():
            self._attribute(f"{name}.{vector}", constant, site, constant.positions[:, None])
        return Value((site,), value.open and _alone(x))

    # ------------------------------------------------------------------------------------------ everything else

    def _other(self, node: fx.Node, name: str) -> Value:
        data = [n for n in node.all_input_nodes if not self.values[n].own and self.values[n].parts]
        joined = self._joined(node, name, data)
        for operand in node.all_input_nodes:
            constant = self.values[operand].constant
            if constant is not None and joined.parts and (is_pointwise(node.target) or name in (*ADDS, "cat", "prelu")):
                self._vector(node, "scale" if name.startswith("mul") else "other", constant, joined.parts)
        name = name.removesuffix("_")
        if is_pointwise(node.target) and len(data) == 1 and len(node.all_input_nodes) == 1 and name in SMOOTH:
            for site in (self.sites[self.parts[i].site] for i in joined.parts):
                if site.activation == "none":
                    site.activation = SMOOTH[name]
        return joined

    def _joined(self, node: fx.Node, name: str, data: list[fx.Node]) -> Value:
        sites = tuple(dict.fromkeys(s for n in data for s in self.values[n].parts))
        if len(data) < 2:
            open_ = bool(data) and self.values[data[0]].open and _alone(data[0])
            return Value(sites, open_ and (name in LINEAR or alias_kind(node.target) == "view"))
        if name in PRODUCTS:
            self.pairs(self.values[data[0]].parts, self.values[data[1]].parts)
            return Value(self.values[data[-1]].parts if name == "scaled_dot_product_attention" else sites)
        if not is_pointwise(node.target) and name not in ADDS:
            return Value(sites)
        a, b = (self.values[n] for n in data[:2])
        if set(a.parts) <= set(b.parts) or set(b.parts) <= set(a.parts):
            return Value(sites)
        if name not in ADDS:
            self.pairs(a.parts, b.parts)
            return Value(a.parts if len(a.parts) >= len(b.parts) else b.parts)
        return self._added(node, (a, data[0]), (b, data[1]))

    def _added(self, node: fx.Node, *operands: tuple[Value, fx.Node]) -> Value:
        """Layers that are only summed share their nodes; what is read elsewhere too comes by identity edges."""
        straight = [v.parts[0] for v, n in operands if v.open and _alone(n) and len(v.parts) == 1]
        if len(straight) == 2 and self.join(*straight):
            return Value((straight[0],), open=True)
        if not straight:
            shape, dim = self._shape(node), self._channel_dim(node)
            assert shape is not None
            straight = [self.site(module_of(node) or "add", "add", shape[dim], self._label(node, dim), ())]
        for value, _ in operands:
            if straight[0] not in value.parts:
                self.identity(value.parts, straight[0], "identity")
        return Value((straight[0],))

    def _channel_dim(self, node: fx.Node) -> int:
        """The first labelled dimension after the batch, or else where images have their channels."""
        shape = self._shape(node)
        assert shape is not None
        labelled = [d for d in range(1, len(shape)) if self._label(node, d) is not None]
        return labelled[0] if labelled else min(1, len(shape) - 1) if len(shape) != 3 else 2

    def _holds_channels(self, node: fx.Node, dim: int) -> bool:
        """Pixels and tokens have no labels, as locked channels have none, and may be as many."""
        return self._label(node, dim) is not None or dim == self._channel_dim(node)

    def _vector(self, node: fx.Node, kind: str, constant: Constant, parts: Sequence[int]) -> None:
        """A parameter that meets the data: the dimension that is a site's channels makes it an attribute."""
        out, p = self._shape(node), constant.positions
        if out is None or p.dim() > len(out):
            return
        for dim in range(p.dim()):
            there = len(out) - p.dim() + dim
            if p.shape[dim] == 1 or p.shape[dim] != out[there] or not self._holds_channels(node, there):
                continue
            positions = self.positions(parts, self.keys.of(self._label(node, there), p.shape[dim]))
            if (positions >= 0).all() and len(np.unique(positions)) == len(positions):
                rows = p.movedim(dim, 0).reshape(p.shape[dim], -1)
                self._attribute(kind, constant, parts[-1], rows, torch.from_numpy(positions))
                return

    # ------------------------------------------------------------------------------------------ sites

    def _heads(self) -> None:
        """A node per attention head, joined to the channels of its queries, keys and values."""
        for group in self.network.space:
            if group.role not in (HEADS, KV_HEADS):
                continue
            head = self.site(group.name, "head", group.width, group.atoms[:, None], ())
            for i in range(self.parts[head].site):
                final = self.sites[i].final
                if i in self.same or final is None or final.shape[1] < 2:
                    continue
                rows, columns = np.nonzero(np.isin(final, group.atoms))
                of = np.searchsorted(np.sort(group.atoms), final[rows, columns])
                of = np.argsort(group.atoms)[of]
                if len(rows) and len(rows) % group.width == 0 and (np.bincount(of) == len(rows) // group.width).all():
                    into = self.sites[i].first + rows[np.argsort(of, kind="stable")].reshape(group.width, -1)
                    out = self.nodes_of(head)[:, None]
                    self.site_of(head).depth = max(self.site_of(head).depth, self.sites[i].depth)
                    self.edges.append(Edges(self.sites[i].name, "head", out, torch.from_numpy(into)))


def _alone(node: fx.Node) -> bool:
    """Whether one operator only reads the value (its sizes do not count)."""
    return sum(u.op == "call_function" and "sym_size" not in str(u.target) for u in node.users) <= 1
