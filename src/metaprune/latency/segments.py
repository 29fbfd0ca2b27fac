"""A traced graph in segments that are timed as one, and the sizes that the time of each depends on.

A segment is an operator that computes (convolution, linear, attention, addition, pool, ...) with the operators on one
input that follow it and are its only consumers (normalisation, activation) and with views, which cost nothing. The
time of a segment depends on the surviving sizes of its labelled dimensions: its axes. Segments of equal operators,
constants, shapes and axes have the same key and share one table.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx

from metaprune.cost.sizes import Polynomial, owners, polynomial_of, sizes_at
from metaprune.graph.call import Dim, alias_kind, bound_arguments
from metaprune.graph.captured import op_name
from metaprune.graph.shapes import TensorValue
from metaprune.network import Network

AxisTerms = tuple[tuple[int, tuple[int, ...]], ...]  # sum of number x product of the sizes with these ids

MAX_AXES = 3
CONTRACTIONS = ("conv", "linear", "matmul", "bmm", "mm", "addmm", "einsum", "scaled_dot_product_attention")


@dataclass(frozen=True)
class Segment:
    """key: equal for segments that take the same time. nodes: names in the graph. axes: what its time depends on."""

    key: str
    nodes: tuple[str, ...]
    axes: tuple[AxisTerms, ...]

    @property
    def contracts(self) -> bool:
        return any(self.key.startswith(name) for name in CONTRACTIONS)


class Sizes:
    """Surviving sizes of dimensions, each a sum of products of group widths."""

    def __init__(self, full: np.ndarray, polynomials: Iterable[Polynomial] = ()):
        self.full = full
        self.polynomials = list(polynomials)
        self._ids = {p: i for i, p in enumerate(self.polynomials)}

    def add(self, polynomial: Polynomial) -> int:
        """Add a size unless it is known; return its id."""
        if polynomial not in self._ids:
            self._ids[polynomial] = len(self.polynomials)
            self.polynomials.append(polynomial)
        return self._ids[polynomial]

    def of(self, widths: np.ndarray) -> np.ndarray:
        """widths: int64 [n, groups] -> int64 [sizes, n]."""
        return sizes_at(self.polynomials, self.full, widths)


def axis_values(axis: AxisTerms, sizes: np.ndarray) -> np.ndarray:
    """sizes: int64 [sizes, n] -> int64 [n]."""
    total = np.zeros(sizes.shape[1], dtype=np.int64)
    for number, ids in axis:
        total += number * math.prod(sizes[i] for i in ids)
    return total


def segments_of(network: Network, batch: int) -> tuple[list[Segment], Sizes]:
    """Build the segments in the order of the graph, for inputs of `batch` samples."""
    builder = _Segmenter(network, batch)
    return [builder.segment(nodes) for nodes in partition(network)], builder.sizes


def partition(network: Network) -> list[list[fx.Node]]:
    """Partition the graph's computing nodes, head first, each with the views and single consumers that follow it."""
    segments: list[list[fx.Node]] = []
    segment_of: dict[fx.Node, int] = {}
    for node in network.captured.graph.nodes:
        if node.op != "call_function" or not _makes_tensors(node):
            continue
        sources = [n for n in node.all_input_nodes if _makes_tensors(n) and n.name not in network.captured.sources]
        joins = len(sources) == 1 and sources[0] in segment_of and (_is_view(node) or _follows(node, sources[0]))
        if joins:
            segment_of[node] = segment_of[sources[0]]
            segments[segment_of[node]].append(node)
        elif not (_is_view(node) and sources and sources[0] not in segment_of):  # a view of an input costs nothing
            segment_of[node] = len(segments)
            segments.append([node])
    return segments


def _follows(node: fx.Node, source: fx.Node) -> bool:
    """Whether `node` is the only consumer of `source` and no contraction itself."""
    users = [u for u in source.users if _makes_tensors(u)]
    return len(users) == 1 and not _contracts(node)


def _contracts(node: fx.Node) -> bool:
    return any(op_name(node.target).startswith(name) for name in CONTRACTIONS)


def _is_view(node: fx.Node) -> bool:
    return alias_kind(node.target) == "view"


