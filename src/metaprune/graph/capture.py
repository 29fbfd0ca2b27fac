"""model + example inputs -> `Captured`: a flat ATen graph with parameters named once.

`torch.export` (non-strict, not decomposed, dynamic batch) keeps high-level operators (linear, conv2d, layer_norm,
scaled_dot_product_attention, batch_norm with its training flag). Three clean-ups follow: no-grad regions are inlined,
dtype assertions dropped (they would forbid another dtype), tied tensors unified by identity.
"""

from __future__ import annotations

import inspect
import linecache
import operator
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from metaprune.core.batches import batch_size, is_batched, with_batch
from metaprune.core.errors import UntraceableError

DROPPED_OPS = ("_assert_tensor_metadata", "_assert_scalar", "sym_constrain_range", "_guards_fn")


@dataclass
class Captured:
    """A flat graph. Tensors are the model's own (not copies): `tensors[name]` for every name in `sources.values()`."""

    graph: fx.Graph
    tensors: dict[str, torch.Tensor]
    sources: dict[str, str]  # placeholder node name -> canonical tensor name
    aliases: dict[str, str]  # every other name of a tied tensor -> its canonical name
    inputs: list[str]  # placeholder node names of the user's inputs, flattened
    out_spec: pytree.TreeSpec
    in_spec: pytree.TreeSpec
    example: tuple[tuple, dict]
    symbols: set[Any] = field(default_factory=set)  # the batch symbols; empty if the batch size got fixed

    def output_names(self) -> list[str]:
        """Name every leaf of the output: `logits` of a dict or dataclass, `0.1` of nested tuples, `` of one tensor."""
        output = next(n for n in self.graph.nodes if n.op == "output")
        flat = pytree.tree_leaves(output.args[0], is_leaf=lambda x: x is None)
        values = [n.meta.get("val") if isinstance(n, fx.Node) else n for n in flat]  # a class may look at its fields
        leaves = pytree.tree_flatten_with_path(
            pytree.tree_unflatten(values, self.out_spec), is_leaf=lambda x: x is None
        )[0]
        key = lambda k: str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k))))  # noqa: E731
        return [".".join(key(k) for k in path) for path, _ in leaves]

    def concrete(self, value: Any, batch: int | None = None) -> Any:
        """Shapes of a node's value as ints; the batch symbol takes the traced size, or `batch` if given."""
        if isinstance(value, torch.Tensor):
            return tuple(self.concrete(s, batch) for s in value.shape)
        if isinstance(value, torch.SymInt):
            node = value.node
            if batch is None:
                return int(node.hint)
            return int(node.expr.xreplace({s: batch for s in self.symbols}))
        if isinstance(value, (list, tuple)):
            return [self.concrete(v, batch) for v in value]
        return value


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Eval mode inside the block; every module's mode and the global random state come back afterwards."""
    modes = [(m, m.training) for m in model.modules()]
    with torch.random.fork_rng(devices=[]):
        try:
            for m, _ in modes:
                m.training = False
            yield
        finally:
            for m, mode in modes:
                m.training = mode


def capture(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Captured:
    """Export `model` on example inputs.

    Raises:
        UntraceableError: the model cannot be exported; names the module, the line and the operator.
    """
    with untouched(model):
        program, (args, kwargs) = _export(model, args, kwargs)
    graph = program.graph_module.graph
    _inline_regions(graph, program.graph_module)
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and any(name in str(node.target) for name in DROPPED_OPS) and not node.users:
            graph.erase_node(node)
    state = {**program.state_dict, **program.constants}
    sources, aliases = _unify_tied(program, state)
    captured = Captured(
        graph=graph,
        tensors={name: state[name] for name in dict.fromkeys(sources.values())},
        sources=sources,
        aliases=aliases,
        inputs=[s.arg.name for s in program.graph_signature.input_specs if s.kind.name == "USER_INPUT"],
        out_spec=program.call_spec.out_spec,
        in_spec=program.call_spec.in_spec,
        example=(args, kwargs),
    )
    by_name = {n.name: n for n in graph.nodes}
    for name in captured.inputs:
        value = by_name[name].meta.get("val")
        if isinstance(value, torch.Tensor) and value.dim() and isinstance(value.shape[0], torch.SymInt):
            captured.symbols |= set(value.shape[0].node.expr.free_symbols)
    return captured


def _export(model: nn.Module, args: tuple, kwargs: dict) -> tuple[Any, tuple[tuple, dict]]:
    """Try with a batch of two (a batch of one would be taken for a constant), then with the inputs as given."""
    attempts = [(args, kwargs)]
    if batch_size(args, kwargs) not in (0, 2):
        attempts.insert(0, with_batch(args, kwargs, 2))
    error: Exception | None = None
    for attempt in attempts:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return _export_once(model, *attempt), attempt
        except Exception as caught:  # torch.export raises many unrelated classes
            error = caught
    assert error is not None
    raise UntraceableError(_eager_failure(model, args, kwargs) or _explain_failure(model, error)) from error


def _export_once(model: nn.Module, args: tuple, kwargs: dict) -> Any:
    shapes = torch.export.ShapesCollection()
    batch = batch_size(args, kwargs)
    seen: set[int] = set()
    for leaf in pytree.tree_leaves((args, kwargs)):
        if is_batched(leaf, batch) and id(leaf) not in seen:
            seen.add(id(leaf))
            shapes[leaf] = {0: torch.export.Dim.AUTO}
    # torch.export (2.13) cannot name the shapes of `**kwargs`: such a forward keeps the batch size of the example
    named = set(kwargs) <= set(inspect.signature(model.forward).parameters)
    dynamic: Any = shapes if seen and batch > 1 and named else None
    return torch.export.export(model, args, kwargs or None, dynamic_shapes=dynamic, strict=False)


def _inline_regions(graph: fx.Graph, root: nn.Module) -> None:
    """Inline no-grad regions and disabled autocast regions; an enabled autocast region stays one opaque node."""
    again = True
    while again:
        again = False
        for node in list(graph.nodes):
            name = getattr(node.target, "__name__", str(node.target))
            if node.op != "call_function":
                continue
            if name == "wrap_with_set_grad_enabled":
                body, inputs = node.args[1], node.args[2:]
            elif name == "wrap_with_autocast" and node.args[2] is False:
                body, inputs = node.args[4], node.args[5:]
            else:
                continue
            _inline(graph, node, getattr(root, body.target), inputs)
            again = True
    for node in list(graph.nodes):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)


