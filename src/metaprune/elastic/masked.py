"""The reference semantics: the full network in which dropped indices are zero wherever they could be consumed.

The model's tensors, and the output of every operator that makes a new tensor, are zero where their labels say dropped;
views are left alone (they alias), in-place operators are masked in place. Statistics over channels are taken over the
survivors (each rule brings its own reference). This is what "the masked original" means, and what a cut is proved
against.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from metaprune.elastic.program import Program, ProgramAtWidths, Step, operands_by_name
from metaprune.graph.branches import BIAS_OF
from metaprune.graph.call import Fact, Labels, Survivors, alias_kind
from metaprune.graph.captured import op_name
from metaprune.graph.labelling import Labelled

# views whose new dimension is tracked although the operand has no such dimension: a sum over it must see the mask
UNIFORM = ("expand", "expand_as", "broadcast_to")


# arguments by position whose dropped rows end in dropped outputs, and whose dropped columns meet zeros
_ONLY_MEET_ACTIVATIONS = {
    "linear": (1, 2),
    "conv1d": (1, 2),
    "conv2d": (1, 2),
    "conv3d": (1, 2),
    "batch_norm": (1, 2, 3, 4),
    "layer_norm": (2, 3),
    "embedding": (0,),
}


def _need_no_mask(program: Program) -> frozenset[str]:
    """Tensors of the model that products and norms alone read, whose outputs are masked anyway."""

    def meets_activations(node: fx.Node, user: fx.Node) -> bool:
        positions = _ONLY_MEET_ACTIVATIONS.get(op_name(user.target) if user.op == "call_function" else "", ())
        return user.all_input_nodes.count(node) == 1 and any(
            position in positions for position, argument in enumerate(user.args) if argument is node
        )

    sources = program.sources
    nodes = (n for n in program.graph.nodes if n.op == "placeholder" and n.name in sources)
    return frozenset(sources[n.name] for n in nodes if all(meets_activations(n, user) for user in n.users))


class _Masks:
    """What the labels of a tensor drop, as bool tensors that are remembered."""

    def __init__(self, alive: Survivors):
        self.alive = alive
        self._known: dict[Any, torch.Tensor | None] = {}

    def apply(self, value: Any, labels: Labels | None, *, in_place: bool = False, fresh: bool = False) -> Any:
        """Zero what is dropped: in a copy, or in the value itself where that is in place or nobody else's."""
        if not isinstance(value, torch.Tensor) or labels is None or value.dtype == torch.bool:
            return value
        dropped = self._dropped(labels, value.device)
        if dropped is None:
            return value
        # filled, not multiplied: an attention bias holds -inf, and -inf * 0 is no zero
        if fresh and not torch.is_grad_enabled():
            return value.masked_fill_(dropped, 0)
        if not in_place:
            return value.masked_fill(dropped, 0)
        if value.detach().masked_fill(~dropped, 0).any():  # writing what is zero already would only upset autograd
            value.masked_fill_(dropped, 0)
        return value

    def _dropped(self, labels: Labels, device: torch.device) -> torch.Tensor | None:
        key = (device, *map(id, labels))
        if key not in self._known:
            dropped = None
            for back, label in enumerate(reversed(labels)):
                if label is not None and self.alive.cut(label):
                    rows = torch.from_numpy(~self.alive.rows(label)).to(device).reshape(-1, *[1] * back)
                    dropped = rows if dropped is None else dropped | rows
            self._known[key] = dropped
        return self._known[key]


class _MaskedTensors(Mapping[str, torch.Tensor]):
    """Masks `tensors` on access: where two parameters meet (spectral norm), no activation's zeros would do it."""

    def __init__(
        self, tensors: Mapping[str, torch.Tensor], labelled: Labelled, masks: _Masks, unmasked: frozenset[str]
    ):
        self._tensors, self._labelled, self._masks, self._unmasked = tensors, labelled, masks, unmasked

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor = self._tensors[name]
        return tensor if name in self._unmasked else self._masks.apply(tensor, self._labelled.parameters.get(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def run_step(step: Step, fact: Fact, args: list, kwargs: dict, alive: Survivors) -> Any:
    """Run the operator itself or, where its statistics go over channels, its reference among the survivors."""
    if fact.masked is None:
        return step.target(*args, **kwargs)
    return fact.masked(operands_by_name(step, args, kwargs), alive)


def run_masked(
    program: Program,
    whole: ProgramAtWidths,
    labelled: Labelled,
    tensors: Mapping[str, torch.Tensor],
    alive: Survivors,
    args: tuple,
    kwargs: dict[str, Any],
    before_step: Callable[[list[Labels | None]], None] | None = None,
) -> Any:
    """Run the full-size program under masks; returns what the model returns.

    before_step: is given the labels of every step's outputs before the step runs.
    """

    masks = _Masks(alive)

    def call(step: Step, a: list, k: dict) -> Any:
        fact = labelled.facts[step.node.name]
        if before_step is not None:
            before_step(fact.labels)
        if _over_nothing(step.node, labelled, alive):
            a, k = pytree.tree_map_only(torch.Tensor, _without_nan, (a, k))
        out = run_step(step, fact, a, k, alive)
        kind = alias_kind(step.target)
        if kind == "view" and op_name(step.target) not in UNIFORM:
            return out
        if isinstance(out, (list, tuple)):
            return [masks.apply(v, ls) for v, ls in zip(out, fact.labels, strict=False)]
        fresh = kind == "new" and not _shares_storage(out, a)
        return masks.apply(out, fact.labels[0], in_place=kind == "inplace", fresh=fresh)

    masked = _MaskedTensors(tensors, labelled, masks, _need_no_mask(program))
    return program.run(whole, masked, args, kwargs, call)


def _over_nothing(node: fx.Node, labelled: Labelled, alive: Survivors) -> bool:
    """Tell whether an operand of a product has an empty dimension: no other operand counts, NaN or not.

    Example: the weights of a router without experts, divided by their sum.
    """
    if op_name(node.target) not in BIAS_OF:
        return False
    labels = (x for n in node.all_input_nodes for x in (labelled.facts[n.name].labels[0] or []))
    return any(x is not None and not alive.rows(x).any() for x in labels)


def _without_nan(value: torch.Tensor) -> torch.Tensor:
    return value.nan_to_num(0.0, 0.0, 0.0) if value.is_floating_point() else value


def _shares_storage(out: Any, args: list) -> bool:
    """Operators that make a tensor may hand their input back (dropout, contiguous, to)."""
    if not isinstance(out, torch.Tensor):
        return False
    pointer = out.untyped_storage().data_ptr()
    tensors = (x for a in args for x in (a if isinstance(a, (list, tuple)) else [a]) if isinstance(x, torch.Tensor))
    return any(x.untyped_storage().data_ptr() == pointer for x in tensors)
