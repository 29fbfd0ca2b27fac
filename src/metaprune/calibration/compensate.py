"""Compensation: what consumes dropped channels is solved anew on those that stay, against the dense network.

Both networks run side by side, operator by operator, over all calibration batches, so that each layer sees what the cut
ones before it really give. A layer's target is the dense network's result there, at the channels that stay; where it
ends in a sum, the sum is what has to fit, so that it makes up for the other branch (He et al., Channel Pruning, ICCV
2017, for single layers; here on any traced graph).

BatchNorm statistics are the dense running ones, moved by how far what enters is from its target. Behind a layer that
was solved the variance stays: the layer aims at the dense scale already, and what it cannot explain is not worth
amplifying (ResNet-20 at 30% of the MACs: 3 points).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from metaprune.calibration.batches import HELD_OUT, Calls, live_bytes
from metaprune.calibration.config import Compensate
from metaprune.calibration.moments import RIDGES, Moments, solve
from metaprune.calibration.products import Product, Rows, find_products, recurrent_inputs
from metaprune.calibration.sums import Branch, branch_of
from metaprune.core.errors import NotAvailableError
from metaprune.core.rng import Rng
from metaprune.elastic.batchnorm import Norm, spread_of
from metaprune.elastic.program import Execution, Step
from metaprune.elastic.weights import unslice_tensor
from metaprune.graph.captured import op_name
from metaprune.network import Network
from metaprune.objective.batch import batch_size_of
from metaprune.values import Plan

SIDES = 2  # networks that run side by side
ROWS_PER_INPUT = 8  # at least, for each unknown of an output
ROWS_PER_BATCH = 1536  # at least
LARGEST_GRAM_BYTES = 2**30


@dataclass(frozen=True)
class Compensation:
    """New weights for a plan.

    Attributes:
        weights: full-size tensors by name, for `cut(weights=)`; those that changed.
        layers: weight -> held-out errors as shares of the target's variance, `before` and `after`, and the `ridge`;
            no ridge where no other weights were better.
        left: weight -> why it was left alone.
        samples, seconds, bytes: what it took; bytes bound what activations and moments held at once.
    """

    weights: Mapping[str, Tensor]
    layers: Mapping[str, dict[str, Any]]
    left: Mapping[str, str]
    samples: int
    seconds: float
    bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data for the record, without the weights."""
        kept = ("samples", "seconds", "bytes")
        return {"layers": dict(self.layers), "left": dict(self.left), **{name: getattr(self, name) for name in kept}}


@torch.no_grad()
def compensate(network: Network, plan: Plan, batches: Calls, *, kind: Compensate, rng: Rng) -> Compensation:
    """Solve for weights of `plan` under which the cut network's layers give what the dense ones gave.

    Args:
        batches: (args, kwargs) of the network; every fourth chooses the ridge and judges what is solved with the rest.
        kind: `bias` moves only biases and BatchNorm statistics, `least-squares` all weights of convolutions (depthwise,
            grouped and transposed ones too), linear layers, and inputs of recurrent ones. Others are left alone.

    Raises:
        NotAvailableError: a network with autocast regions, whose two runs cannot take turns.
    """
    began = time.perf_counter()
    run = _SideBySide(network, plan, batches, kind, rng)
    with rng.child("forward").torch_global():
        run.all()
    samples = sum(batch_size_of([*args, *kwargs.values()]) for args, kwargs in batches)
    memory = SIDES * samples * live_bytes(network) + run.gram_bytes
    seconds = round(time.perf_counter() - began, 2)
    return Compensation(run.full_size(), run.layers, run.left, samples, seconds, memory)


