"""Reconstruction: the cut network learns what the dense one computes inside, without labels.

Every residual stream is matched behind each of its sums. All layers learn at once, each on what the cut ones before it
really give. What lies between two sums is free, and what follows the last one stays: tried by hand, one seed, ResNet-20
at half its MACs, matching layers of blocks or logits too lost 0.5 to 1 of 80 points.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from metaprune.calibration.products import Product, find_products
from metaprune.calibration.sums import branch_of
from metaprune.core.errors import ConfigError
from metaprune.elastic.batchnorm import TRAINING
from metaprune.elastic.program import CallStep, Step
from metaprune.graph.captured import op_name
from metaprune.network import Network
from metaprune.objective import Objective
from metaprune.objective.batch import call_arguments, tensors_in
from metaprune.recover.task import RecoverTask
from metaprune.surgery.cut import Pruned
from metaprune.train.history import History
from metaprune.train.loss import TrainLoss


class Inside(NamedTuple):
    """An output, and the values that are matched, by node."""

    output: Any
    values: Mapping[str, Tensor]


def reconstruct(task: RecoverTask) -> History:
    """Train `task.model` on the values that the dense network has inside, and on its outputs.

    Raises:
        ConfigError: the cut that made the model is not known.
    """
    if task.pruned is None:
        raise ConfigError("recover='reconstruct' needs the cut that made the model: use it in prune")
    points = matched_points(task.pruned.network)
    loss = ReconstructionLoss(task.data.require_objective(), task.pruned, points)
    return task.train(model=_Inside(task.pruned, points), loss=loss, optimizer="adamw")


def matched_points(network: Network) -> dict[str, Product]:
    """Find where cut and dense network are compared, and the layer whose output channels stand there.

    These are the sums that a layer ends in. A network without any is compared behind each layer and its BatchNorm.
    """
    products, _ = find_products(network)
    branches = [(branch_of(product.node, network), product) for product in products.values()]
    sums = [(branch, product) for branch, product in branches if branch.other is not None]
    return {branch.end.name: product for branch, product in sums or branches}


class _Inside(nn.Module):
    """The cut model; in training it also returns what is inside, in evaluation it is the model."""

    def __init__(self, pruned: Pruned, points: Collection[str]):
        super().__init__()
        self.model = pruned.model
        self._at = [pruned.network.at(pruned.plan)]  # in a list: the dense model stays out
        self._points = points

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not self.training:
            return self.model(*args, **kwargs)
        at, values = self._at[0], {}
        tensors = {**dict(self.model.named_parameters(remove_duplicate=False)), **dict(self.model.named_buffers())}
        call = _kept_inside(self._points, values, at.network.switchable)
        return Inside(at.execute(args, kwargs, tensors={n: tensors[n] for n in at.tensors}, call=call), values)


class ReconstructionLoss(TrainLoss):
    """Mean over all points of the squared difference, as a share of the dense values' variance."""

    def __init__(self, objective: Objective, pruned: Pruned, points: Mapping[str, Product]):
        super().__init__(objective)
        self._network, self._points = pruned.network, points
        self._alive = self._network.survivors(pruned.plan)

    def __call__(self, output: Any, inputs: Any, target: Any) -> Tensor:
        args, kwargs = call_arguments(inputs)
        dense: dict[str, Tensor] = {}
        with torch.no_grad():
            call = _kept_inside(self._points, dense)
            self._network.at().execute(args, kwargs, call=call)
        parts = []
        for node, product in self._points.items():
            wanted = product.kept(dense[node].float(), self._network, self._alive)
            difference = (output.values[node].float() - wanted).square().mean()
            parts.append(difference / wanted.var().clamp(min=torch.finfo(wanted.dtype).tiny))
        # processes wait for a gradient of every parameter, also of those behind the last point
        floats = [leaf for leaf in tensors_in(output.output) if leaf.is_floating_point()]
        return torch.stack(parts).mean() + sum((0 * leaf.nan_to_num()).float().sum() for leaf in floats)

    def judged(self, output: Any) -> Any:
        return output.output


def _kept_inside(
    points: Collection[str], values: dict[str, Tensor], trained: Collection[str] = frozenset()
) -> CallStep:
    """Make the `call` that puts what the nodes `points` give into `values`; BatchNorm in `trained` reads its batch."""

    def call(step: Step, args: list, kwargs: dict) -> Any:
        if step.node.name in trained and op_name(step.target) == "batch_norm":
            args[TRAINING] = True
        value = step.target(*args, **kwargs)
        if step.node.name in points:
            values[step.node.name] = value.clone()  # what follows may write into it
        return value

    return call
