"""What is left of an empty branch: its last biases and what follows them, once, in place of a branch that runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from metaprune.graph.branches import BIAS_OF, Candidate, branch_candidates, rest_of
from metaprune.graph.call import Survivors, bound_arguments
from metaprune.graph.captured import Captured, op_name
from metaprune.graph.labelling import Labelled
from metaprune.graph.patching import patched_call
from metaprune.values import Branch, Space

_SAME = 1e-9  # relative, float64: sums of equal numbers differ by their rounding
Rewrite = Callable[[Any], Any]
"""Literals of a call -> those that a run needs (another dtype, another device)."""


def find_branches(captured: Captured, labelled: Labelled, space: Space) -> tuple[Branch, ...]:
    """Branches that leave a number per channel, equal at all positions and for all samples, or nothing."""
    found: list[Branch] = []
    taken: set[str] = set()
    for candidate in branch_candidates(captured, labelled, space):
        name = candidate.branch.name
        name = name if name not in taken else f"{name}#{sum(t.partition('#')[0] == name for t in taken) + 1}"
        taken.add(name)
        noise = _Noise(captured.tensors)
        value = Rest(captured, labelled, candidate, None).at_all_positions(noise, _double)
        along = _varying(value)
        if value.isfinite().all() and len(along) <= 1:
            dim = along[0] if along else value.dim() - 1
            found.append(replace(candidate.branch, name=name, constant=bool(value.any()), channel_dim=dim))
    return tuple(b for i, b in enumerate(found) if not _leaves_nothing_to_add(b, found[:i], found))


def _leaves_nothing_to_add(branch: Branch, before: Sequence[Branch], found: Sequence[Branch]) -> bool:
    """Whether an earlier branch is the other operand of the same addition, and no branch around both takes it along."""
    for other in (b for b in before if b.addition == branch.addition):
        both = {*branch.groups, *other.groups}
        if not any(branch.addition in b.gone and both.issuperset(b.groups) for b in found):
            return True
    return False


def emptied_branches(space: Space, alive: Survivors) -> list[Branch]:
    """Branches of which no channel survives, outer ones after those inside them."""
    return [b for b in space.branches if not any(alive.rows_of(space[g].atoms[:, None]).any() for g in b.groups)]


def outermost(emptied: Sequence[Branch]) -> list[Branch]:
    """Leave out branches that lie inside others."""
    gone = frozenset().union(*(b.gone for b in emptied))
    return [b for b in emptied if b.addition not in gone]


def lost_tensors(space: Space, alive: Survivors) -> frozenset[str]:
    """Names of the model's tensors that nothing reads any more, as their branches are empty."""
    return frozenset().union(*(b.tensors for b in emptied_branches(space, alive)))


