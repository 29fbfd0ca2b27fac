"""Abstract interpretation of a captured graph: one forward pass of rules gives every dimension its label."""

from __future__ import annotations

import fnmatch
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import fx
from torch.utils import _pytree as pytree

from metaprune.core.errors import PlanError, closest
from metaprune.graph.call import Call, Dim, Fact, Labels, Positions, alias_kind
from metaprune.graph.captured import Captured, module_of, op_name
from metaprune.graph.dispatcher import dispatched_macs
from metaprune.graph.labels import Atoms, Label
from metaprune.graph.positions import follow_positions, lock_uneven_choices
from metaprune.graph.rules import RULES
from metaprune.graph.rules.elementwise import is_pointwise, pointwise
from metaprune.graph.shapes import BatchedSize, TensorValue


@dataclass(frozen=True)
class Uncovered:
    """An operator without a rule, that locked what entered it."""

    op: str
    node: str
    module: str
    macs: int = 0  # of the traced inputs, as torch's dispatcher counts them: a constant in every cost


@dataclass
class Labelled:
    atoms: Atoms
    facts: dict[str, Fact]  # by node name
    parameters: dict[str, Labels]  # labels of every tensor of the model that the graph uses
    uncovered: list[Uncovered]
    choices: list[Positions]  # along which dimensions the graphs of either mode choose, and how many
    train_only: frozenset[str] = frozenset()  # of `parameters`, those that only the graph of train mode uses


def label_graph(
    captured: Captured, free_outputs: bool | Sequence[str] = False, training: Captured | None = None
) -> Labelled:
    """Run every rule once. Outputs are locked (the task's output never changes) unless `free_outputs` (see `trace`).

    training: the graph of train mode, whose equations hold as well; of its parameters, those that `captured` does not
        use are pruned along.
    """
    atoms = Atoms()
    parameters: dict[str, Labels] = {}
    uncovered: list[Uncovered] = []
    free = _patterns(free_outputs, captured.output_names())
    facts = _label_nodes(captured, atoms, parameters, uncovered, free)
    results = _read_results(captured, facts)
    before = set(parameters)
    choosing = [*facts.values()]
    if training is not None:
        others = _label_nodes(training, atoms, parameters, uncovered, free)
        choosing += others.values()
        unread = _read_results(training, others)
        results = None if results is unread is None else [*(results or facts.values()), *(unread or others.values())]
    if results is not None:
        _lock_unread(atoms, results, parameters)
    choices = [fact.choice for fact in choosing if fact.choice is not None]
    lock_uneven_choices(atoms, choices)
    _lock_indispensable(atoms, parameters)
    return Labelled(atoms, facts, parameters, uncovered, choices, frozenset(parameters.keys() - before))


def _label_nodes(
    captured: Captured,
    atoms: Atoms,
    parameters: dict[str, Labels],
    uncovered: list[Uncovered],
    free: Sequence[str],
) -> dict[str, Fact]:
    """Label one graph; tensors that `parameters` holds already keep their labels."""
    facts: dict[str, Fact] = {}
    for node in captured.graph.nodes:
        known = parameters.get(captured.sources.get(node.name, "")) if node.op == "placeholder" else None
        fact = facts[node.name] = Fact([known]) if known and node.users else _label_node(node, atoms, captured, facts)
        if not fact.covered:
            macs = _count_by_dispatcher(node, fact, captured)
            uncovered.append(Uncovered(op_name(node.target), node.name, module_of(node), macs))
        source = captured.sources.get(node.name)
        if source is not None and node.op == "placeholder" and node.users and fact.labels[0] is not None:
            parameters[source] = fact.labels[0]
        if node.op == "output":
            for name, value in _held_outputs(node, captured, free):
                for label in facts[value.name].labels[0] or []:
                    atoms.lock(label, f"graph output {name!r}" if name else "graph output")
            for value in (n for n in node.all_input_nodes if n.name in facts):
                for positions in facts[value.name].positions.values():
                    atoms.lock(positions.label, "positions along it are a graph output")
    return facts


def _read_results(captured: Captured, facts: dict[str, Fact]) -> list[Fact] | None:
    """What is computed from the tensors of a graph that cuts any of them into parts; None where none is cut."""
    passed_on, read_in_part = _passed_on(captured)
    if not read_in_part:
        return None
    read = [n for n in captured.graph.nodes if n.op == "call_function" and n.users and n not in passed_on]
    return [facts[n.name] for n in read if not isinstance(n.meta.get("val"), (list, tuple))]


def _lock_indispensable(atoms: Atoms, parameters: dict[str, Labels]) -> None:
    """An atom of all rows of a dimension stays: without it nothing would be left."""
    for label in (label for labels in parameters.values() for label in labels):
        final = atoms.norm(label)
        if final is None:
            continue
        if final.shape[1] == 1:
            everywhere = final[:1, 0] if final.min() == final.max() else final[:0, 0]
        else:
            unique_atoms, count = np.unique(final, return_counts=True)
            everywhere = unique_atoms[(count == len(final)) & (unique_atoms >= 0)]
        if len(everywhere):
            atoms.lock(everywhere[:, None], "without it nothing would be left")


def _patterns(free: bool | Sequence[str], names: list[str]) -> list[str]:
    """`free_outputs` of `trace` as glob patterns, each of which names an output."""
    patterns = ["*"] if free is True else [] if free is False else [free] if isinstance(free, str) else list(free)
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            raise PlanError(f"free output {pattern!r} matches no output.{closest(pattern, names)} Outputs: {names}")
    return patterns


