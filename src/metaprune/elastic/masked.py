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

from metaprune.elastic.program import Program, ProgramAtWidths, Step
from metaprune.graph.call import Fact, Labels, Survivors, alias_kind
from metaprune.graph.captured import op_name
from metaprune.graph.labelling import Labelled
from metaprune.graph.rules.norm import survivors_mask

# views whose new dimension is tracked although the operand has no such dimension: a sum over it must see the mask
UNIFORM = ("expand", "expand_as", "broadcast_to")


def _apply_mask(value: Any, labels: Labels | None, alive: Survivors, in_place: bool) -> Any:
    if not isinstance(value, torch.Tensor) or labels is None or value.dtype == torch.bool:
        return value
    mask = survivors_mask(alive, labels, value)
    if mask.numel() == 1:
        return value
    dropped = mask == 0  # filled, not multiplied: an attention bias holds -inf, and -inf * 0 is no zero
    if not in_place:
        return value.masked_fill(dropped, 0)
    if value.detach().masked_fill(~dropped, 0).any():  # writing what is zero already would only upset autograd
        value.masked_fill_(dropped, 0)
    return value


class MaskedTensors(Mapping[str, torch.Tensor]):
    """Masks `tensors` on access: where two parameters meet (spectral norm), no activation's zeros would do it."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], labelled: Labelled, alive: Survivors):
        self._tensors, self._labelled, self._alive = tensors, labelled, alive

    def __getitem__(self, name: str) -> torch.Tensor:
        return _apply_mask(self._tensors[name], self._labelled.parameters.get(name), self._alive, False)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def run_step(step: Step, fact: Fact, args: list, kwargs: dict, alive: Survivors) -> Any:
    """Run the operator itself or, where its statistics go over channels, its reference among the survivors."""
    if fact.masked is None:
        return step.target(*args, **kwargs)
    schema = step.target._schema.arguments  # pyrefly: ignore[missing-attribute] (only operators have a reference)
    defaults = {x.name: x.default_value for x in schema}
    return fact.masked({**defaults, **dict(zip([x.name for x in schema], args, strict=False)), **kwargs}, alive)


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

    def call(step: Step, a: list, k: dict) -> Any:
        fact = labelled.facts[step.node.name]
        if before_step is not None:
            before_step(fact.labels)
        out = run_step(step, fact, a, k, alive)
        kind = alias_kind(step.target)
        if kind == "view" and op_name(step.target) not in UNIFORM:
            return out
        if isinstance(out, (list, tuple)):
            return [_apply_mask(v, ls, alive, False) for v, ls in zip(out, fact.labels, strict=False)]
        return _apply_mask(out, fact.labels[0], alive, kind == "inplace")

    return program.run(whole, MaskedTensors(tensors, labelled, alive), args, kwargs, call)