@dataclass(frozen=True)
class Rest:
    """The nodes of an empty branch that still say something, among certain survivors.

    They run at the sizes of the example, whatever the batch: what they give is the same for all samples.
    """

    captured: Captured
    labelled: Labelled
    candidate: Candidate
    alive: Survivors | None

    @classmethod
    def of(cls, captured: Captured, labelled: Labelled, space: Space, branch: Branch, alive: Survivors) -> Rest:
        """Look the nodes of a branch up."""
        return cls(captured, labelled, rest_of(captured, labelled, space, branch), alive)

    @property
    def branch(self) -> Branch:
        return self.candidate.branch

    @property
    def names(self) -> list[str]:
        """Names of the tensors that it reads."""
        read = [n for node in self.candidate.rest for n in self._inputs(node)]
        return list(dict.fromkeys(self.captured.sources[n.name] for n in read if n.name in self.captured.sources))

    def constant(self, tensors: Mapping[str, Tensor], rewrite: Rewrite = lambda x: x) -> Tensor:
        """Compute what is added to the stream, of size one wherever it is the same: [channels, 1, 1] of an image.

        tensors: those of `names`, of these survivors' shapes; gradients reach them.
        """
        value = self.at_all_positions(tensors, rewrite)
        dim = self.branch.channel_dim
        for d in range(value.dim()):
            value = value if d == dim else value.narrow(d, 0, 1)
        return value.reshape(value.shape[dim:])

    def stored(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Compute the constant in double precision, and round it to the type that the addend has."""
        doubled = {n: t.double() if t.is_floating_point() else t for n, t in tensors.items()}
        return self.constant(doubled, _double).to(self.candidate.rest[-1].meta["val"].dtype)

    def at_all_positions(self, tensors: Mapping[str, Tensor], rewrite: Rewrite) -> Tensor:
        """Compute the whole addend, in eval mode."""
        values: dict[fx.Node, Any] = {}

        def value_of(x: Any) -> Any:
            if isinstance(x, fx.Node):
                if x.name in self.captured.sources:
                    return tensors[self.captured.sources[x.name]]
                if x.op == "get_attr":
                    return getattr(self.captured.graph.owning_module, str(x.target))
                return values[x] if x in values else self.captured.concrete(x.meta["val"])
            if isinstance(x, (list, tuple)):
                return [value_of(v) for v in x]
            return {n: value_of(v) for n, v in x.items()} if isinstance(x, dict) else rewrite(x)

        for node in self.candidate.rest:
            if node in self.candidate.products:
                values[node] = self._over_nothing(node, value_of)
                continue
            target, args, kwargs = patched_call(
                node,
                self.labelled.facts[node.name],
                self.alive,
                lambda size, count, total: self.captured.concrete(size.meta["val"]) * count // total,
                torch.from_numpy,
            )
            values[node] = target(*value_of(args), **value_of(kwargs))
        return values[self.candidate.rest[-1]]

    def _over_nothing(self, node: fx.Node, value_of: Callable[[Any], Any]) -> Tensor:
        """What a product over an empty dimension gives: its bias, or zeros."""
        value, labels = node.meta["val"], self.labelled.facts[node.name].labels[0] or []
        sizes = self.captured.concrete(value)
        shape = [
            n if x is None or self.alive is None else self.alive.count(x) for n, x in zip(sizes, labels, strict=True)
        ]
        arguments = bound_arguments(node)
        bias = arguments.get(BIAS_OF[op_name(node.target)])
        if bias is None:
            return torch.zeros(shape, dtype=value_of(value.dtype), device=value_of(value.device))
        added = value_of(bias)
        if op_name(node.target).startswith("conv"):
            added = added.reshape(-1, *[1] * (arguments["weight"].meta["val"].dim() - 2))
        return (added * arguments.get("beta", 1)).expand(shape).clone()

    def _inputs(self, node: fx.Node) -> Iterable[fx.Node]:
        if node not in self.candidate.products:
            return node.all_input_nodes
        bias = bound_arguments(node).get(BIAS_OF[op_name(node.target)])
        return [bias] if isinstance(bias, fx.Node) else []


class _Noise(Mapping[str, Tensor]):
    """Positive noise in place of a network's tensors, in float64: a sum of it is zero for no accident."""

    def __init__(self, tensors: Mapping[str, Tensor]):
        self._tensors = tensors

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._tensors[name]
        if not tensor.is_floating_point():
            return tensor
        seed = torch.Generator().manual_seed(len(name))
        return 0.5 + torch.rand(tensor.shape, dtype=torch.float64, generator=seed).to(tensor.device)

    def __iter__(self) -> Any:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _double(literal: Any) -> Any:
    is_float = isinstance(literal, torch.dtype) and literal.is_floating_point
    return torch.float64 if is_float else literal


def _varying(value: Tensor) -> list[int]:
    """Dimensions along which a value differs."""
    scale = float(value.abs().max()) if value.numel() else 0.0
    return [
        d
        for d in range(value.dim())
        if value.shape[d] > 1 and bool(((value - value.narrow(d, 0, 1)).abs() > _SAME * scale).any())
    ]