def _makes_tensors(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, TensorValue) or (
        isinstance(value, (list, tuple)) and any(isinstance(v, TensorValue) for v in value)
    )


class _Segmenter:
    def __init__(self, network: Network, batch: int):
        self.network = network
        self.batch = batch if network.captured.batch is not None else None
        self.sizes = Sizes(network.space.widths)
        self._owner = owners(network.space, network.labelled)

    def segment(self, nodes: list[fx.Node]) -> Segment:
        tensors: list[list[Dim]] = []
        for node in [n for n in nodes if not _is_view(n)] or nodes[:1]:
            for value in (*node.all_input_nodes, node):
                tensors += self._dims(value)
        ids = list(dict.fromkeys(i for t in tensors for d in t if (i := self._size_id(d)) is not None))
        letters = {i: chr(ord("a") + k) if k < 26 else f"a{k}" for k, i in enumerate(ids)}
        axes: tuple[AxisTerms, ...] = tuple(((1, (i,)),) for i in ids)
        if len(ids) > MAX_AXES:
            axes = (self._volume(tensors),)
        shapes = [self._shape(t, letters) for node in (nodes[0],) for v in node.all_input_nodes for t in self._dims(v)]
        out = [self._shape(t, letters) for t in self._dims(nodes[-1])]
        operators = " + ".join(self._described(n) for n in nodes if not _is_view(n)) or op_name(nodes[0].target)
        value = nodes[-1].meta["val"]
        dtype = str(getattr(value, "dtype", "")).removeprefix("torch.")
        key = f"{operators} | {', '.join(shapes)} -> {', '.join(out)} {dtype}".strip()
        return Segment(key, tuple(n.name for n in nodes), axes)

    def _dims(self, node: fx.Node) -> list[list[Dim]]:
        """The dimensions of every tensor that `node` makes."""
        value = node.meta.get("val")
        fact = self.network.labelled.facts.get(node.name)
        labels = fact.labels if fact is not None else []
        dims = []
        for i, tensor in enumerate(value if isinstance(value, (list, tuple)) else [value]):
            if isinstance(tensor, TensorValue):
                label_dims = labels[i] if i < len(labels) and labels[i] is not None else [None] * tensor.dim()
                shape = self.network.captured.concrete(tensor, self.batch)
                dims.append([Dim(label, n) for label, n in zip(label_dims or [], shape, strict=True)])
        return dims

    def _size_id(self, dim: Dim) -> int | None:
        """The id of a surviving size; None for one that never changes."""
        final = None if dim.label is None else self.network.labelled.atoms.final(dim.label)
        if final is None or (self._owner[final] < 0).all():
            return None
        return self.sizes.add(polynomial_of(self._owner[final]))

    def _volume(self, tensors: list[list[Dim]]) -> AxisTerms:
        """Elements read and written: the one axis of a segment with many."""
        terms: dict[tuple[int, ...], int] = defaultdict(int)
        for dims in tensors:
            ids = [self._size_id(d) for d in dims]
            fixed = math.prod(d.size for d, i in zip(dims, ids, strict=True) if i is None)
            terms[tuple(sorted(i for i in ids if i is not None))] += fixed
        return tuple((number, ids) for ids, number in sorted(terms.items()))

    def _shape(self, dims: list[Dim], letters: dict[int, str]) -> str:
        """`32xa64x8x8`: the letter says which axis a size follows."""
        names = (letters.get(i, "") if (i := self._size_id(d)) is not None else "" for d in dims)
        return "x".join(f"{name}{d.size}" for name, d in zip(names, dims, strict=True)) or "scalar"

    def _described(self, node: fx.Node) -> str:
        """`conv2d(stride=[1, 1], ...)`: the operator with the constants that are not its defaults."""
        schema = getattr(node.target, "_schema", None)
        defaults = {a.name: a.default_value for a in schema.arguments} if schema is not None else {}
        constants = []
        for name, value in bound_arguments(node).items():
            if _is_constant(value) and value is not None and value != defaults.get(name):
                constants.append(f"{name}={value}")
        return op_name(node.target) + (f"({', '.join(constants)})" if constants else "")


def _is_constant(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_constant(v) for v in value)
    return not isinstance(value, (fx.Node, torch.Tensor))
