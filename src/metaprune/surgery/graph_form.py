"""The cut network as a `torch.fx.GraphModule`: always possible, parameter names are the original's.

BatchNorm over the model's running statistics and dropout become real modules at their original paths, so that
`train()`, BatchNorm recalibration and module search work as on any model. Literal devices and dtypes of the trace are
read off a parameter instead, so that `.to(device)` and `.half()` work.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from metaprune.elastic.folding import Rest, emptied_branches, lost_tensors, outermost
from metaprune.elastic.weights import slice_tensor
from metaprune.graph.branches import folded_addition
from metaprune.graph.call import Survivors, bound_arguments
from metaprune.graph.captured import op_name
from metaprune.graph.patching import patched_call
from metaprune.graph.transformers_models import USE_CACHE, knows_cache
from metaprune.network import DROPOUTS, Network
from metaprune.surgery.input_guard import CutGraph, guard_of
from metaprune.values import Branch


class TreeInputs(nn.Module):
    """Flatten nested inputs into the graph's leaves."""

    def __init__(self, spec: pytree.TreeSpec):
        super().__init__()
        self.spec = spec

    def forward(self, args: tuple, kwargs: dict[str, Any]) -> list[Any]:
        leaves, spec = pytree.tree_flatten((tuple(args), dict(kwargs)))  # fx may hand over an immutable dict
        if spec != self.spec:
            raise ValueError(f"inputs of structure {spec}; the network was traced with {self.spec}")
        return leaves


class TreeOutput(nn.Module):
    """Pack the graph's leaves as the original model does."""

    def __init__(self, spec: pytree.TreeSpec):
        super().__init__()
        self.spec = spec

    def forward(self, *leaves: Any) -> Any:
        return pytree.tree_unflatten(leaves, self.spec)


def graph_form(network: Network, alive: Survivors, tensors: Mapping[str, torch.Tensor]) -> fx.GraphModule:
    """Build the sliced graph. `tensors`: full-size values by name (the model's own, or a method's new weights)."""
    root = nn.Module()
    lost = lost_tensors(network.space, alive)
    for name, tensor in network.model_tensors.items():
        if name not in lost:
            place_tensor(root, name, sliced_parameter(network, name, tensors[name], tensor, alive))
    for name, constant in branch_constants(network, alive, tensors).items():
        place_tensor(root, name, constant)
    builder = _Builder(network, alive, root)
    graph = builder.build()
    graph.owning_module = root  # pyrefly: ignore[bad-argument-type] (which asks its modules whether they are pure)
    graph.eliminate_dead_code()
    graph.owning_module = None
    module = CutGraph(root, graph, class_name=type(network.model).__name__ + "Graph")
    ignored = (USE_CACHE,) if knows_cache(network.model) else ()
    module.meta["inputs"] = guard_of(network.captured, builder.argument_names, ignored)
    module.graph.lint()
    for name in network.model.state_dict():  # fx copies what the graph uses; unused parameters are parameters too
        if name in network.tensors and name not in lost and not _has(module, name):
            original = network.model_tensors[name]
            place_tensor(module, name, sliced_parameter(network, name, tensors[name], original, alive))
    module.train(network.model.training)
    return module


def _has(module: nn.Module, path: str) -> bool:
    parent, _, leaf = path.rpartition(".")
    try:
        return hasattr(module.get_submodule(parent), leaf)
    except AttributeError:
        return False


def sliced_parameter(
    network: Network, name: str, value: torch.Tensor, original: torch.Tensor, alive: Survivors
) -> torch.Tensor:
    """Slice the surviving rows into a new tensor; a Parameter where the original is one, with its requires_grad."""
    labels = network.labelled.parameters.get(name)
    part = value.detach() if labels is None else slice_tensor(value.detach(), labels, alive)
    part = part.clone() if part.data_ptr() == value.data_ptr() else part
    part = part.to(dtype=original.dtype, device=original.device)
    return nn.Parameter(part, requires_grad=original.requires_grad) if isinstance(original, nn.Parameter) else part


def branch_constants(
    network: Network, alive: Survivors, tensors: Mapping[str, torch.Tensor]
) -> dict[str, torch.nn.Parameter]:
    """What is left of empty branches, by the name of its parameter; `tensors` are full-size."""
    parts = network.sliced(alive, tensors=tensors)
    constants = {}
    for branch in outermost(emptied_branches(network.space, alive)):
        if branch.constant:
            rest = Rest.of(network.captured, network.labelled, network.space, branch, alive)
            read = {name: parts[name].detach() for name in rest.names}
            owned = [network.model_tensors[name] for name in rest.names]
            grad = any(t.requires_grad for t in owned)
            constants[branch.constant_name] = nn.Parameter(rest.stored(read), requires_grad=grad)
    return constants


