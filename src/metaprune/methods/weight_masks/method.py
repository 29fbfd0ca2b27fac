"""Masks of single weights, by magnitude: unstructured, or N of every M consecutive inputs.

Unstructured: the smallest weights go (Han et al., Learning both Weights and Connections for Efficient Neural Networks,
NeurIPS 2015), here in one shot. N:M: Zhou et al., Learning N:M Fine-grained Structured Sparse Neural Networks From
Scratch, ICLR 2021, by its mask (the N largest of every M; inputs in channels-last order, as in the authors' code and as
sparse tensor cores read them), not its training from scratch. The network keeps its shape: dense hardware computes as
much as before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, fx, nn

from metaprune.core.errors import ConfigError, InfeasibleBudgetError, WeightsError
from metaprune.core.rng import Rng
from metaprune.elastic.weights import unslice_tensor
from metaprune.graph.call import bound_arguments
from metaprune.graph.captured import op_name
from metaprune.methods.weight_masks.config import WeightMasksConfig, parse_pattern
from metaprune.network import Network
from metaprune.protocol.method import BaseMethod, PruneTask
from metaprune.search.allocate import require_table
from metaprune.values import Budget, Plan, Proposal

_LAYERS = ("linear", "conv1d", "conv2d", "conv3d")  # their weights are [outputs, inputs, *kernel]
_PARTS = ("slice", "narrow", "split", "split_with_sizes", "chunk", "unbind", "getitem", "to", "_to_copy", "contiguous")


@dataclass(frozen=True, kw_only=True)
class WeightMasks(WeightMasksConfig, BaseMethod):
    """Holds the smallest weights of layers at zero, within a `nonzero` budget; channels, biases and norms stay."""

    def propose(self, task: PruneTask, budget: Budget, rng: Rng) -> Proposal:
        """Raises what `masks` raises."""
        masks, details = self.masks(task, task.network.tensors, budget)
        return Proposal(Plan(), None, (), {"masks": details} if masks else {}, masks)

    def require_feasible(self, task: PruneTask, budget: Budget, plan: Plan | None = None) -> None:
        """Check what no weights are needed for: whether masks can meet `budget` at `plan`.

        Raises:
            InfeasibleBudgetError: not `nonzero`, or another metric, which masks do not change.
            NotAvailableError: a bound on latency without a latency table.
            PlanError: a pattern of the constraints matches nothing. ConfigError: keep ratios of channels.
        """
        MaskedLayers(task, plan or Plan(), parse_pattern(self.pattern)).room(budget, self.pattern)

    def slack(self, task: PruneTask, budget: Budget) -> bool:
        """Tell whether nothing is asked for: the full network meets the budget, and no N:M pattern is wanted."""
        full = task.network.cost()
        return self.pattern == "unstructured" and all(full[m] <= b for m, b in budget.bounds(full).items())

    def masks(
        self, task: PruneTask, tensors: Mapping[str, Tensor], budget: Budget, plan: Plan | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Masks for `tensors` (full size, by name) at `plan`, and what the record says of them.

        Returns:
            masks: name -> bool, of the parameter's full shape; True wherever `plan` drops a channel. Empty for an
            unstructured pattern and a budget that the network at `plan` meets.

        Raises:
            WeightsError: NaN or infinity. And what `require_feasible` raises.
        """
        pattern = parse_pattern(self.pattern)
        layers = MaskedLayers(task, plan or Plan(), pattern)
        room = layers.room(budget, self.pattern)
        parts = {n: layers.part(tensors[n], n).detach() for n in layers.names}
        bad = [n for n, t in parts.items() if not t.isfinite().all()]
        if bad:
            raise WeightsError(f"NaN or infinity in {', '.join(bad[:4])}: its weights cannot be ranked; train anew")
        if pattern is not None:
            masks = {n: n_of_m(t, *pattern) for n, t in parts.items()}
        elif room >= sum(t.numel() for t in parts.values()):
            return {}, {}
        else:
            masks = largest(parts, room, self.scope)
        details = {"pattern": self.pattern, "whole": [n for n in layers.matrices if n not in masks]}
        return {n: layers.full_size(m, n) for n, m in masks.items()}, details


