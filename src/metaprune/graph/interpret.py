"""Run a traced graph as it is, at full width; and whether it computes what the model does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from metaprune.graph.batch_dimension import close
from metaprune.graph.captured import Captured


class _Looking(fx.Interpreter):
    """Hands every node with what it made to `look`."""

    def __init__(self, graph: fx.Graph, look: Callable[[fx.Node, Any], None] | None):
        super().__init__(graph.owning_module or nn.Module(), graph=graph)
        self.extra_traceback = False
        self._look = look

    def run_node(self, n: fx.Node) -> Any:
        made = super().run_node(n)
        if self._look is not None and n.op == "call_function":
            self._look(n, made)
        return made


@torch.no_grad()
def run_graph(graph: fx.Graph, values: Mapping[str, Any], look: Callable[[fx.Node, Any], None] | None = None) -> list:
    """Run every node once; returns the leaves of the output.

    Args:
        values: of every placeholder, by its name; tensors that the graph may write into are the caller's to copy.
        look: is given every node with what it made.
    """
    inputs = [values[n.name] for n in graph.nodes if n.op == "placeholder"]
    return pytree.tree_leaves(_Looking(graph, look).run(*inputs), is_leaf=lambda x: x is None)


def placeholder_values(captured: Captured, leaves: list[Any]) -> dict[str, Any]:
    """Collect what `run_graph` runs on; buffers and inputs are copies, as the graph may write into them."""

    def copy(tensor: Any) -> Any:
        return tensor.clone() if isinstance(tensor, Tensor) and not isinstance(tensor, nn.Parameter) else tensor

    inputs = {name: copy(leaf) for name, leaf in zip(captured.inputs, leaves, strict=True)}
    return inputs | {node: copy(captured.tensors[name]) for node, name in captured.sources.items()}


def agrees(captured: Captured, leaves: list[Any], returned: list[Any]) -> bool:
    """Tell whether the graph makes of inputs (leaves) what the model returned (leaves), up to rounding."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        made = run_graph(captured.graph, placeholder_values(captured, leaves))
    if len(made) != len(returned):
        return False
    pairs = [(x, y) for x, y in zip(made, returned, strict=True) if isinstance(y, Tensor)]
    return all(isinstance(x, Tensor) and x.dtype == y.dtype and close(_real(x), _real(y)) for x, y in pairs)


def _real(x: Tensor) -> Tensor:
    return torch.view_as_real(x) if x.is_complex() else x