def _inline(graph: fx.Graph, node: fx.Node, body: fx.GraphModule, inputs: tuple) -> None:
    values = dict(zip([n for n in body.graph.nodes if n.op == "placeholder"], inputs, strict=True))
    result: Any = ()
    with graph.inserting_before(node):
        for inner in body.graph.nodes:
            if inner.op == "output":
                result = fx.map_arg(inner.args[0], lambda n: values[n])
            elif inner.op == "get_attr":
                setattr(graph.owning_module, inner.target, getattr(body, inner.target))
                values[inner] = graph.get_attr(inner.target)
            elif inner.op != "placeholder":
                values[inner] = graph.node_copy(inner, lambda n: values[n])
    for user in list(node.users):
        if user.target is operator.getitem:
            user.replace_all_uses_with(result[user.args[1]])
            graph.erase_node(user)
    if node.users:
        node.replace_all_uses_with(result)
    graph.erase_node(node)


def _unify_tied(program: Any, state: dict[str, torch.Tensor]) -> tuple[dict[str, str], dict[str, str]]:
    """Placeholders of one and the same tensor become one; the first name is the canonical one."""
    canonical: dict[int, str] = {}
    first: dict[str, fx.Node] = {}
    sources, aliases = {}, {}
    nodes = {n.name: n for n in program.graph_module.graph.nodes}
    for spec in program.graph_signature.input_specs:
        if spec.kind.name == "USER_INPUT" or spec.arg.name not in nodes or spec.target not in state:
            continue
        name = canonical.setdefault(id(state[spec.target]), spec.target)
        node = nodes[spec.arg.name]
        if name == spec.target:
            first[name] = node
            sources[node.name] = name
        else:
            aliases[spec.target] = name
            node.replace_all_uses_with(first[name])
            program.graph_module.graph.erase_node(node)  # what is left of the placeholders: sources and inputs
    return sources, aliases


def _eager_failure(model: nn.Module, args: tuple, kwargs: dict) -> str | None:
    """What to say if the model does not even run on the inputs, which is then no matter of export."""
    try:
        with torch.no_grad():
            model(*args, **kwargs)
    except Exception as error:
        first = next((t for t in str(error).splitlines() if t.strip()), "")
        return (
            f"{type(model).__name__} does not run on the example inputs: {type(error).__name__}: {first[:300]}\n"
            "What to do: give inputs of the shape, type and device that its forward takes."
        )
    return None


def _explain_failure(model: nn.Module, error: Exception) -> str:
    """Name the innermost user module and source line that export stopped at, and what to do."""
    paths = {id(m): name or "(root)" for name, m in model.named_modules()}
    where, line = "(root)", ""
    trace = error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        owner = frame.f_locals.get("self")
        if (
            isinstance(owner, nn.Module)
            and id(owner) in paths
            and "torch/nn/modules/module" not in frame.f_code.co_filename
        ):
            where = f"{paths[id(owner)]} ({type(owner).__name__})"
            line = linecache.getline(frame.f_code.co_filename, trace.tb_lineno).strip()
        trace = trace.tb_next
    first = next((t for t in str(error).splitlines() if t.strip()), type(error).__name__)
    if not line:  # not stopped in a forward: a kind of module or of output that export does not take
        return (
            f"torch.export does not take {type(model).__name__}: {type(error).__name__}: {first[:300]}\n"
            "What to do: pass an initialised nn.Module that returns tensors, tuples, lists, dicts or NamedTuples. "
            "A dataclass works once it is registered: torch.export.register_dataclass(TheClass)."
        )
    return (
        f"torch.export could not capture module {where} at `{line}`: {type(error).__name__}: {first[:300]}\n"
        "What to do: a branch on tensor values becomes torch.where or torch.cond; .item() and numpy calls move out of "
        "forward; or trace the part of the model that is free of them."
    )


def module_of(node: fx.Node) -> str:
    """Path of the innermost module that a node was executed in ('' for the root)."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [entry[0] for entry in stack.values() if not entry[0].startswith("_empty")]
    return paths[-1].removeprefix("L['self'].").removeprefix("L['self']") if paths else ""


def op_name(target: Callable | str) -> str:
    """Name an operator: `linear` for aten.linear.default, `getitem` for operator.getitem."""
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name.split("::")[-1]
    return getattr(target, "__name__", str(target))