def n_of_m(weight: Tensor, n: int, m: int) -> Tensor:
    """bool [outputs, inputs, *kernel]: the n largest of every m consecutive inputs, in channels-last order.

    The inputs of an output (kernel positions counted) have to divide by m. Ties go to the earlier input.
    """
    last = weight.abs().movedim(1, -1)
    order = last.reshape(-1, m).argsort(dim=1, descending=True, stable=True)
    mask = torch.zeros(order.shape, dtype=torch.bool, device=weight.device).scatter_(1, order[:, :n], True)
    return mask.reshape(last.shape).movedim(-1, 1).contiguous()


def largest(weights: Mapping[str, Tensor], keep: int, scope: str = "global") -> dict[str, Tensor]:
    """Masks of exactly `keep` weights, at least one of each tensor: the largest of all, or the same share of each."""
    sizes = [w.numel() for w in weights.values()]
    scores = [w.abs().flatten().float() for w in weights.values()]
    if scope == "layer":
        return {
            n: _top(s, k).view_as(w) for (n, w), s, k in zip(weights.items(), scores, shares(sizes, keep), strict=True)
        }
    for s in scores:
        s[s.argmax()] = torch.inf  # the largest of a tensor stays: without any, nothing passes
    parts = _top(torch.cat(scores), keep).split(sizes)
    return {n: part.view_as(w) for (n, w), part in zip(weights.items(), parts, strict=True)}