def place_tensor(root: nn.Module, path: str, tensor: torch.Tensor) -> None:
    """Register a tensor under a dotted path, making the modules on the way."""
    *parents, leaf = path.split(".")
    for part in parents:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root._modules[part]  # type: ignore[assignment]
    if isinstance(tensor, nn.Parameter):
        root.register_parameter(leaf, tensor)
    else:
        root.register_buffer(leaf, tensor)


class _Builder:
    def __init__(self, network: Network, alive: Survivors, root: nn.Module):
        self.network, self.alive, self.root = network, alive, root
        self.graph = fx.Graph()
        self.places: dict[fx.Node, Any] = {}
        self.weights: dict[str, fx.Node] = {}
        self.gathers = 0
        self.dropouts = 0
        self.argument_names: list[str] = []
        emptied = emptied_branches(network.space, alive)
        self.gone = frozenset().union(*(b.gone for b in emptied))
        self.folded = {b.addition: b for b in emptied}

    def build(self) -> fx.Graph:
        captured = self.network.captured
        self._inputs()
        reference = next((n for n, t in captured.tensors.items() if t.is_floating_point()), None)
        self.reference = (
            None if reference is None else (self.graph.get_attr(reference), captured.tensors[reference].dtype)
        )
        for node in captured.graph.nodes:
            if node.name in self.gone:
                continue
            if node.op == "placeholder" and node.name in captured.sources:
                self.places[node] = captured.sources[node.name]  # fetched where it is used
            elif node.op == "get_attr":
                setattr(self.root, node.target, getattr(captured.graph.owning_module, node.target))
                self.places[node] = self.graph.get_attr(node.target)
            elif node.name in self.folded:
                self._folded(node, self.folded[node.name])
            elif node.op == "call_function":
                self._call(node)
            elif node.op == "output":
                self._output(node)
        return self.graph

    def _inputs(self) -> None:
        captured = self.network.captured
        nodes = [n for n in captured.graph.nodes if n.name in set(captured.inputs)]
        args, kwargs = captured.example
        self.argument_names = _argument_names(self.network.model, len(args)) + list(kwargs)
        tops = [self.graph.placeholder(n) for n in self.argument_names]
        flat = all(spec.is_leaf() for group in captured.in_spec.children() for spec in group.children())
        if flat:
            self.places.update(zip(nodes, tops, strict=True))
            return
        self.root.add_module("_tree_inputs", TreeInputs(captured.in_spec))
        packed = (tuple(tops[: len(args)]), dict(zip(kwargs, tops[len(args) :], strict=True)))
        leaves = self.graph.call_module("_tree_inputs", packed)
        for i, node in enumerate(nodes):
            self.places[node] = self.graph.call_function(operator.getitem, (leaves, i))

    def _output(self, node: fx.Node) -> None:
        spec = self.network.captured.out_spec
        leaves = [self._value(v) for v in pytree.tree_leaves(node.args[0], is_leaf=lambda x: x is None)]
        if spec.is_leaf():
            self.graph.output(leaves[0])
        elif spec.type in (tuple, list) and all(c.is_leaf() for c in spec.children()):
            self.graph.output(spec.type(leaves))
        else:
            self.root.add_module("_tree_output", TreeOutput(spec))
            self.graph.output(self.graph.call_module("_tree_output", tuple(leaves)))

    def _call(self, node: fx.Node) -> None:
        module = self._as_module(node)
        if module is None:
            target, args, kwargs = patched_call(
                node, self.network.labelled.facts[node.name], self.alive, self._scale, self._index
            )
            new = self.graph.call_function(target, self._value(args), self._value(kwargs))
        else:
            path, inputs = module
            new = self.graph.call_module(path, self._value(inputs))
        self.places[node] = new
        label = self.network.labelled.facts[node.name].rescale_output
        if label is not None and self.alive.cut(label):
            whole = self.graph.call_function(operator.mul, (new, len(label)))
            self.places[node] = self.graph.call_function(operator.floordiv, (whole, self.alive.count(label)))

    def _folded(self, node: fx.Node, branch: Branch) -> None:
        """In place of the addition of an empty branch: the stream, plus what is left."""
        target, stream = folded_addition(node, branch)
        place = self.places[node] = self._value(stream)
        if target is not None:
            constant = (self.graph.get_attr(branch.constant_name),) if branch.constant else ()
            self.places[node] = self.graph.call_function(target, (place, *constant))

    def _as_module(self, node: fx.Node) -> tuple[str, tuple] | None:
        """(path, inputs) of a real BatchNorm or dropout module for a node that follows the training flag."""
        if node.name not in self.network.switchable:
            return None
        if op_name(node.target) in DROPOUTS:
            path = f"_dropout_{self.dropouts}"
            self.dropouts += 1
            self.root.add_module(path, _dropout(node))
            return path, (node.args[0],)
        bound = bound_arguments(node)
        names = {k: self.network.captured.sources.get(getattr(bound[k], "name", "")) for k in _BATCHNORM_TENSORS}
        path = (names["running_mean"] or "").removesuffix(".running_mean")
        if any(names[k] not in (None, f"{path}.{k}") for k in names) or (names["weight"] is None) != (
            bound["weight"] is None
        ):
            return None
        self._batch_norm(path, node, bound)
        return path, (node.args[0],)

    def _batch_norm(self, path: str, node: fx.Node, bound: dict[str, Any]) -> None:
        old: Any = self.root.get_submodule(path)
        if isinstance(old, nn.modules.batchnorm._BatchNorm):
            return
        rank = bound["input"].meta["val"].dim()
        kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[rank]
        original: Any = self.network.model.get_submodule(path)
        new = kind(
            len(old.running_mean), eps=bound["eps"], momentum=original.momentum, affine=bound["weight"] is not None
        )
        for name, parameter in old._parameters.items():
            setattr(new, name, parameter)
        for name, buffer in old._buffers.items():
            setattr(new, name, buffer)
        self.root.set_submodule(path, new)

    def _value(self, value: Any) -> Any:
        """Old nodes -> new nodes; literal devices and dtypes -> those of a parameter."""
        if isinstance(value, fx.Node):
            target = self.places.get(value, value)
            if not isinstance(target, str):
                return target
            if target not in self.weights:
                self.weights[target] = self.graph.get_attr(target)
            return self.weights[target]
        if isinstance(value, (list, tuple)):
            return (
                type(value)(self._value(v) for v in value)
                if type(value) in (list, tuple)
                else [self._value(v) for v in value]
            )
        if isinstance(value, dict):
            return {k: self._value(v) for k, v in value.items()}
        if isinstance(value, torch.device) and self.reference is not None:
            return self.graph.call_function(getattr, (self.reference[0], "device"))
        if isinstance(value, torch.dtype) and self.reference is not None and value == self.reference[1]:
            return self.graph.call_function(getattr, (self.reference[0], "dtype"))
        return value

    def _scale(self, value: fx.Node, count: int, total: int) -> fx.Node:
        return self.graph.call_function(
            operator.floordiv, (self.graph.call_function(operator.mul, (self._value(value), count)), total)
        )

    def _index(self, positions: np.ndarray) -> fx.Node:
        name = f"_gather_{self.gathers}"
        self.gathers += 1
        self.root.register_buffer(name, torch.from_numpy(np.ascontiguousarray(positions)).to(self.network.device))
        return self.graph.get_attr(name)


