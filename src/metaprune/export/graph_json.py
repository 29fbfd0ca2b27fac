"""A graph-form network as JSON: structure without weights and without pickle.

Only operators of PyTorch's own `aten` namespace and a short list of Python functions are written or read, so a file
from somewhere else can compute, but not run code of its own.
"""

from __future__ import annotations

import importlib
import keyword
import math
import operator
import re
from collections import OrderedDict, namedtuple
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from metaprune.core.errors import DataError, NotAvailableError
from metaprune.core.imports import import_optional
from metaprune.surgery.graph_form import TreeInputs, TreeOutput

_FUNCTIONS = {
    **{
        f"operator.{n}": getattr(operator, n)
        for n in ("getitem", "mul", "add", "sub", "floordiv", "mod", "neg", "truediv", "pow")
    },
    **{f"operator.{n}": getattr(operator, n) for n in ("eq", "ne", "lt", "le", "gt", "ge")},
    "builtins.getattr": getattr,
    "torch.sym_max": torch.sym_max,
    "torch.sym_min": torch.sym_min,
    "torch.sym_int": torch.sym_int,
    "torch.sym_float": torch.sym_float,
}
_FUNCTION_NAMES = {function: name for name, function in _FUNCTIONS.items()}
_OPS = ("placeholder", "get_attr", "call_module", "call_function", "output")
_PATH = re.compile(r"\w+(\.\w+)*", re.ASCII)
_READABLE = ("device", "dtype")  # attributes that getattr may read
_NORMS = {kind.__name__: kind for kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)}


def graph_to_json(module: fx.GraphModule) -> dict[str, Any]:
    """Nodes, submodules and gather indices.

    Raises:
        NotAvailableError: an operator outside `aten`, or a sub-graph (an autocast region), which JSON cannot hold.
    """
    modules, gathers = {}, {}
    for node in module.graph.nodes:
        if node.op == "call_module":
            modules[node.target] = _module_to_json(module.get_submodule(node.target))
        if node.op == "get_attr" and node.target.startswith("_gather_"):
            gathers[node.target] = getattr(module, node.target).tolist()
        if node.op == "get_attr" and isinstance(operator.attrgetter(node.target)(module), nn.Module):
            raise NotAvailableError(
                f"the graph holds a sub-graph {node.target!r} (an autocast region), which JSON cannot hold"
            )
    nodes = [
        {
            "op": n.op,
            "name": n.name,
            "target": _target_name(n),
            "args": _encode(list(n.args)),
            "kwargs": _encode(dict(n.kwargs)),
        }
        for n in module.graph.nodes
    ]
    return {"nodes": nodes, "modules": modules, "gathers": gathers}


def graph_from_json(data: dict[str, Any], root: nn.Module) -> fx.GraphModule:
    """Rebuild on `root`, a module tree that holds the tensors by name."""
    for path in (*data["gathers"], *data["modules"]):
        _require(_PATH.fullmatch(path), f"path {path!r}")
    for path, values in data["gathers"].items():
        root.register_buffer(path, torch.tensor(values, dtype=torch.int64))
    for path, description in data["modules"].items():
        _attach(root, path, _module_from_json(description))
    graph = fx.Graph()
    known: dict[str, fx.Node] = {}
    for entry in data["nodes"]:
        _check_text(entry)
        args, kwargs = tuple(_decode(entry["args"], known)), _decode(entry["kwargs"], known)
        target = _target(entry)
        if target is getattr and args[1] not in _READABLE:
            raise DataError(
                f"graph node {entry['name']!r} reads attribute {args[1]!r}, which no graph of metaprune does"
            )
        node = graph.create_node(entry["op"], target, args, kwargs, name=entry["name"])
        known[entry["name"]] = node
    module = fx.GraphModule(root, graph, class_name="PrunedGraph")
    module.eval()
    return module


def _check_text(entry: dict[str, Any]) -> None:
    """fx writes these texts into the Python it generates: nothing but names may get there."""
    op, target = entry["op"], entry["target"]
    _require(op in _OPS, f"node kind {op!r}")
    if op == "placeholder":
        _require(target.isidentifier() and not keyword.iskeyword(target) and not entry["args"], f"input {target!r}")
    if op in ("get_attr", "call_module"):
        _require(_PATH.fullmatch(target), f"path {target!r}")
    for name in entry["kwargs"]:
        _require(name.isidentifier() and not keyword.iskeyword(name), f"argument {name!r}")


def _require(holds: Any, what: str) -> None:
    if not holds:
        raise DataError(
            f"the saved graph names {what}, which no graph of metaprune does: it was not written by metaprune"
        )


def _target_name(node: fx.Node) -> str:
    if node.op != "call_function":
        return str(node.target)
    if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "aten":
        return f"aten::{node.target._schema.name.split('::')[1]}.{node.target._overloadname}"
    if node.target in _FUNCTION_NAMES:
        return _FUNCTION_NAMES[node.target]
    raise NotAvailableError(
        f"operator {node.target} is not PyTorch's own and cannot be saved; save the module form instead"
    )


def _target(entry: dict[str, Any]) -> Any:
    name = entry["target"]
    if entry["op"] != "call_function":
        return name
    if name in _FUNCTIONS:
        return _FUNCTIONS[name]
    if not name.startswith("aten::"):
        raise DataError(
            f"graph node {entry['name']!r} calls {name!r}, which is neither an aten operator nor a known function"
        )
    packet, _, overload = name.removeprefix("aten::").partition(".")
    return getattr(getattr(torch.ops.aten, packet), overload)


