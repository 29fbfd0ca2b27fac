"""The full network under soft gates: one number in [0, 1] per channel, with gradients.

A gate acts once, where its channel is consumed: where an operator reads a channel that its result no longer has. A
convolution's gates multiply its weight [out, in, ...] along `in`, a product of activations its first factor; statistics
over channels are weighted by the gates. With gates of 0 and 1 that is the masked network, and so the cut one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from metaprune.elastic.masked import UNIFORM, run_step
from metaprune.elastic.program import Program, Step
from metaprune.graph.call import Consumed, Fact, Survivors, alias_kind, bound_arguments
from metaprune.graph.captured import Captured, op_name
from metaprune.graph.labelling import Labelled
from metaprune.values import Space


@dataclass(frozen=True)
class Place:
    """A dimension of an operand; row i is multiplied by the product of the gates `slots[i]` (the last slot is 1)."""

    where: Consumed
    number: int  # of the argument among the operator's
    slots: np.ndarray  # int64 [rows, k]


class SoftSurvivors(Survivors):
    """Gates in the place of 0 and 1, for the references of statistics over channels."""

    def __init__(self, labelled: Labelled, slot_of: np.ndarray, values: Tensor):
        super().__init__(labelled.atoms, np.ones(len(labelled.atoms), dtype=bool))
        self._slot_of, self._values, self._none = slot_of, values, len(values) - 1

    def _slots(self, label: np.ndarray) -> np.ndarray | None:
        final = self._atoms.final(label)
        return None if final is None else self._slot_of[final]

    def rows(self, label: np.ndarray) -> Any:
        slots = self._slots(label)
        return torch.ones(len(label)) if slots is None else product_of(self._values, slots)

    def cut(self, label: Any) -> bool:
        slots = None if label is None else self._slots(label)
        return slots is not None and bool((slots != self._none).any())


def product_of(values: Tensor, slots: np.ndarray) -> Tensor:
    """values [n], slots int64 [rows, k] -> [rows]."""
    index = torch.from_numpy(slots).to(values.device)
    product = values[index[:, 0]]
    for column in range(1, slots.shape[1]):
        product = product * values[index[:, column]]
    return product


class Gated:
    """Runs one traced network under gates. Made once; holds where every group is consumed."""

    def __init__(self, program: Program, captured: Captured, labelled: Labelled, space: Space):
        self._program, self._labelled = program, labelled
        self.widths = [int(w) for w in space.widths]
        self._none = sum(self.widths)
        self._slot_of = np.full(len(labelled.atoms) + 1, self._none, dtype=np.int64)
        for group, first in zip(space, np.cumsum([0, *self.widths]), strict=False):
            self._slot_of[group.atoms] = first + np.arange(group.width)
        self.places = {node.name: places for node in captured.graph.nodes if (places := self._places(node))}

    def run(
        self,
        tensors: Mapping[str, Tensor],
        gates: Sequence[Tensor],
        args: tuple,
        kwargs: Mapping[str, Any],
        *,
        training: bool = False,
    ) -> Any:
        """Run the network at full size; differentiable in `tensors` and in `gates` ([width] per group)."""
        values = torch.cat([*gates, torch.ones(1, dtype=gates[0].dtype, device=gates[0].device)])
        alive = SoftSurvivors(self._labelled, self._slot_of, values)

        def call(step: Step, a: list, k: dict) -> Any:
            for slot in self.places.get(step.node.name, ()):
                _multiply(slot, a, k, product_of(values, slot.slots))
            return run_step(step, self._labelled.facts[step.node.name], a, k, alive)

        whole = self._program.at(key="full", training=training)
        return self._program.run(whole, tensors, args, dict(kwargs), call)

    def _places(self, node: fx.Node) -> list[Place]:
        """Where `node` consumes channels."""
        fact = self._labelled.facts[node.name]
        if node.op != "call_function" or fact.masked is not None:
            return []  # a reference weighs what it consumes by itself
        consumers = [(c, self.slots(_label_at(self._labelled, node, c))) for c in fact.consumed]
        if not fact.consumed and (alias_kind(node.target) != "view" or op_name(node.target) in UNIFORM):
            consumers = self._reduced(node, fact)
        names = list(bound_arguments(node))
        return [
            Place(where, names.index(where.argument), slots)
            for where, slots in consumers
            if slots is not None and (slots != self._none).any()
        ]

    def _reduced(self, node: fx.Node, fact: Fact) -> list[tuple[Consumed, np.ndarray | None]]:
        """Of an operator that is no product: channels of its operands that its result does not have, each once."""
        done = {s for labels in fact.labels for label in labels or [] for s in self._slots_in(label)}
        reduced: list[tuple[Consumed, np.ndarray | None]] = []
        for argument, value in bound_arguments(node).items():
            labels = self._labelled.facts[value.name].labels if isinstance(value, fx.Node) else []
            taken: set[int] = set()
            for dim, label in enumerate((labels[0] if labels else None) or []):
                slots = self.slots(label)
                if slots is not None:
                    left = np.where(np.isin(slots, list(done)), self._none, slots)
                    reduced.append((Consumed(argument, dim), left))
                    taken |= set(left.ravel().tolist())
            done |= taken
        return reduced

    def slots(self, label: Any) -> np.ndarray | None:
        """int64 [rows, k]: positions in the gates of all groups, one after the other; the one past them is none."""
        final = None if label is None else self._labelled.atoms.final(label)
        return None if final is None else self._slot_of[final]

    def _slots_in(self, label: Any) -> set[int]:
        slots = self.slots(label)
        return set() if slots is None else set(slots.ravel().tolist())


def _label_at(labelled: Labelled, node: fx.Node, where: Consumed) -> Any:
    value = bound_arguments(node)[where.argument]
    value = value if where.position is None else value[where.position]
    labels = labelled.facts[value.name].labels[0]
    return None if labels is None else labels[where.dim]


def _multiply(at: Place, args: list, kwargs: dict, gate: Tensor) -> None:
    """Multiply one operand of a call along one dimension, in `args` or `kwargs`."""
    where = at.where
    holder: Any = args if at.number < len(args) else kwargs
    key: Any = at.number if at.number < len(args) else where.argument
    operand = holder[key] if where.position is None else holder[key][where.position]
    dim = where.dim % operand.dim()
    product = operand * gate.to(operand.dtype).reshape(-1, *[1] * (operand.dim() - 1 - dim))
    if where.position is not None:
        product = [product if i == where.position else x for i, x in enumerate(holder[key])]
    holder[key] = product
