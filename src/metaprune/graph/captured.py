"""`Captured`: a flat ATen graph with parameters named once, whichever way it was captured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from metaprune.core.batches import batch_size
from metaprune.graph.shapes import BatchedSize, concrete


def leaves_with_paths(value: Any) -> list[tuple[tuple, Any]]:
    """Leaves of nested containers, None among them, and the keys that lead to each.

    A class that is registered with PyTorch, but without keys, is read as a mapping where it is one, or else counted.
    """
    if hasattr(value, "to_tuple") and hasattr(value, "items"):
        value = dict(value.items())
    is_none = lambda x: x is None  # noqa: E731
    try:
        return pytree.tree_flatten_with_path(value, is_leaf=is_none)[0]
    except ValueError:
        leaves = pytree.tree_leaves(value, is_leaf=is_none)
        return [((pytree.SequenceKey(i),), leaf) for i, leaf in enumerate(leaves)]


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
    batch_dim: int = 0
    varies: bool = False  # whether the graph is right on batches of other sizes
    batch_range: tuple[int, int | None] = (1, None)  # smallest and largest batch that goes the captured way
    batch: BatchedSize | None = None  # the batch, as the graph has it; None if it is fixed, or no batch
    batch_fixed: str = ""  # why, where it is fixed
    not_recorded: str = ""  # why `torch.export` made the graph; empty where the recorder did

    def output_names(self) -> list[str]:
        """Name every leaf of the output: `logits` of a dict or dataclass, `0.1` of nested tuples, `` of one tensor."""
        output = next(n for n in self.graph.nodes if n.op == "output")
        flat = pytree.tree_leaves(output.args[0], is_leaf=lambda x: x is None)
        values = [n.meta.get("val") if isinstance(n, fx.Node) else n for n in flat]  # a class may look at its fields
        leaves = leaves_with_paths(pytree.tree_unflatten(values, self.out_spec))
        key = lambda k: str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k))))  # noqa: E731
        return [".".join(key(k) for k in path) for path, _ in leaves]

    def takes(self, batch: int) -> bool:
        """Tell whether Python's branches on sizes go the captured way on a batch of that size."""
        low, high = self.batch_range
        return not self.varies or (low <= batch and (high is None or batch <= high))

    def concrete(self, value: Any, batch: int | None = None) -> Any:
        """Shapes of a node's value as ints, at the example's batch or at `batch`."""
        return concrete(value, self._traced_batch if batch is None else batch)

    @cached_property
    def _traced_batch(self) -> int:
        return batch_size(*self.example, self.batch_dim)


def wrong_batch(batch: int, low: int, high: int | None) -> str:
    """Say that a forward branches on the batch size, so that what was traced is wrong for a batch of that size."""
    traced = f"of {low} to {high}" if high is not None else f"of {low} and more"
    return (
        f"a batch of {batch}: the model's forward branches on the batch size, and what was traced is its branch for "
        f"batches {traced}. Trace with an example of {batch} samples, or take the model's own class (form='module')"
    )


def module_of(node: fx.Node) -> str:
    """Path of the innermost module that a node was executed in ('' for the root)."""
    return node.meta.get("module", "")


def op_name(target: Callable | str) -> str:
    """Name an operator: `linear` for aten.linear.default, `getitem` for operator.getitem."""
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name.split("::")[-1]
    return getattr(target, "__name__", str(target))