def _module_to_json(module: nn.Module) -> dict[str, Any]:
    if type(module).__name__ in _NORMS and isinstance(module, nn.modules.batchnorm._BatchNorm):
        affine, momentum = module.weight is not None, module.momentum
        return {
            "kind": type(module).__name__,
            "width": module.num_features,
            "eps": module.eps,
            "momentum": momentum,
            "affine": affine,
        }
    if isinstance(module, nn.Dropout):
        return {"kind": "Dropout", "p": module.p}
    if isinstance(module, (TreeInputs, TreeOutput)):
        kind = type(module).__name__
        try:
            if kind == "TreeOutput" and _holds_namedtuple(module.spec):
                return {"kind": kind, "tree": _tree_to_json(module.spec)}
            return {"kind": kind, "spec": pytree.treespec_dumps(module.spec)}
        except NotImplementedError as error:
            raise NotAvailableError(
                f"inputs or outputs of your own class cannot be written as JSON ({error}): return tensors, tuples, "
                "NamedTuples, lists or dicts, or register the class: "
                "torch.export.register_dataclass(Out, serialized_type_name='my.Out')"
            ) from error
    raise NotAvailableError(f"module {type(module).__name__} in a graph cannot be saved as JSON")


def _module_from_json(data: dict[str, Any]) -> nn.Module:
    kind = data["kind"]
    if kind in _NORMS:
        return _NORMS[kind](data["width"], eps=data["eps"], momentum=data["momentum"], affine=data["affine"])
    if kind == "Dropout":
        return nn.Dropout(data["p"])
    if kind == "TreeOutput" and "tree" in data:
        return TreeOutput(pytree.tree_structure(_tree_from_json(data["tree"])))
    if kind in ("TreeInputs", "TreeOutput"):
        return (TreeInputs if kind == "TreeInputs" else TreeOutput)(_tree_spec(data["spec"]))
    raise DataError(f"graph names a module of unknown kind {kind!r}")


def _holds_namedtuple(spec: pytree.TreeSpec) -> bool:
    return spec.type is namedtuple or any(_holds_namedtuple(child) for child in spec.children())


def _tree_to_json(spec: pytree.TreeSpec) -> Any:
    """Structure with NamedTuples by name and fields; a leaf is null."""
    if spec.is_leaf():
        return None
    items = [_tree_to_json(child) for child in spec.children()]
    if spec.type is namedtuple:
        return {"namedtuple": spec.context.__name__, "fields": list(spec.context._fields), "items": items}
    if spec.type in (dict, OrderedDict) and all(isinstance(key, str) for key in spec.context):
        return {"dict": list(spec.context), "items": items}
    if spec.type in (tuple, list):
        return {spec.type.__name__: None, "items": items}
    raise NotImplementedError(f"a NamedTuple together with {spec.type}")


def _tree_from_json(data: Any) -> Any:
    """A value of the described structure. NamedTuples become new classes of the same name and fields."""
    if data is None:
        return 0
    items = [_tree_from_json(item) for item in data["items"]]
    if "namedtuple" in data:
        try:
            return namedtuple(data["namedtuple"], data["fields"])(*items)  # takes nothing but identifiers
        except (ValueError, TypeError) as error:
            raise DataError(f"graph names a NamedTuple that cannot be: {error}") from error
    if "dict" in data:
        return dict(zip(data["dict"], items, strict=True))
    return tuple(items) if "tuple" in data else items


def _tree_spec(text: str) -> pytree.TreeSpec:
    """The spec of nested inputs or outputs; classes of transformers are imported, no other module is."""
    for name in re.findall(r'"type": "(transformers\.[\w.]+)\.\w+"', text):
        import_optional("transformers", "hf")
        importlib.import_module(name)
    try:
        return pytree.treespec_loads(text)
    except NotImplementedError as error:
        raise NotAvailableError(
            f"the network takes or returns a class that is not known here ({error}): import the module that defines "
            "and registers it, and load again"
        ) from error


def _attach(root: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module at `path`, with the tensors that stand there already."""
    try:
        held = root.get_submodule(path)
    except AttributeError:
        root.add_module(path, module)
        return
    for name, parameter in held._parameters.items():
        setattr(module, name, parameter)
    for name, buffer in held._buffers.items():
        setattr(module, name, buffer)
    root.set_submodule(path, module)


_TORCH_VALUES = {torch.dtype: "dtype", torch.layout: "layout", torch.memory_format: "memory_format"}


def _encode(value: Any) -> Any:
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (tuple, torch.Size)):
        return {"tuple": [_encode(v) for v in value]}
    if isinstance(value, list):
        return [_encode(v) for v in value]
    if isinstance(value, dict):
        return {"dict": {k: _encode(v) for k, v in value.items()}}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    for kind, name in _TORCH_VALUES.items():
        if isinstance(value, kind):
            return {name: str(value).removeprefix("torch.")}
    raise NotAvailableError(f"a graph argument of type {type(value).__name__} cannot be saved as JSON")


def _decode(value: Any, known: dict[str, fx.Node]) -> Any:
    if isinstance(value, list):
        return [_decode(v, known) for v in value]
    if not isinstance(value, dict):
        return value
    kind, inner = next(iter(value.items()))
    if kind == "node":
        return known[inner]
    if kind == "float":
        return float(inner)
    if kind == "tuple":
        return tuple(_decode(v, known) for v in inner)
    if kind == "dict":
        return {k: _decode(v, known) for k, v in inner.items()}
    if kind == "device":
        return torch.device(inner)
    if kind in _TORCH_VALUES.values():
        decoded = getattr(torch, inner, None)
        if type(decoded) in _TORCH_VALUES:
            return decoded
    raise DataError(f"graph holds a value {kind}={inner!r} that is not understood")