def _held_outputs(node: fx.Node, captured: Captured, free: Sequence[str]) -> list[tuple[str, fx.Node]]:
    """Names and values of outputs whose shape must not change; one that is returned twice is held if either name is."""
    names, values = captured.output_names(), pytree.tree_leaves(node.args[0], is_leaf=lambda x: x is None)
    return [
        (name, value)
        for name, value in zip(names, values, strict=True)
        if isinstance(value, fx.Node) and not any(fnmatch.fnmatchcase(name, p) for p in free)
    ]


def _passed_on(captured: Captured) -> tuple[set[fx.Node], bool]:
    """Views and copies of the model's tensors, and whether any of them is cut into parts."""
    nodes = [n for n in captured.graph.nodes if n.op == "placeholder" and n.name in captured.sources]
    reached: set[fx.Node] = set()
    cut = False
    while nodes:
        for user in nodes.pop().users:
            name = op_name(user.target) if user.op == "call_function" else ""
            if name in ("slice", "narrow", "select", "split", "split_with_sizes", "chunk"):
                cut = True
            elif is_passed_on(user) and user not in reached:
                reached.add(user)
                nodes.append(user)
    return reached, cut


def is_passed_on(node: fx.Node) -> bool:
    """Tell whether a node is a view or a copy of what it reads."""
    return node.op == "call_function" and (op_name(node.target) in _COPIES or alias_kind(node.target) == "view")


_COPIES = ("to", "_to_copy", "clone", "contiguous", "float", "type_as", "reshape")


def _lock_unread(atoms: Atoms, results: list[Fact], parameters: dict[str, Labels]) -> None:
    """Lock parameter rows that the traced graph never reads.

    Example: position embeddings beyond the traced length; a longer input would read them. Such rows label one dimension
    of one tensor and occur in no output and in no MAC term.
    """
    uses = np.zeros(len(atoms), dtype=np.int64)

    def count(labels: Iterable[Label]) -> None:
        for label in labels:
            final = atoms.norm(label)
            if final is not None:
                uses[np.unique(final[final >= 0])] += 1

    held = [label for labels in parameters.values() for label in labels]
    count(held)
    if not (uses == 1).any():
        return
    outside = {id(label): label for fact in results for out in fact.labels for label in out or []}
    outside |= {id(dim.label): dim.label for fact in results for term in fact.macs for dim in term}
    count(outside.values())
    for label in held:
        final = atoms.norm(label)
        if final is not None:
            atoms.lock(np.where((final >= 0) & (uses[final] == 1), final, -1), "not read at the traced input sizes")


def _label_node(node: fx.Node, atoms: Atoms, captured: Captured, facts: dict[str, Fact]) -> Fact:
    value = node.meta.get("val")
    if node.op == "placeholder":
        tracked = node.name in captured.sources and bool(node.users)
        return Fact([_fresh(value, atoms) if tracked else _free(value)])
    if node.op != "call_function":
        return Fact([None])
    if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        labels = facts[node.args[0].name].labels
        position: Any = node.args[1]
        held = facts[node.args[0].name].positions
        fact = Fact([labels[position] if len(labels) > position else _free(value)])
        fact.positions = {0: held[position]} if position in held else {}
        return fact
    call = Call(node, atoms, captured, facts)
    rule = RULES.get(call.name) or (pointwise if is_pointwise(node.target) else None)
    try:
        if rule is None:
            call.fact.labels = call.lock_all() if call.tensors() else call.free_outputs()
        else:
            result: Any = rule(call)
            call.fact.labels = result if isinstance(value, (list, tuple)) else [result]
    except TypeError:
        if not _has_symbolic_numbers(call):
            raise
        call = Call(node, atoms, captured, facts)  # a number that is known at run time only, where a rule wants one
        call.fact.labels = call.lock_all()
    follow_positions(call)
    _check(call)
    return call.fact


def _has_symbolic_numbers(call: Call) -> bool:
    """Whether an argument is a number that the graph computes, or a list of such."""
    numbers = (n for n in call.node.all_input_nodes if isinstance(n.meta.get("val"), (BatchedSize, torch.SymFloat)))
    return next(numbers, None) is not None


def _count_by_dispatcher(node: fx.Node, fact: Fact, captured: Captured) -> int:
    """Add the MACs of an operator without a rule as a constant of every sample; returns them for the traced inputs."""
    macs = dispatched_macs(node, captured.concrete)
    batch = captured.batch
    if macs and batch is not None:
        fact.macs = [[Dim(None, macs // max(1, captured.concrete(batch))), Dim(None, batch)]]
    elif macs:
        fact.macs = [[Dim(None, macs)]]
    return macs


def _fresh(value: Any, atoms: Atoms) -> Labels | None:
    sizes = (
        cast("tuple[int, ...]", value.shape) if isinstance(value, TensorValue) else None
    )  # no size of a weight varies
    return None if sizes is None else [atoms.fresh(n) for n in sizes]


def _free(value: Any) -> Labels | None:
    return [None] * value.dim() if isinstance(value, TensorValue) else None


def _check(call: Call) -> None:
    """A rule that returns labels of the wrong size is our own defect: stop before it can spread."""
    values = call.out if isinstance(call.out, (list, tuple)) else [call.out]
    for value, labels in zip(values, call.fact.labels, strict=False):
        if not isinstance(value, TensorValue):
            continue
        shape = call.concrete(value)
        if labels is None or len(labels) != len(shape):
            raise AssertionError(f"rule of {call.reason} returned {labels!r} for shape {shape}")
        for label, n in zip(labels, shape, strict=True):
            if label is not None and len(label) != n:
                raise AssertionError(f"rule of {call.reason} returned {len(label)} rows for size {n} of {shape}")
