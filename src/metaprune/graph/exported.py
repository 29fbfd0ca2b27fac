"""A program of `torch.export` -> `Captured`."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import fx, nn
from torch.amp.autocast_mode import _enter_autocast as enter_autocast
from torch.amp.autocast_mode import _exit_autocast as exit_autocast

from metaprune.core.batches import batch_size
from metaprune.graph.captured import Captured
from metaprune.graph.dispatcher import measured_sizes
from metaprune.graph.exporting import Exported, batch_range
from metaprune.graph.shapes import BatchedSize, TensorValue

DROPPED_OPS = ("_assert_tensor_metadata", "_assert_scalar", "sym_constrain_range", "_guards_fn")


def captured_from(exported: Exported, batch_dim: int) -> Captured:
    """Make a flat graph of an exported program.

    No-grad and autocast regions are inlined, assertions on dtypes dropped (they would forbid another dtype), tied
    tensors unified by identity, and symbolic sizes become sizes that follow the batch.
    """
    program = exported.program
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
        example=exported.example,
        batch_dim=batch_dim,
        varies=exported.varies,
        batch_range=batch_range(program) if exported.varies else (1, None),
        batch=BatchedSize() if exported.varies and not exported.fixed else None,
        batch_fixed=exported.fixed,
    )
    sizes = _Sizes(measured_sizes(captured), batch_size(*exported.example, batch_dim))
    for node in graph.nodes:
        node.meta = {"module": _module_path(node), "val": sizes.of(node.meta.get("val"))}
    return captured


class _Sizes:
    """Symbolic sizes of an export -> sizes that follow the batch."""

    def __init__(self, measured: dict[Any, int], batch: int):
        self._measured, self._batch = tuple(measured.items()), batch
        self._known: dict[Any, int | BatchedSize] = {}

    def of(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return TensorValue(tuple(self.of(n) for n in value.shape), value.dtype, value.device)
        if isinstance(value, torch.SymInt):
            expression = value.node.expr
            if expression not in self._known:
                self._known[expression] = self._size(expression)
            return self._known[expression]
        return type(value)(self.of(v) for v in value) if type(value) in (list, tuple) else value

    def _size(self, expression: Any) -> int | BatchedSize:
        if not expression.free_symbols:
            return int(expression)
        size = ExpressionSize(expression=expression, measured=self._measured, traced_batch=self._batch)
        one, two, far = (size.at(b) for b in (1, 2, 1025))
        line = BatchedSize(two - one, 2 * one - two)
        return line if not self._measured and line.at(1025) == far else size


@dataclass(frozen=True, slots=True)
class ExpressionSize(BatchedSize):
    """A size that follows the batch in no straight line, or depends on values.

    How many entries a mask has (`measured`, on the example) is taken to be in proportion to the batch.
    """

    expression: Any = None
    measured: tuple[tuple[Any, int], ...] = ()
    traced_batch: int = 1

    def at(self, batch: int) -> int:
        """Compute the size at a batch size."""
        share = batch / max(1, self.traced_batch)
        known = {s: max(1, round(n * share)) for s, n in self.measured}
        return int(
            self.expression.xreplace({s: sympy.Integer(known.get(s, batch)) for s in self.expression.free_symbols})
        )


def _module_path(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    paths = [entry[0] for entry in stack.values() if not entry[0].startswith("_empty")]
    return paths[-1].removeprefix("L['self'].").removeprefix("L['self']") if paths else ""


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