DROPOUT_MODULES: dict[str, type[nn.modules.dropout._DropoutNd]] = {
    kind.__name__: kind
    for kind in (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
}
"""Every kind of dropout that a graph form holds as a module; archives write and read these."""


def _dropout(node: fx.Node) -> nn.Module:
    name = op_name(node.target)
    rank = node.all_input_nodes[0].meta["val"].dim()
    whole_channels = {3: "Dropout1d", 5: "Dropout3d"}.get(rank, "Dropout2d")
    kinds = {"dropout": "Dropout", "feature_dropout": whole_channels, "alpha_dropout": "AlphaDropout"}
    kind = DROPOUT_MODULES[kinds.get(name.removesuffix("_"), "FeatureAlphaDropout")]
    return kind(bound_arguments(node)["p"], inplace=name.endswith("_"))


_BATCHNORM_TENSORS = ("weight", "bias", "running_mean", "running_var")


def _argument_names(model: nn.Module, count: int) -> list[str]:
    names = []
    try:
        parameters = inspect.signature(model.forward).parameters
    except ValueError:  # of torch.jit.trace
        parameters = {}
    for name, parameter in parameters.items():
        if parameter.kind not in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            break
        names.append(name)
    return (names + [f"input_{i}" for i in range(len(names), count)])[:count]