def shares(sizes: list[int], keep: int) -> list[int]:
    """Whole numbers in 1..size that sum to `keep`, each as near to keep / sum(sizes) of its size as can be."""
    total = sum(sizes)
    counts = [max(1, keep * size // total) for size in sizes]
    rest = keep - sum(counts)  # largest remainders first; those that were raised to 1 give back from the longest
    by_remainder = sorted(range(len(sizes)), key=lambda i: (-(keep * sizes[i] % total), i))
    by_length = sorted(range(len(sizes)), key=lambda i: (-counts[i], i))
    while rest:
        for i in by_remainder if rest > 0 else by_length:
            step = (rest > 0) - (rest < 0)
            if rest and 1 <= counts[i] + step <= sizes[i]:
                counts[i] += step
                rest -= step
    return counts


def _top(scores: Tensor, keep: int) -> Tensor:
    """bool [n]: the `keep` largest; ties go to the lower index, so that every machine takes the same."""
    mask = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
    mask[scores.sort(descending=True, stable=True).indices[:keep]] = True
    return mask


class MaskedLayers:
    """The weights of a network at a plan that a pattern masks, and what that leaves.

    matrices: names of all parameters of two or more dimensions (of more than one index). names: those that are masked.
    """

    def __init__(self, task: PruneTask, plan: Plan, pattern: tuple[int, int] | None):
        self.task, self.network, self.plan, self.pattern = task, task.network, plan, pattern
        self.alive = self.network.survivors(plan) if plan.keep else None
        limits, space = task.constraints, self.network.space
        for what in ("ignore", "only"):  # complains of patterns that match nothing
            space.match(getattr(limits, what), what, readers=True)
        self.matrices = [
            n
            for n, t in self.network.tensors.items()
            if isinstance(t, nn.Parameter) and t.is_floating_point() and sum(s > 1 for s in t.shape) > 1
        ]
        self.sizes = {n: self.part(self.network.tensors[n], n).shape for n in self.matrices}
        self.names = [
            n for n in self.matrices if not _named(limits.ignore, n) and (not limits.only or _named(limits.only, n))
        ]
        if pattern is not None:
            known = layer_weights(self.network)
            self.names = [n for n in self.names if n in known and math.prod(self.sizes[n][1:]) % pattern[1] == 0]

    def part(self, tensor: Tensor, name: str) -> Tensor:
        """Slice what the plan keeps of a full-size tensor."""
        return self.network.sliced(self.alive, tensors={name: tensor})[name]

    def full_size(self, mask: Tensor, name: str) -> Tensor:
        whole = torch.ones(self.network.tensors[name].shape, dtype=torch.bool, device=mask.device)
        return unslice_tensor(mask, whole, self.network.labelled.parameters.get(name), self.alive)

    def room(self, budget: Budget, name: str) -> int:
        """Count the masked tensors' weights that `budget` lets stay. Raises as `WeightMasks.require_feasible`."""
        if self.task.constraints.ratios and not self.plan.keep:
            raise ConfigError(
                f"ratios {sorted(self.task.constraints.ratios)} fix widths of channels, and masks of single weights "
                "keep all channels: leave them out (ignore and only are heeded)"
            )
        require_table(budget, self.network.cost_model())
        full, cost = self.network.cost(), self.network.cost(self.plan)
        bounds = budget.bounds(full)
        over = {m: b for m, b in bounds.items() if m != "nonzero" and cost[m] > b}
        if over:
            text = "; ".join(f"{m} <= {b:,.6g} asked, smallest reachable {cost[m]:,.6g}" for m, b in over.items())
            raise InfeasibleBudgetError(
                f"masks of single weights ({name}) leave dense costs as they are: {text}. Bound nonzero instead, as "
                "nonzero=50%, or take a method that drops channels",
                {m: float(cost[m]) for m in bounds},
            )
        count, least = sum(math.prod(self.sizes[n]) for n in self.names), self.least()
        fixed = int(cost.params) - count
        bound = bounds.get("nonzero", math.inf)
        if fixed + least > bound:
            raise InfeasibleBudgetError(
                self._too_many(budget, name, fixed, least, full.params), {"nonzero": float(fixed + least)}
            )
        return count if bound == math.inf else min(count, math.floor(bound) - fixed)

    def least(self) -> int:
        """Count the weights of the masked tensors that stay whatever the budget."""
        if self.pattern is None:
            return len(self.names)
        return sum(math.prod(self.sizes[n]) for n in self.names) // self.pattern[1] * self.pattern[0]

    def _too_many(self, budget: Budget, name: str, fixed: int, least: int, full: int) -> str:
        reached = f"{fixed + least:,} nonzero parameters, {100 * (fixed + least) / full:.2f}% of {full:,}"
        text = f"budget {budget.to_dict()}: smallest reachable with pattern {name} is {reached}"
        left_out = [n for n in self.matrices if n not in self.names]
        text += f" ({fixed:,} are in biases, norms and weights without a mask"
        text += f": {', '.join(left_out[:4])}{', ...' if len(left_out) > 4 else ''})" if left_out else ")"
        if self.pattern is None:
            return f"{text}. Raise the budget, or relax ignore and only"
        return f"{text}: the pattern fixes the density. Raise the budget, or take a sparser pattern or unstructured"


def _named(patterns: tuple[str, ...], parameter: str) -> bool:
    """Whether a pattern names the parameter or a module that holds it; names of groups and roles mean channels."""
    parts = parameter.split(".")
    return any(fnmatchcase(".".join(parts[:i]), p) for p in patterns for i in range(1, len(parts) + 1))


def layer_weights(network: Network) -> set[str]:
    """Parameters that linear layers and convolutions read as [outputs, inputs, *kernel], packed projections too."""
    return set(layer_groups(network))


def layer_groups(network: Network) -> dict[str, int]:
    """Map the weights that `layer_weights` lists to the groups of their convolution; 1 of a linear layer."""
    groups = {}
    for node in network.captured.graph.nodes:
        if node.op != "call_function" or op_name(node.target) not in _LAYERS:
            continue
        arguments = bound_arguments(node)
        source: Any = arguments["weight"]
        shape = source.meta["val"].shape[1:]
        while isinstance(source, fx.Node) and source.op == "call_function" and op_name(source.target) in _PARTS:
            source = source.args[0]
        name = network.captured.sources.get(getattr(source, "name", ""))
        if name is not None and network.tensors[name].shape[1:] == shape:
            groups[name] = arguments.get("groups", 1)
    return groups
