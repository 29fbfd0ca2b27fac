"""The gradient step that all training of gates shares: a loss under gates, and the price of what they keep."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from metaprune.core.errors import TrainingDivergedError
from metaprune.core.rng import Rng
from metaprune.cost.soft import SoftCost
from metaprune.network import Network
from metaprune.objective import Objective
from metaprune.objective.base import primary_of
from metaprune.objective.batch import batch_size_of, map_tensors, share_of
from metaprune.train.config import MixedPrecision
from metaprune.train.engine import engine
from metaprune.train.processes import ALONE, Processes
from metaprune.values import Budget


@dataclass(frozen=True)
class Sample:
    """args, kwargs of the network, and the target of the batch."""

    args: tuple
    kwargs: dict[str, Any]
    target: Any


@dataclass
class TrainableTensors:
    """The network's tensors while they are trained: leaves (parameters), buffers, and a head for the data at hand."""

    leaves: dict[str, Tensor]
    buffers: dict[str, Tensor]
    head: dict[str, Tensor]
    rest: Mapping[str, Tensor]

    def tensors(self) -> dict[str, Tensor]:
        return {**self.rest, **self.leaves, **self.buffers, **self.head}


@dataclass(frozen=True)
class Price:
    """strength * log(expected share of the full cost / `target`)^2 + kl_weight * KL to the sparse prior
    + decay * mean squared logit of the keep probabilities.

    To both sides: the network is cut to the target, and a generator that keeps less trains the weights for a smaller
    one (ours did). The logarithm: a tenth above 6% weighs as much as a tenth above 50%. The decay: a saturated gate has
    no gradient, and would not follow what is asked for any more.
    """

    strength: float
    target: float
    kl_weight: float = 0.0
    decay: float = 0.0


def asked_share(network: Network, budget: Budget, metric: str, otherwise: float) -> float:
    """Compute the budget's share of the full cost by `metric`; `otherwise` where the budget bounds other metrics."""
    full = network.cost()
    bounds = budget.bounds(full)
    return bounds[metric] / float(full[metric]) if metric in bounds else otherwise


@dataclass(frozen=True)
class StepResult:
    """Figures of one step.

    Attributes:
        loss: of the step, with the price.
        metric: the objective's primary metric on the step's own batch.
        kept_cost: expected share of the full cost, before the draw.
    """

    loss: float
    metric: float
    kept_cost: float


class GatedLoss(ABC):
    """The loss of a network under gates; where their distribution comes from is the subclass's."""

    def __init__(self, network: Network, metric: str, temperature: float, objective: Objective):
        self.network, self.temperature, self.objective = network, temperature, objective
        self.gated = network.gated
        self.cost = SoftCost(network.cost_model(), metric)

    @abstractmethod
    def gates_of(self, sample: Sample, share: float) -> Any:
        """Make the gate distribution for a sample of a data set, to keep about `share` of the full cost."""

    def run(
        self, tensors: Mapping[str, Tensor], gates: Sequence[Tensor], args: tuple, kwargs: Mapping[str, Any]
    ) -> Any:
        """Run the network under drawn gates, in training mode."""
        return self.gated.run(tensors, gates, args, kwargs, training=True)

    def expected_share(self, probabilities: Sequence[Tensor]) -> Tensor:
        """Expected share of the full cost, []."""
        return self.cost(torch.stack([p.sum() for p in probabilities]))

    def trainable(
        self, tensors: Mapping[str, Tensor], new: Collection[str | None] = (), classes: int = 0
    ) -> TrainableTensors:
        """Trainable copies of `tensors`; those in `new` are a head of zeros for `classes` classes."""
        leaves, buffers, head = {}, {}, {}
        for name, tensor in self.network.tensors.items():
            if name in new:
                head[name] = torch.zeros(classes, *tensor.shape[1:], dtype=tensor.dtype, device=tensor.device)
            elif isinstance(tensor, nn.Parameter) and tensor.is_floating_point():
                leaves[name] = tensors[name].detach().clone()
            elif not isinstance(tensor, nn.Parameter):
                buffers[name] = tensors[name].detach().clone()
        for leaf in (*leaves.values(), *head.values()):
            leaf.requires_grad_()
        return TrainableTensors(
            leaves, buffers, head, {n: t for n, t in self.network.tensors.items() if n not in leaves}
        )

    def loss(
        self, weights: TrainableTensors, sample: Sample, price: Price, processes: Processes = ALONE
    ) -> tuple[Tensor, StepResult]:
        """Compute the objective's loss under one draw of the gates, plus the price of what they keep.

        Every process reads the whole sample, so that gates are the same in all, and runs the network on its share. The
        mean over processes is then the loss of the whole sample; only BatchNorm sees shares. Mixed precision is for the
        network under gates: what tells data sets apart is small beside what they share, and would be rounded away.
        """
        gates = self.gates_of(sample, price.target)
        drawn = gates.draw(self.temperature)
        share, part = processes.share(batch_size_of((sample.args, sample.kwargs)))
        args, kwargs, target = sample.args, sample.kwargs, sample.target
        if processes.count > 1:
            args, kwargs, target = (share_of(x, share.start, share.stop, share.step) for x in (args, kwargs, target))
        with processes.autocast():
            output = self.run(weights.tensors(), drawn, args, kwargs)
        output = map_tensors(output, lambda t: t.float() if t.dtype == torch.bfloat16 else t)
        probabilities = gates.probabilities()
        kept_share = self.expected_share(probabilities)
        fit = self.objective.loss(output, target)
        loss = part * fit
        loss = loss + price.strength * torch.log(kept_share / price.target).square() + price.kl_weight * gates.kl()
        if price.decay:
            loss = loss + price.decay * torch.logit(torch.cat(probabilities), eps=1e-6).square().mean()
        metric = part * primary_of(self.objective, output, target, fit.item())
        return loss, StepResult(loss.item(), metric, kept_share.item())


