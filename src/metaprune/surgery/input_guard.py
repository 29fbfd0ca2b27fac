"""What a graph form may be called with: it holds the sizes of its trace, so that other inputs might go wrong silently.

Sizes of lengths, heights and widths are constants of a traced graph. The batch, where it varies, is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from metaprune.core.errors import InputsError
from metaprune.graph.captured import Captured, wrong_batch
from metaprune.graph.shapes import BatchedSize, TensorValue

Dims = list[int | str]  # a size, or the name of a size that may vary


@dataclass(frozen=True)
class InputGuard:
    """What was traced.

    names: of the arguments, the positional ones first.
    leaves: per traced leaf its sizes, or its constant value.
    batches: the smallest and the largest batch that the forward treats as the traced one; None: any.
    ignored: arguments that the graph has no use for, and takes.
    """

    names: tuple[str, ...]
    leaves: tuple[Any, ...]
    batches: tuple[int, int | None] = (1, None)
    ignored: tuple[str, ...] = ()

    def used(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Leave out what is ignored."""
        return {n: v for n, v in kwargs.items() if n not in self.ignored}

    def check(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Compare the inputs of a call with the traced ones.

        Raises:
            InputsError: an argument, a size or a constant that was not traced; says what was, and what to do.
        """
        unknown = [n for n in kwargs if n not in self.names]
        given = {**dict(zip(self.names, args, strict=False)), **kwargs}
        if unknown or len(args) > len(self.names):
            extra = f"no argument {unknown[0]!r}" if unknown else f"no {len(args)} arguments"
            raise InputsError(f"this graph form takes {extra}: it was traced with {', '.join(self.names)}. {_REMEDY}")
        missing = [n for n in self.names if n not in given]
        if missing:
            raise InputsError(f"this graph form needs {missing[0]!r}, with which it was traced. {_REMEDY}")
        leaves = pytree.tree_leaves([given[n] for n in self.names])
        if len(leaves) != len(self.leaves):
            return  # of another structure, which is said where it is unpacked
        sizes: dict[str, int] = {}
        if not all(_fits(expected, leaf, sizes) for expected, leaf in zip(self.leaves, leaves, strict=True)):
            called = ", ".join(map(_described, leaves))
            raise InputsError(
                f"this graph form was traced with {self.described()} and is called with {called}. {_REMEDY}"
            )
        low, high = self.batches
        if not all(low <= n and (high is None or n <= high) for n in sizes.values()):
            raise InputsError(wrong_batch(max(sizes.values()), low, high))

    def described(self) -> str:
        """Say the traced inputs, as `[batch, 3, 32, 32], True`."""
        return ", ".join(
            f"[{', '.join('any' if isinstance(n, str) else str(n) for n in leaf)}]"
            if isinstance(leaf, list)
            else repr(leaf)
            for leaf in self.leaves
        )

    def to_dict(self) -> dict[str, Any]:
        """Write as JSON types."""
        known = {"names": list(self.names), "leaves": list(self.leaves), "batches": list(self.batches)}
        return {**known, "ignored": list(self.ignored)} if self.ignored else known

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> InputGuard:
        """Read what `to_dict` wrote."""
        low, high = data.get("batches", (1, None))
        return cls(tuple(data["names"]), tuple(data["leaves"]), (low, high), tuple(data.get("ignored", ())))


_REMEDY = (
    "For inputs of any size take the model's own class (keep_module=True, or form='module'), or trace with an example "
    "of this size"
)


def _fits(expected: Any, leaf: Any, sizes: dict[str, int]) -> bool:
    if not isinstance(expected, list):
        return isinstance(leaf, torch.Tensor) is False and leaf == expected
    if not isinstance(leaf, torch.Tensor) or leaf.dim() != len(expected):
        return False
    return all(
        n == (sizes.setdefault(size, n) if isinstance(size, str) else size)
        for n, size in zip(leaf.shape, expected, strict=True)
    )


def _described(leaf: Any) -> str:
    return str(list(leaf.shape)) if isinstance(leaf, torch.Tensor) else repr(leaf)


def guard_of(captured: Captured, names: Sequence[str], ignored: tuple[str, ...] = ()) -> InputGuard:
    """Describe the traced inputs."""
    by_name = {n.name: n for n in captured.graph.nodes}
    leaves: list[Any] = []
    for name, value in zip(captured.inputs, pytree.tree_leaves(captured.example), strict=True):
        traced = by_name[name].meta.get("val")
        if isinstance(traced, TensorValue):
            sizes = zip(traced.shape, captured.concrete(traced), strict=True)
            leaves.append(["batch" if captured.varies and isinstance(n, BatchedSize) else size for n, size in sizes])
        else:
            leaves.append(value if isinstance(value, (bool, int, float, str, type(None))) else None)
    return InputGuard(tuple(names), tuple(leaves), captured.batch_range, ignored)


class CutGraph(fx.GraphModule):
    """A graph form, which checks what it is called with. The guard is kept in `meta`, which copies take along.

    A network's own submodule `code` is that submodule here, where fx would give the text of the graph.
    """

    @property
    def code(self) -> Any:
        """Return the submodule of that name, else the graph as text.

        Raises:
            AttributeError: neither is there yet.
        """
        if "code" in self._modules:
            return self._modules["code"]
        if "_code" not in vars(self):  # fx asks before it places submodules
            raise AttributeError("code")
        return super().code

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        guard = self.meta.get("inputs")
        if guard is not None:
            kwargs = guard.used(kwargs)
            guard.check(args, kwargs)
        return super().__call__(*args, **kwargs)
