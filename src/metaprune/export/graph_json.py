"""A graph-form network as JSON: structure without weights and without pickle.

What is read is checked as decoded, in the form in which `torch.fx` writes it into Python: operators and functions of
a list (`operators`), arguments that fit their schemas, names that are plain. So a file from somewhere else can
compute, but run no code of its own.
"""

from __future__ import annotations

import keyword
import math
import operator
import re
from typing import Any

import torch
from torch import fx, nn

from metaprune.core.errors import DataError, MetapruneError, NotAvailableError, first_line
from metaprune.export.operators import misfit, operator_name, operator_of
from metaprune.export.trees import tree_from_json, tree_from_torch, tree_to_json
from metaprune.surgery.graph_form import DROPOUT_MODULES, TreeInputs, TreeOutput
from metaprune.surgery.input_guard import CutGraph, InputGuard

_OPS = ("placeholder", "get_attr", "call_module", "call_function", "output")
_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_PATH = re.compile(r"\w+(\.\w+)*", re.ASCII)
_NORMS = {kind.__name__: kind for kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)}
_DEPTH = 20  # of lists within arguments
_NODE_KEYS = {"op", "name", "target", "args", "kwargs"}


def graph_to_json(module: fx.GraphModule) -> dict[str, Any]:
    """Nodes, submodules and gather indices.

    Raises:
        NotAvailableError: an operator that is not on the list, or a sub-graph (an autocast region).
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
    guard = module.meta.get("inputs")
    inputs = {} if guard is None else {"inputs": guard.to_dict()}
    return {"nodes": nodes, "modules": modules, "gathers": gathers, **inputs}


def graph_from_json(data: Any, root: nn.Module) -> fx.GraphModule:
    """Rebuild on `root`, a module tree that holds the tensors by name.

    Raises:
        DataError: not as `graph_to_json` writes it; whatever a reader of it meets ends in this one error.
    """
    try:
        return _rebuilt(data, root)
    except MetapruneError:
        raise
    except Exception as error:  # torch.fx and the checks below meet values of any type
        raise DataError(
            f"the saved graph is damaged ({type(error).__name__}: {first_line(error)}): save the network again"
        ) from error


def _rebuilt(data: Any, root: nn.Module) -> fx.GraphModule:
    for path in (*data["gathers"], *data["modules"]):
        _require(_PATH.fullmatch(path), f"path {path!r}")
    for path, values in data["gathers"].items():
        _require(_NAME.fullmatch(path) and (path in root._buffers or not hasattr(root, path)), f"path {path!r}")
        _require(all(type(v) is int and 0 <= v < 2**63 for v in values), f"indices {str(values)[:60]}")
        root.register_buffer(path, torch.tensor(values, dtype=torch.int64))
    tensors = {n for n, _ in [*root.named_parameters(remove_duplicate=False), *root.named_buffers()]}
    tensors |= {n for n, _ in root.named_buffers(remove_duplicate=False)}
    for path, description in data["modules"].items():
        _attach(root, path, _module_from_json(description))
    graph = fx.Graph()
    known: dict[str, fx.Node] = {}
    for entry in data["nodes"]:
        _require(entry.keys() == _NODE_KEYS and entry["op"] in _OPS, f"node {str(entry)[:80]}")
        name = entry["name"]
        _require(_NAME.fullmatch(name) and name not in known, f"node {name!r}")
        args, kwargs = _decode(entry["args"], known), _decode(entry["kwargs"], known)
        _require(type(args) is list and type(kwargs) is dict, f"arguments of {name!r}")
        target = _checked_target(entry, tuple(args), kwargs, tensors, data["modules"], root)
        known[name] = graph.create_node(entry["op"], target, tuple(args), kwargs, name=name)
    _require(graph.nodes and list(known.values())[-1].op == "output", "no output")
    graph.lint()
    module = CutGraph(root, graph, class_name="PrunedGraph")
    if "inputs" in data:  # graphs of before have none
        guard = InputGuard.from_dict(data["inputs"])
        _require(guard.names == tuple(n.target for n in graph.nodes if n.op == "placeholder"), "inputs")
        _require(all(_is_leaf(leaf) for leaf in guard.leaves), "inputs")
        _require(all(type(n) is str for n in guard.ignored), "inputs")
        _require([type(n) for n in guard.batches] in ([int, int], [int, type(None)]), "inputs")
        module.meta["inputs"] = guard
    module.eval()
    return module


def _is_leaf(leaf: Any) -> bool:
    """Sizes and names of sizes, or a constant."""
    if isinstance(leaf, list):
        return all(type(n) is int or (isinstance(n, str) and len(n) < 1000) for n in leaf)
    return leaf is None or isinstance(leaf, (bool, int, float, str))


def _checked_target(
    entry: dict[str, Any], args: tuple, kwargs: dict[str, Any], tensors: set[str], modules: Any, root: nn.Module
) -> Any:
    """The target of a node whose decoded arguments are such as `graph_to_json` writes.

    fx writes names and keywords into the Python it generates: nothing but names may get there.
    """
    op, target, name = entry["op"], entry["target"], entry["name"]
    _require(isinstance(target, str), f"target {target!r}")
    if op == "call_function":
        function = operator_of(target)
        if function is None:
            raise DataError(
                f"graph node {name!r} calls {target!r}, which is neither an aten operator nor a known function that "
                "metaprune writes"
            )
        if (fault := misfit(target, function, args, kwargs)) is not None:
            raise DataError(f"graph node {name!r} calls {target} with {fault}, which no graph of metaprune does")
        return function
    if op == "placeholder":
        plain = target.isidentifier() and not keyword.iskeyword(target)
        _require(plain and not args and not kwargs, f"input {target!r}")
    elif op == "get_attr":
        _require(target in tensors and not args and not kwargs, f"path {target!r}")
    elif op == "call_module":
        _require(
            target in modules and not kwargs and _fits_module(root.get_submodule(target), args), f"call {target!r}"
        )
    else:
        _require(target == "output" and len(args) == 1 and not kwargs, f"output {target!r}")
    return target


def _fits_module(module: nn.Module, args: tuple) -> bool:
    if isinstance(module, TreeInputs):
        named = len(args) == 2 and isinstance(args[0], tuple) and isinstance(args[1], dict)
        return named and all(isinstance(v, fx.Node) for v in (*args[0], *args[1].values()))
    if isinstance(module, TreeOutput):
        return len(args) == module.spec.num_leaves
    return len(args) == 1 and isinstance(args[0], fx.Node)


def _require(holds: Any, what: str) -> None:
    if not holds:
        raise DataError(
            f"the saved graph names {what}, which no graph of metaprune does: it was not written by metaprune, or is "
            "damaged; save the network again"
        )


def _target_name(node: fx.Node) -> str:
    if node.op != "call_function":
        return str(node.target)
    name = operator_name(node.target)
    if name is None:
        raise NotAvailableError(
            f"operator {node.target} is not on the list of those that a saved graph may call, so this graph cannot be "
            "saved; save the module form instead"
        )
    return name


def _module_to_json(module: nn.Module) -> dict[str, Any]:
    kind = type(module).__name__
    if kind in _NORMS and isinstance(module, nn.modules.batchnorm._BatchNorm):
        affine, momentum = module.weight is not None, module.momentum
        return {"kind": kind, "width": module.num_features, "eps": module.eps, "momentum": momentum, "affine": affine}
    if type(module) in DROPOUT_MODULES.values():
        return {"kind": kind, "p": module.p, "inplace": module.inplace}  # type: ignore[attr-defined]
    if isinstance(module, (TreeInputs, TreeOutput)):
        return {"kind": kind, "tree": tree_to_json(module.spec)}
    raise NotAvailableError(f"module {kind} in a graph cannot be saved as JSON")


def _module_from_json(data: dict[str, Any]) -> nn.Module:
    kind = data["kind"]
    if kind in _NORMS:
        width, eps, momentum, affine = data["width"], data["eps"], data["momentum"], data["affine"]
        number = (float, int)
        fits = type(width) is int and type(eps) in number and (momentum is None or type(momentum) in number)
        _require(fits and type(affine) is bool and width >= 0, f"{kind} {str(data)[:80]}")
        with torch.device("meta"):  # its tensors stand in the file
            return _NORMS[kind](width, eps=eps, momentum=momentum, affine=affine)
    if kind in DROPOUT_MODULES:
        p, inplace = data["p"], data.get("inplace", False)  # archives of early versions: never in place
        _require(type(p) in (int, float) and 0 <= p <= 1 and type(inplace) is bool, f"{kind} {str(data)[:80]}")
        return DROPOUT_MODULES[kind](p, inplace=inplace)
    if kind in ("TreeInputs", "TreeOutput"):
        spec = tree_from_json(data["tree"]) if "tree" in data else tree_from_torch(data["spec"])
        return TreeInputs(spec) if kind == "TreeInputs" else TreeOutput(spec)
    raise DataError(f"the saved graph names a module of unknown kind {kind!r}: it was not written by metaprune")


def _attach(root: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module at `path`, with the tensors that stand there already; their names and shapes have to be its own."""
    try:
        held = root.get_submodule(path)
    except AttributeError:
        held = None
    own = {n: t for n, t in [*module.named_parameters(), *module.named_buffers()] if t is not None}
    there = {} if held is None else {**held._parameters, **held._buffers}
    _require(held is None or not held._modules, f"module {path!r}")
    _require(own.keys() == there.keys(), f"module {path!r} without its tensors")
    _require(
        all(t.shape == getattr(there[n], "shape", None) for n, t in own.items()),
        f"module {path!r} with tensors of other sizes",
    )
    if held is None:
        root.add_module(path, module)
        return
    for name, tensor in there.items():
        setattr(module, name, tensor)
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


