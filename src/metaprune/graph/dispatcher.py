"""What only running tells of a traced graph: sizes that depend on values, and MACs of operators without a rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from metaprune.graph.captured import Captured
from metaprune.graph.interpret import placeholder_values, run_graph
from metaprune.graph.shapes import TensorValue


def _depends_on_values(traced: Any) -> bool:
    """Whether a size has none at trace time (how many entries of a mask are true, say)."""
    leaves = pytree.tree_leaves(traced)
    sizes = [n for x in leaves if isinstance(x, torch.Tensor) for n in x.shape] + leaves
    return any(isinstance(n, torch.SymInt) and not n.node.has_hint() for n in sizes)


def measured_sizes(captured: Captured) -> dict[Any, int]:
    """Run an exported graph once on the example and read off the sizes that no shape tells."""
    sizes: dict[Any, int] = {}
    if any(_depends_on_values(n.meta.get("val")) for n in captured.graph.nodes):
        values = placeholder_values(captured, pytree.tree_leaves(captured.example))
        with torch.random.fork_rng(devices=[]):
            run_graph(captured.graph, values, lambda node, made: _read(node.meta.get("val"), made, sizes))
    return sizes


def _read(traced: Any, actual: Any, sizes: dict[Any, int]) -> None:
    pairs: list[tuple[Any, int]] = []
    for t, a in zip(pytree.tree_leaves(traced), pytree.tree_leaves(actual), strict=False):
        if isinstance(t, torch.Tensor) and isinstance(a, torch.Tensor):
            pairs += zip(t.shape, a.shape, strict=True)
        elif isinstance(t, torch.SymInt):
            pairs.append((t, int(a)))
    for size, number in pairs:
        if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol and not size.node.has_hint():
            sizes.setdefault(size.node.expr, int(number))


def dispatched_macs(node: fx.Node, concrete: Callable[[Any], Any]) -> int:
    """Count the MACs of one node at its traced size by torch's dispatcher; 0 where that cannot run it.

    Half of what `FlopCounterMode` counts, which knows products and convolutions.

    Args:
        concrete: from a traced tensor or number to its shape or size, as `Captured.concrete`.
    """
    target, owner = cast("Any", node.target), node.graph.owning_module

    def stand_in(traced: Any) -> Any:
        if isinstance(traced, TensorValue):
            return torch.empty(concrete(traced), dtype=traced.dtype, device=traced.device)
        return concrete(traced)

    def value(n: fx.Node) -> Any:
        if n.op == "get_attr":
            return getattr(owner, str(n.target))
        return pytree.tree_map(stand_in, n.meta.get("val"))

    try:
        # a mode of its own: in the trace's, numbers that are looked at would become constants of the graph
        with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter:
            args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), value)
            target(*args, **kwargs)
        return int(counter.get_total_flops()) // 2
    except Exception:  # a size that depends on values, or an operator that cannot be run on shapes
        return 0
