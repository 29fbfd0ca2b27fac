"""The full network under soft gates: one number in [0, 1] per channel, with gradients.

A gate acts once, where its channel is consumed: where an operator reads a channel that its result no longer has. A
convolution's gates multiply its weight [out, in, ...] along `in`, a product of activations its first factor; statistics
over channels are weighted by the gates. With gates of 0 and 1 that is the masked network, and so the cut one.

Gates of every sample's own multiply the activation that carries the channels, in place of the weight that reads them.
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
from metaprune.graph.shapes import BatchedSize, TensorValue
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
        weights = _made_of_weights(captured)
        self.carriers = {
            node.name: carriers
            for node in captured.graph.nodes
            if (carriers := [c for p in self.places.get(node.name, ()) if (c := self._carrier(node, p, weights))])
        }
        self._samples = {n: _sample_dimension(n) if captured.batch is not None else None for n in captured.graph.nodes}

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

    def run_by_sample(
        self,
        tensors: Mapping[str, Tensor],
        gates: Tensor,
        args: tuple,
        kwargs: Mapping[str, Any],
        about: Mapping[str, Tensor] | None = None,
    ) -> Any:
        """Run the network at full size under `gates` [samples, channels of all groups], one after the other.

        Differentiable in `gates`: as no sample reads another, the gradient of a sum over samples is every sample's own.
        Where the batch is fixed, `samples` is 1: the whole batch is one.

        Args:
            about: by node, a number per row of the first operand that carries gates: a gate of 0 leaves that number,
                such as the row's mean, instead of 0.
        """
        values = torch.cat([gates, gates.new_ones(len(gates), 1)], dim=1)
        alive = SoftSurvivors(self._labelled, self._slot_of, values[0].detach())

        def call(step: Step, a: list, k: dict) -> Any:
            left = None if about is None else about.get(step.node.name)
            for place in self.carriers.get(step.node.name, ()):
                operand = operand_at(place, a, k)
                gate = product_of(values.T, place.slots).T  # [samples, rows]
                dim, first = place.where.dim % operand.dim(), self._samples[place.where.operand(step.node)]
                shape = [1] * operand.dim()
                shape[dim] = gate.shape[1]
                if first is not None and len(gates) > 1:
                    gate = gate.repeat_interleave(operand.shape[first] // len(gates), dim=0)
                    shape[first] = len(gate)
                    gate = gate if first < dim else gate.T
                else:
                    gate = gate.mean(dim=0)
                gate = gate.to(operand.dtype).reshape(shape)
                gated = operand * gate
                if left is not None:
                    own = [-1 if i == dim else 1 for i in range(operand.dim())]
                    gated, left = gated + left.to(operand.dtype).reshape(own) * (1 - gate), None
                _replace(place, a, k, gated)
            return run_step(step, self._labelled.facts[step.node.name], a, k, alive)

        return self._program.run(self._program.at(key="full"), tensors, args, dict(kwargs), call)

    def _carrier(self, node: fx.Node, place: Place, weights: set[fx.Node]) -> Place | None:
        """The activation that carries what `place` consumes: its operand, or the one that its weight multiplies.

        None where there is none of these channels, as the hidden state inside an RNN.
        """
        if place.where.operand(node) not in weights:
            return place
        consumed = place.slots[place.slots != self._none]
        for number, (argument, value) in enumerate(bound_arguments(node).items()):
            if not isinstance(value, fx.Node) or value in weights:
                continue
            for dim, label in enumerate(self._labelled.facts[value.name].labels[0] or []):
                slots = self.slots(label)
                if slots is not None and np.isin(consumed, slots).all():
                    return Place(Consumed(argument, dim), number, np.where(np.isin(slots, consumed), slots, self._none))
        return None

    def _places(self, node: fx.Node) -> list[Place]:
        """Where `node` consumes channels."""
        fact = self._labelled.facts[node.name]
        if node.op != "call_function" or (fact.masked is not None and not fact.consumed):
            return []  # a reference weighs what it consumes by itself
        consumers = [(c, self.slots(label_at(self._labelled, node, c))) for c in fact.consumed]
        if (
            not fact.consumed
            and fact.look_up is None
            and (alias_kind(node.target) != "view" or op_name(node.target) in UNIFORM)
        ):
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


def label_at(labelled: Labelled, node: fx.Node, where: Consumed) -> Any:
    """Return the label of the dimension that `node` consumes there."""
    labels = labelled.facts[where.operand(node).name].labels[0]
    return None if labels is None else labels[where.dim]


def _multiply(at: Place, args: list, kwargs: dict, gate: Tensor) -> None:
    """Multiply one operand of a call along one dimension, in `args` or `kwargs`."""
    operand = operand_at(at, args, kwargs)
    dim = at.where.dim % operand.dim()
    _replace(at, args, kwargs, operand * gate.to(operand.dtype).reshape(-1, *[1] * (operand.dim() - 1 - dim)))


def _holder(at: Place, args: list, kwargs: dict) -> tuple[Any, Any]:
    return (args, at.number) if at.number < len(args) else (kwargs, at.where.argument)


def operand_at(at: Place, args: list, kwargs: dict) -> Tensor:
    """Return the operand of a call that a place names."""
    holder, key = _holder(at, args, kwargs)
    return holder[key] if at.where.position is None else holder[key][at.where.position]


def _replace(at: Place, args: list, kwargs: dict, operand: Tensor) -> None:
    holder, key = _holder(at, args, kwargs)
    if at.where.position is None:
        holder[key] = operand
    else:
        holder[key] = [operand if i == at.where.position else x for i, x in enumerate(holder[key])]


def _made_of_weights(captured: Captured) -> set[fx.Node]:
    """Nodes that depend on tensors of the model alone, and on no input."""
    derived: set[fx.Node] = set()
    for node in captured.graph.nodes:
        inputs = node.all_input_nodes
        if node.name in captured.sources or (node.op == "call_function" and inputs and derived.issuperset(inputs)):
            derived.add(node)
    return derived


def _sample_dimension(node: fx.Node) -> int | None:
    """The dimension of a value that counts samples, or samples times something; None where it has none."""
    value = node.meta.get("val")
    for dim, size in enumerate(value.shape if isinstance(value, TensorValue) else ()):
        if isinstance(size, BatchedSize):
            return dim
    return None
