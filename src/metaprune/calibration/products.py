"""Products with weights as matrices: convolutions and linear layers as rows of inputs times the rows of a weight.

They are found by `Fact.consumed`: operators that sum over a dimension of a parameter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional

from metaprune.elastic.program import Step, operands_by_name
from metaprune.graph.call import Survivors, bound_arguments
from metaprune.graph.captured import op_name
from metaprune.network import Network

_TRANSPOSED = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d", "convolution", *_TRANSPOSED)
_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")
_LINEAR = {"linear": ("input", "weight", "bias"), "addmm": ("mat1", "mat2", "self")}  # input, weight, bias


@dataclass(frozen=True)
class Product:
    """An operator that multiplies an activation with a parameter.

    Attributes:
        node: in the captured graph.
        weight, bias: names in `net.tensors`; no bias: None.
        input: the operator's argument that is the activation.
        out_dim: dimension of the weight that counts output channels; the other ones are summed over.
        is_conv: a convolution; else a linear layer.
        is_transposed: a transposed convolution.
    """

    node: fx.Node
    weight: str
    bias: str | None
    input: str
    out_dim: int
    is_conv: bool
    is_transposed: bool = False

    @property
    def channel_dim(self) -> int:
        """Dimension of the result that counts output channels."""
        return 1 if self.is_conv else -1

    def kept(self, result: Tensor, network: Network, alive: Survivors) -> Tensor:
        """Take the channels of a dense result that survive."""
        label = network.labelled.parameters[self.weight][self.out_dim]
        if label is None or not alive.cut(label):
            return result
        return result.index_select(self.channel_dim, torch.from_numpy(alive.index(label)).to(result.device))

    def matrix(self, weight: Tensor, groups: int) -> Tensor:
        """Lay out a weight as [groups, outputs of a group, K]; K counts input channels times kernel positions."""
        rows = weight.movedim(self.out_dim, 0).flatten(1)
        return rows.reshape(groups, len(rows) // groups, rows.shape[1])

    def weight_of(self, matrix: Tensor, like: Tensor) -> Tensor:
        """Undo `matrix`."""
        moved = like.movedim(self.out_dim, 0)
        return matrix.reshape(moved.shape).movedim(0, self.out_dim).to(like.dtype).contiguous()


def find_products(network: Network) -> tuple[dict[str, Product], dict[str, str]]:
    """Find every product with a parameter, by node name; and why others are left alone, by what they are."""
    sources = network.captured.sources
    found: dict[str, Product] = {}
    left: dict[str, str] = {}
    for node in network.captured.graph.nodes:
        fact = network.labelled.facts.get(node.name)
        if fact is None or not fact.consumed or fact.rewrite is not None:
            continue
        bound = bound_arguments(node)
        weights = [bound[c.argument] for c in fact.consumed if c.position is None]
        weights = [w for w in weights if isinstance(w, fx.Node) and w.name in sources]
        if weights:
            why = _why_not(node, bound, weights[0])
            if why:
                left[sources[weights[0].name]] = why
            else:
                found[node.name] = _product(node, bound, sources)
    return found, left


def recurrent_inputs(network: Network) -> dict[str, list[Product]]:
    """Find what reads the input of recurrent layers, by node name: the first layer's weights, one per direction."""
    sources, found = network.captured.sources, {}
    for node in network.captured.graph.nodes:
        if op_name(node.target) not in _RECURRENT or node.name not in network.labelled.facts:
            continue
        bound = bound_arguments(node)
        parameters = list(bound.get("params") or ())
        if "input" not in bound or not all(p.name in sources and len(p.users) == 1 for p in parameters):
            continue  # packed sequences, or weights that are computed or shared
        names, directions = [sources[p.name] for p in parameters], 1 + bool(bound["bidirectional"])
        each = len(names) // (directions * bound["num_layers"])
        firsts = range(0, directions * each, each)
        biases = [names[i + 2] if bound["has_biases"] else None for i in firsts]
        found[node.name] = [
            Product(node, names[i], bias, "input", 0, is_conv=False) for i, bias in zip(firsts, biases, strict=True)
        ]
    return found


def _why_not(node: fx.Node, bound: Mapping[str, Any], weight: fx.Node) -> str:
    """Say why a product is left alone; empty where it is not."""
    name = op_name(node.target)
    if name in _CONVOLUTIONS:
        if _is_transposed(name, bound) and bound["groups"] != 1:
            return "grouped transposed convolution"
        if bound["input"].meta["val"].dim() != weight.meta["val"].dim():
            return "convolution without a batch dimension"
    elif name not in _LINEAR:
        return name
    elif weight.meta["val"].dim() != 2:
        return "weight that is no matrix"
    elif name == "addmm" and (bound["alpha"] != 1 or bound["beta"] != 1 or bound["mat2"] is not weight):
        return "scaled addmm, or one whose first factor is the weight"
    return "used more than once" if len(weight.users) > 1 else ""


def _is_transposed(name: str, bound: Mapping[str, Any]) -> bool:
    return name in _TRANSPOSED or bool(bound.get("transposed"))