def sgd(weights: TrainableTensors, lr: float, head_lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        [{"params": list(weights.leaves.values()), "lr": lr}, {"params": list(weights.head.values()), "lr": head_lr}],
        momentum=0.9,
    )


def gradient_step(
    learner: GatedLoss,
    weights: TrainableTensors,
    optimisers: Sequence[torch.optim.Optimizer],
    sample: Sample,
    rng: Rng,
    price: Price,
    processes: Processes = ALONE,
) -> StepResult:
    """Update weights, head and generator once, by the gradient of the whole sample; the gates' draw is from `rng`.

    Raises:
        TrainingDivergedError: a loss that is not finite, in all processes at once; nothing is changed then.
    """
    with rng.torch_global():
        loss, result = learner.loss(weights, sample, price, processes)
    for optimiser in optimisers:
        optimiser.zero_grad(set_to_none=True)
    loss.backward()
    if processes.count > 1:
        figures = torch.tensor([result.loss, result.metric], device=loss.device)
        groups = [group["params"] for optimiser in optimisers for group in optimiser.param_groups]
        processes.average([*(p.grad for group in groups for p in group if p.grad is not None), figures])
        result = dataclasses.replace(result, loss=figures[0].item(), metric=figures[1].item())
    if not math.isfinite(result.loss):
        raise TrainingDivergedError(
            f"the loss is {result.loss:g}; the artifact of an earlier start is left as it was. Lower lr, "
            "and check the inputs for NaN"
        )
    nn.utils.clip_grad_norm_([*weights.leaves.values(), *weights.head.values()], 5.0)
    for optimiser in optimisers:
        optimiser.step()
    return result


def gradient_steps(
    learner: GatedLoss,
    weights: TrainableTensors,
    optimisers: Sequence[torch.optim.Optimizer],
    drawn: Iterable[tuple[Sample, Rng]],
    price: Price,
    mixed_precision: MixedPrecision = "no",
) -> list[dict[str, float]]:
    """Update by every sample in turn, on Accelerate, and return their figures. Statistics end as the main process's."""
    device = learner.network.device
    with engine(mixed_precision, device) as accelerator:
        processes = Processes(accelerator, device)
        rows = [
            dataclasses.asdict(gradient_step(learner, weights, optimisers, sample, rng, price, processes))
            for sample, rng in drawn
        ]
        processes.copy_from_main(weights.buffers.values())
    return rows
