"""model + example inputs -> `Captured`: a flat ATen graph with parameters named once.

`torch.export` (non-strict, not decomposed, dynamic batch) keeps high-level operators (linear, conv2d, layer_norm,
scaled_dot_product_attention, batch_norm with its training flag). Three clean-ups follow: no-grad regions are inlined,
dtype assertions dropped (they would forbid another dtype), tied tensors unified by identity.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch import fx, nn
from torch.amp.autocast_mode import _enter_autocast as enter_autocast
from torch.amp.autocast_mode import _exit_autocast as exit_autocast
from torch.utils import _pytree as pytree

from metaprune.core.side_effects import side_effects_undone
from metaprune.graph.batch_dimension import symbolic_sizes
from metaprune.graph.dispatcher import measured_sizes
from metaprune.graph.exporting import export_once, export_program
from metaprune.graph.transformers_models import as_traced

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
    symbols: set[Any] = field(default_factory=set)  # the batch symbols; empty if the batch is fixed
    batch: torch.SymInt | None = None  # the batch of the first batched input, as the graph has it
    batch_fixed: str = ""  # why, where it is fixed
    measured: dict[Any, int] = field(default_factory=dict)  # sizes that depend on values, by symbol, on the example

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
            if batch is None and node.has_hint():
                return int(node.hint)
            known = {s: int(v) for s, v in node.shape_env.backed_var_to_val.items()}
            share = 1.0
            if batch is not None and self.symbols:
                share = batch / known[next(iter(self.symbols))]
                known |= dict.fromkeys(self.symbols, batch)
            # how many entries a mask has is taken to be in proportion to the batch
            known |= {s: max(1, round(n * share)) for s, n in self.measured.items()}
            return int(sympy.sympify(node.expr).xreplace(known))
        if isinstance(value, (list, tuple)):
            return [self.concrete(v, batch) for v in value]
        return value


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put the model in eval mode inside the block; what happens to it there is undone (see `side_effects_undone`)."""
    with side_effects_undone(model):
        for module in model.modules():
            module.training = False
        yield


def capture(model: nn.Module, args: tuple, kwargs: dict[str, Any], batch_dim: int = 0) -> Captured:
    """Export `model` in eval mode on example inputs.

    Raises:
        UntraceableError: the model cannot be exported; names the module, the line and the operator.
    """
    with untouched(model), as_traced(model, kwargs):
        exported = export_program(model, args, kwargs, batch_dim)
    captured = _cleaned(exported.program, exported.example)
    captured.batch_fixed = exported.fixed
    leaves = dict(zip(captured.inputs, pytree.tree_leaves(captured.example), strict=True))
    given = {**leaves, **{n: captured.tensors[source] for n, source in captured.sources.items()}}
    captured.measured = measured_sizes(captured.graph, given)
    if not exported.fixed:
        sizes = symbolic_sizes(captured.graph, captured.inputs, batch_dim)
        captured.batch = next(iter(sizes), None)
        captured.symbols = set().union(*(n.node.expr.free_symbols for n in sizes))
    return captured


def capture_training(model: nn.Module, captured: Captured, batch_dim: int = 0) -> Captured | None:
    """Export `model` in train mode where `captured` leaves parameters unused: auxiliary heads, say, that only train.

    None: all are used, or train mode cannot be exported.
    """
    unused = {
        captured.sources[n.name]
        for n in captured.graph.nodes
        if n.op == "placeholder" and n.name in captured.sources and not n.users
    }
    if not any(isinstance(captured.tensors[name], nn.Parameter) for name in unused):
        return None
    with untouched(model), as_traced(model, captured.example[1]):
        for module in model.modules():
            module.training = True
        try:
            program = export_once(model, *captured.example, batch_dim)
        except Exception:  # torch.export raises many unrelated classes
            return None
    return _cleaned(program, captured.example)


def _cleaned(program: Any, example: tuple[tuple, dict[str, Any]]) -> Captured:
    graph = program.graph_module.graph
    _inline_regions(graph, program.graph_module)
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and any(name in str(node.target) for name in DROPPED_OPS) and not node.users:
            graph.erase_node(node)
    state = {**program.state_dict, **program.constants}
    sources, aliases = _unify_tied(program, state)
    return Captured(
        graph=graph,
        tensors={name: state[name] for name in dict.fromkeys(sources.values())},
        sources=sources,
        aliases=aliases,
        inputs=[s.arg.name for s in program.graph_signature.input_specs if s.kind.name == "USER_INPUT"],
        out_spec=program.call_spec.out_spec,
        in_spec=program.call_spec.in_spec,
        example=example,
    )


def _inline_regions(graph: fx.Graph, root: nn.Module) -> None:
    """Inline no-grad and autocast regions; an enabled one stands between nodes that enter and leave autocast."""
    again = True
    while again:
        again = False
        for node in list(graph.nodes):
            name = getattr(node.target, "__name__", str(node.target))
            if node.op != "call_function":
                continue
            if name == "wrap_with_set_grad_enabled":
                body, inputs = node.args[1], node.args[2:]
            elif name == "wrap_with_autocast":
                body, inputs = node.args[4], node.args[5:]
            else:
                continue
            autocast = node.args[:4] if name == "wrap_with_autocast" and node.args[2] else None
            _inline(graph, node, getattr(root, body.target), inputs, autocast)
            again = True
    for node in list(graph.nodes):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)


def _inline(graph: fx.Graph, node: fx.Node, body: fx.GraphModule, inputs: tuple, autocast: tuple | None = None) -> None:
    values = dict(zip([n for n in body.graph.nodes if n.op == "placeholder"], inputs, strict=True))
    result: Any = ()
    with graph.inserting_before(node):
        entered = None if autocast is None else graph.call_function(enter_autocast, autocast)
        for inner in body.graph.nodes:
            if inner.op == "output":
                result = fx.map_arg(inner.args[0], lambda n: values[n])
            elif inner.op == "get_attr":
                setattr(graph.owning_module, inner.target, getattr(body, inner.target))
                values[inner] = graph.get_attr(inner.target)
            elif inner.op != "placeholder":
                values[inner] = graph.node_copy(inner, lambda n: values[n])
        if entered is not None:
            graph.call_function(exit_autocast, (entered,))
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