def _decode(value: Any, known: dict[str, fx.Node], depth: int = 0) -> Any:
    _require(depth <= _DEPTH, "arguments that are nested too deeply")
    if isinstance(value, list):
        return [_decode(v, known, depth + 1) for v in value]
    if not isinstance(value, dict):
        return value
    _require(len(value) == 1, f"a value {str(value)[:80]}")
    kind, inner = next(iter(value.items()))
    if kind == "tuple" and isinstance(inner, list):
        return tuple(_decode(v, known, depth + 1) for v in inner)
    if kind == "dict" and isinstance(inner, dict):
        return {k: _decode(v, known, depth + 1) for k, v in inner.items()}
    if isinstance(inner, str):
        if kind == "node":
            _require(inner in known, f"node {inner!r} before it is made")
            return known[inner]
        if kind == "float":
            return float(inner)
        if kind == "device":
            return torch.device(inner)
        decoded = getattr(torch, inner, None) if kind in _TORCH_VALUES.values() and _NAME.fullmatch(inner) else None
        if isinstance(decoded, tuple(_TORCH_VALUES)) and _TORCH_VALUES[type(decoded)] == kind:
            return decoded
    raise DataError(f"the saved graph holds a value {kind}={str(inner)[:60]!r}, which no graph of metaprune does")