def _product(node: fx.Node, bound: Mapping[str, Any], sources: Mapping[str, str]) -> Product:
    name = op_name(node.target)
    x, w, b = _LINEAR.get(name, ("input", "weight", "bias"))
    bias = bound[b]
    held = isinstance(bias, fx.Node) and bias.name in sources and len(bias.users) == 1
    vector = held and bias.meta["val"].dim() == 1
    weight, is_transposed = sources[bound[w].name], _is_transposed(name, bound)
    out_dim = int(name == "addmm" or is_transposed)
    return Product(
        node, weight, sources[bias.name] if vector else None, x, out_dim, name in _CONVOLUTIONS, is_transposed
    )


@dataclass(frozen=True)
class Rows:
    """How to read the rows of one product off its operands: the convolution's settings at certain widths."""

    product: Product
    operands: Mapping[str, Any]
    weight: Tensor

    @classmethod
    def of(cls, product: Product, step: Step, args: list, kwargs: Mapping[str, Any]) -> Rows:
        """Read a step's fetched operands by the names of its schema, defaults filled in."""
        operands = operands_by_name(step, args, kwargs)
        weight = operands["mat2" if op_name(step.target) == "addmm" else "weight"]
        return cls(product, operands, weight)

    @property
    def groups(self) -> int:
        return self.operands["groups"] if self.product.is_conv else 1

    @property
    def matrix(self) -> Tensor:
        """The weight as [groups, outputs of a group, K]."""
        return self.product.matrix(self.weight, self.groups)

    def draw(self, result: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Draw about `count` rows of a result: positions in space, of all samples, or rows of a linear layer."""
        total = math.prod(result.shape[2:]) if self.product.is_conv else result[..., 0].numel()
        wanted = -(-count // len(result)) if self.product.is_conv else count
        return torch.randperm(total, generator=generator)[:wanted].to(result.device)

    def inputs(self, drawn: Tensor) -> Tensor:
        """Read the input's rows [groups, n, K] at the drawn positions."""
        x = self.operands[self.product.input]
        if not self.product.is_conv:
            return x.reshape(-1, x.shape[-1])[drawn][None]
        kernel, stride, dilation = self.weight.shape[2:], self.operands["stride"], self.operands["dilation"]
        dims = len(kernel)
        stride, dilation, padding = (_per_dim(v, dims) for v in (stride, dilation, self.operands["padding"]))
        if self.product.is_transposed:  # a plain one of the input with zeros in between, its kernel turned round
            x, before = _spaced(x, stride), self._sides(kernel, padding, dilation)
            stride = [1] * dims
        else:
            before = [_padding(p, (k - 1) * d) for p, k, d in zip(padding, kernel, dilation, strict=True)]
        x = functional.pad(x, [side for pair in reversed(before) for side in pair])
        reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
        out = [(n - r) // s + 1 for n, r, s in zip(x.shape[2:], reach, stride, strict=True)]
        index = torch.zeros(len(drawn), math.prod(kernel), dtype=torch.int64, device=x.device)
        where = torch.unravel_index(drawn, out)
        entry = torch.unravel_index(torch.arange(math.prod(kernel), device=x.device), tuple(kernel))
        if self.product.is_transposed:
            entry = tuple(k - 1 - e for k, e in zip(kernel, entry, strict=True))
        for dim in range(dims):
            at = where[dim][:, None] * stride[dim] + entry[dim] * dilation[dim]
            index = index * x.shape[2 + dim] + at
        patches = x.flatten(2)[:, :, index]  # [samples, channels, positions, kernel]
        rows = patches.transpose(1, 2).flatten(0, 1)
        return rows.reshape(len(rows), self.groups, -1).transpose(0, 1)

    def _sides(self, kernel: Any, padding: list[Any], dilation: list[Any]) -> list[tuple[int, int]]:
        """Zeros before and after the spaced input of a transposed convolution; negative ones are cut off."""
        more = _per_dim(self.operands["output_padding"], len(kernel))
        reach = [(k - 1) * d - p for k, d, p in zip(kernel, dilation, padding, strict=True)]
        return [(r, r + m) for r, m in zip(reach, more, strict=True)]

    def outputs(self, result: Tensor, drawn: Tensor) -> Tensor:
        """Read a result's rows [groups, n, outputs of a group] at the drawn positions."""
        if not self.product.is_conv:
            return result.reshape(-1, result.shape[-1])[drawn][None]
        rows = result.flatten(2)[:, :, drawn].transpose(1, 2).flatten(0, 1)
        return rows.reshape(len(rows), self.groups, -1).transpose(0, 1)


def _spaced(x: Tensor, stride: list[int]) -> Tensor:
    """[N, C, *size] with stride - 1 zeros between neighbours."""
    size = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], stride, strict=True)]
    spaced = x.new_zeros(*x.shape[:2], *size)
    spaced[(..., *(slice(None, None, s) for s in stride))] = x
    return spaced


def _per_dim(value: Any, dims: int) -> list[Any]:
    if isinstance(value, str):
        return [value] * dims
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return values * dims if len(values) == 1 else values


def _padding(asked: Any, reach: int) -> tuple[int, int]:
    """Padding before and after; `same` and `valid` as PyTorch means them."""
    if asked == "valid":
        return 0, 0
    return (reach // 2, reach - reach // 2) if asked == "same" else (asked, asked)
