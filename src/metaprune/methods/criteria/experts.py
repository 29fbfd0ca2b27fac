"""Experts: mean over the tokens that a router sends to an expert of routed weight x norm of the expert's output.

This is the score of REAP (Lasby et al., REAP the Experts: Why Pruning Prevails for One-Shot MoE Compression, 2025).
Where it is read off is found in the graph: the product of what chosen weights give with what the router gives.
All other channels are ranked as by `activation`, with a warning where they are experts. Labels are not read.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from metaprune.calibration.batches import calibration_batches
from metaprune.core.rng import Rng
from metaprune.elastic.program import Step
from metaprune.graph.call import bound_arguments
from metaprune.graph.captured import op_name
from metaprune.graph.look_ups import looked_up_label
from metaprune.graph.roles import EXPERTS
from metaprune.graph.shapes import TensorValue
from metaprune.methods.criteria.activation import Activation
from metaprune.methods.criteria.calibrated import whole_groups
from metaprune.methods.criteria.config import ExpertsConfig
from metaprune.network import Network
from metaprune.protocol.method import PruneTask
from metaprune.values import Plan


@dataclass(frozen=True, kw_only=True)
class Experts(ExpertsConfig, Activation):
    """Mean norm of what an expert adds for the tokens that are routed to it. One that gets no token scores 0."""

    def scores_apart(self, task: PruneTask, plan: Plan, rng: Rng) -> dict[int, np.ndarray]:
        network, data = task.network, task.require_data(self.name)
        sites = list(routed_outputs(network))
        if not plan.keep:
            _warn_of_others(task, {s.group for s in sites})
        widths = plan.widths(network.space)
        sums = {s.group: np.zeros((2, widths[s.group])) for s in sites}
        at = network.at(plan)
        tensors, positions = dict(at.default_tensors()), {}

        def call(step: Step, args: list, kwargs: dict[str, Any]) -> Any:
            value = step.target(*args, **kwargs)
            for site in sites:
                if step.node is site.positions:
                    positions[site] = value.reshape(-1)
                if step.node is site.output:
                    norms = value.double().reshape(len(positions[site]), -1).norm(dim=1)
                    for total, weights in zip(sums[site.group], (norms, None), strict=True):
                        total += _counted(positions[site], weights, len(total))
            return value

        draws = rng.child("experts")
        with torch.no_grad(), draws.child("forward").torch_global():
            for args, kwargs in calibration_batches(network, data.train, self.samples, draws.child("samples")):
                at.execute(args, kwargs, tensors=tensors, call=call)
        return {group: total / np.maximum(tokens, 1) for group, (total, tokens) in sums.items()}


def _warn_of_others(task: PruneTask, found: set[int]) -> None:
    """Warn of experts that may go and have no routed output."""
    kept = found | whole_groups(task)
    others = [g.name for i, g in enumerate(task.network.space) if g.role == EXPERTS and i not in kept]
    if others:
        warnings.warn(f"routed outputs of {', '.join(others)} are not found: ranked by activation", stacklevel=2)


def _counted(positions: Tensor, weights: Tensor | None, experts: int) -> np.ndarray:
    return torch.bincount(positions, weights, minlength=experts).double().cpu().numpy()


@dataclass(frozen=True)
class RoutedOutput:
    """Where experts' weighted outputs can be read: row i of `output` is of the expert `positions`[i]."""

    group: int
    positions: fx.Node
    output: fx.Node


def routed_outputs(network: Network) -> Iterator[RoutedOutput]:
    """Find, for every group that a router chooses from, the first product of what was looked up with routed weights."""
    groups = {int(atom): g for g, group in enumerate(network.space) for atom in group.atoms}
    looking: dict[int, list[fx.Node]] = {}
    for node in network.captured.graph.nodes:
        look_up = network.labelled.facts[node.name].look_up
        label = None if look_up is None else looked_up_label(network.labelled, look_up)
        final = None if label is None else network.labelled.atoms.final(label)
        if final is not None and look_up is not None and look_up.tensor.name in network.captured.sources:
            looking.setdefault(groups[int(final[0, 0])], []).append(node)
    for group, nodes in looking.items():
        positions = _index_of(nodes[0])
        behind = _reached(network, nodes)
        routed = _reached(network, _before(positions)) - behind
        for node in network.captured.graph.nodes:
            a, b = node.args[:2] if op_name(node.target) in ("mul", "mul_") and len(node.args) > 1 else (None, None)
            weighted = (a in behind and b in routed) or (b in behind and a in routed)
            if weighted and _rows(network, node, positions):
                yield RoutedOutput(group, positions, node)
                break


def _index_of(node: fx.Node) -> fx.Node:
    bound = bound_arguments(node)
    held = bound.get("indices", bound.get("index"))
    return next(i for i in held if i is not None) if isinstance(held, (list, tuple)) else held


def _before(positions: fx.Node) -> list[fx.Node]:
    """The choice that positions come from."""
    while positions.op == "call_function" and op_name(positions.target) != "topk":
        positions = positions.all_input_nodes[0]
    return [positions]


def _reached(network: Network, start: Iterable[fx.Node]) -> set[fx.Node]:
    """Nodes that depend on any of `start`, and those."""
    reached = set(start)
    for node in network.captured.graph.nodes:
        if not reached.isdisjoint(node.all_input_nodes):
            reached.add(node)
    return reached


def _rows(network: Network, node: fx.Node, positions: fx.Node) -> bool:
    """Whether the leading dimensions of a value are those of the positions."""
    value, index = node.meta.get("val"), positions.meta.get("val")
    if not (isinstance(value, TensorValue) and isinstance(index, TensorValue) and value.dtype.is_floating_point):
        return False
    shape = network.captured.concrete(index)
    return network.captured.concrete(value)[: len(shape)] == shape