class _SideBySide:
    def __init__(self, network: Network, plan: Plan, batches: Calls, kind: Compensate, rng: Rng):
        self.network, self.at, self.kind = network, network.at(plan), kind
        self.alive = network.survivors(plan)
        if any(op_name(s.target) == "_enter_autocast" for s in network.at().program().steps):
            raise NotAvailableError("networks with autocast regions cannot be compensated: use compensate='none'")
        self.dense = {n: t.detach() for n, t in network.at().default_tensors().items()}
        self.dense_kept = {n: t.detach() for n, t in self.at.default_tensors().items()}  # at the widths of the plan
        self.tensors = dict(self.dense_kept)
        self.products, self.left = find_products(network)
        self.recurrent = recurrent_inputs(network)
        self.layers: dict[str, dict[str, Any]] = {}
        self.targets: dict[str, tuple[Tensor, Tensor]] = {}  # by node of a product: mean and variance
        self.solved: set[str] = set()  # nodes of products with new weights
        self.gram_bytes = 0
        self._draw = rng.child("rows").torch()
        program, full, cut = network.program, network.at().program(), self.at.program()
        self.steps: dict[str, tuple[list[Step], list[Step]]] = {}
        for side, at in enumerate((full, cut)):
            for step in at.steps:
                self.steps.setdefault(step.node.name, ([], []))[side].append(step)
        self.runs = [
            (Execution(program, full, self.dense, a, k), Execution(program, cut, self.tensors, a, k))
            for a, k in batches
        ]

    def all(self) -> None:
        """Run both networks to the end, and solve on the way."""
        for name, (dense_steps, cut_steps) in self.steps.items():
            if name in self.products and cut_steps:  # none in a branch that is dropped whole
                self._product(self.products[name], dense_steps[0], cut_steps[0])
                continue
            if name in self.recurrent and cut_steps:
                for product in self.recurrent[name]:
                    self._recurrent(product, dense_steps[0], cut_steps[0])
            if name in self.network.switchable and cut_steps and op_name(dense_steps[0].target) == "batch_norm":
                self._norm(dense_steps[0], cut_steps[0])
            for dense, cut in self.runs:
                for step in dense_steps:
                    dense.run(step)
                for step in cut_steps:
                    cut.run(step)

    def full_size(self) -> dict[str, Tensor]:
        """Put what changed into its places among the dense tensors."""
        labels = self.network.labelled.parameters
        return {
            n: unslice_tensor(t, self.dense[n], labels.get(n), self.alive)
            for n, t in self.tensors.items()
            if t is not self.dense_kept[n]
        }

    # -------------------------------------------------------------------------------------------- one product

    def _product(self, product: Product, dense_step: Step, cut_step: Step) -> None:
        """Run the product in the dense network, solve for its weight, and run it in the cut one."""
        branch = branch_of(product.node, self.network)
        old = self.tensors[product.weight]
        inputs = old.numel() // old.shape[product.out_dim]
        fits = self._fits(product, inputs)
        wanted = max(ROWS_PER_BATCH, -(-ROWS_PER_INPUT * inputs // len(self.runs)))
        parts: list[Moments | None] = [None, None]  # of the batches that fit, and of those held out
        spread: list[tuple[int, Tensor, Tensor]] = []
        groups = 1
        for number, (dense, cut) in enumerate(self.runs):
            target = self._target(product, branch, dense.run(dense_step), dense, cut)
            spread.append(_spread(target, product.channel_dim))
            if fits:
                rows = Rows.of(product, cut_step, *cut.operands(cut_step))
                drawn = rows.draw(target, wanted, self._draw)
                _add(parts, number, Moments.of(rows.inputs(drawn), rows.outputs(target, drawn)))
                groups = rows.groups
        self.targets[product.node.name] = _merged(spread)
        self._solve(product, branch, parts, product.matrix(old, groups).double())
        for _, cut in self.runs:
            cut.run(cut_step)

    def _recurrent(self, product: Product, dense_step: Step, cut_step: Step) -> None:
        """Solve for the weight of a recurrent layer's input, whose product the operator does not show."""
        old = self.tensors[product.weight]
        if not self._fits(product, old.shape[1]):
            return
        parts: list[Moments | None] = [None, None]
        for number, (dense, cut) in enumerate(self.runs):
            given, left = (run.operands(step)[0][0] for run, step in ((dense, dense_step), (cut, cut_step)))
            target = product.kept(given.flatten(0, -2) @ self.dense[product.weight].mT, self.network, self.alive)
            _add(parts, number, Moments.of(left.flatten(0, -2)[None], target[None]))
        self._solve(product, Branch(None, None, product.node), parts, product.matrix(old, 1).double())

    def _fits(self, product: Product, inputs: int) -> bool:
        needed = 3 * 8 * inputs**2  # two in the sums, one in the solution
        if needed > LARGEST_GRAM_BYTES:
            self.left[product.weight] = f"{inputs:,} inputs: their Gram matrices take {needed / 2**30:.1f} GiB"
            return False
        self.gram_bytes = max(self.gram_bytes, needed)
        return True

    def _target(self, product: Product, branch: Branch, result: Tensor, dense: Execution, cut: Execution) -> Tensor:
        """What the product should give in the cut network: the dense result, and what the other branch lacks."""
        target = product.kept(result, self.network, self.alive)
        if branch.other is None or not self.steps[branch.other.name][1]:
            return target
        slots = [steps[-1].slot for steps in self.steps[branch.other.name]]
        lacking = product.kept(dense.value(slots[0]), self.network, self.alive) - cut.value(slots[1])
        norm = None if branch.norm is None else Norm.of(self.steps[branch.norm.name][0][0])
        if norm is not None:
            factor = norm.factor(self.dense_kept)
            # a channel that BatchNorm nearly shuts cannot make up for anything
            inverse = torch.where(factor.abs() > 1e-3, 1 / factor, torch.zeros_like(factor))
            lacking = lacking * inverse.reshape(-1, *[1] * (lacking.dim() - 2))
        return target + lacking

    def _solve(self, product: Product, branch: Branch, parts: list[Moments | None], old: Tensor) -> None:
        """Replace weight and bias of a product by what fits its targets; without moments they stay."""
        fit, held = parts
        if fit is None or held is None:
            return
        has_constant = product.bias is not None or branch.norm is not None
        solution = solve(fit, held, old, has_constant, RIDGES if self.kind == "least-squares" else ())
        before = self.tensors[product.weight]
        if solution.ridge is not None:
            self.tensors[product.weight] = product.weight_of(solution.matrix, before)
            self.solved.add(product.node.name)
        if product.bias is not None:
            self.tensors[product.bias] = solution.constant.flatten().to(before.dtype)
        self.layers[product.weight] = {
            "before": round(solution.before, 6),
            "after": round(solution.after, 6),
            "ridge": solution.ridge,
        }

    # -------------------------------------------------------------------------------------------- BatchNorm

    def _norm(self, dense_step: Step, cut_step: Step) -> None:
        """Move the dense statistics by what differs from the target, or from the dense input where there is none."""
        norm = Norm.of(dense_step)
        if norm is None:
            return
        given = dense_step.node.args[0]
        assert isinstance(given, fx.Node)
        target = self.targets.get(given.name)
        if target is None:
            spread = _merged([_spread(dense.operands(dense_step)[0][0], 1) for dense, _ in self.runs])
            kept = self.network.sliced(self.alive, tensors={norm.mean: spread[0], norm.variance: spread[1]})
            target = kept[norm.mean], kept[norm.variance]
        mean, variance = _merged([_spread(cut.operands(cut_step)[0][0], 1) for _, cut in self.runs])
        found = mean, target[1] if given.name in self.solved else variance
        self.tensors |= norm.move(self.dense_kept, target, found)


def _add(parts: list[Moments | None], number: int, moments: Moments) -> None:
    """Add the moments of batch `number` to those of its part: the batches that fit, or those held out."""
    held = int(number % HELD_OUT == HELD_OUT - 1)
    parts[held] = moments if (part := parts[held]) is None else part + moments


def _spread(value: Tensor, dim: int) -> tuple[int, Tensor, Tensor]:
    """Count, mean and variance of a value over all dimensions but one."""
    return value.numel() // value.shape[dim], *spread_of(value, dim)


def _merged(parts: list[tuple[int, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Mean and variance of all parts together."""
    counts = torch.tensor([float(n) for n, *_ in parts]).to(parts[0][1])
    shares = (counts / counts.sum())[:, None]
    means, variances = torch.stack([m for _, m, _ in parts]), torch.stack([v for *_, v in parts])
    mean = (shares * means).sum(0)
    return mean, (shares * (variances + (means - mean).square())).sum(0)
