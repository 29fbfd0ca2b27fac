"""One network, its gates and its mask generator: the gradient step that all training of gates shares."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metaprune.cost.soft import SoftCost
from metaprune.elastic.gated import Gated
from metaprune.errors import TrainingDivergedError
from metaprune.methods.stamp.episodes import Sample
from metaprune.methods.stamp.generator import MaskGenerator
from metaprune.methods.stamp.reader import Head, Reader
from metaprune.network import Network
from metaprune.rng import Rng
from metaprune.train.batch import cross_entropy, logits_of


@dataclass
class Weights:
    """The network's tensors while they are trained: leaves (parameters), buffers, and a head for the data at hand."""

    leaves: dict[str, Tensor]
    buffers: dict[str, Tensor]
    head: dict[str, Tensor]
    rest: Mapping[str, Tensor]

    def tensors(self) -> dict[str, Tensor]:
        return {**self.rest, **self.leaves, **self.buffers, **self.head}


@dataclass(frozen=True)
class Price:
    """strength * (expected share of the full cost above `target`) + kl_weight * KL to the sparse prior."""

    strength: float
    target: float
    kl_weight: float = 0.0


@dataclass(frozen=True)
class StepResult:
    """loss: of the step. accuracy: on its own batch. kept_cost: expected share of the full cost, before the draw."""

    loss: float
    accuracy: float
    kept_cost: float


class GatedLoss(ABC):
    """The loss of a network under gates; where their distribution comes from is the subclass's."""

    def __init__(self, network: Network, metric: str, temperature: float):
        self.network, self.temperature = network, temperature
        self.gated = Gated(network.program, network.captured, network.labelled, network.space)
        self.cost = SoftCost(network.cost_model(), metric)

    @abstractmethod
    def gates_of(self, sample: Sample) -> Any:
        """The gate distribution for a sample of a data set."""

    def trainable(self, tensors: Mapping[str, Tensor], new: Collection[str | None] = (), classes: int = 0) -> Weights:
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
        return Weights(leaves, buffers, head, {n: t for n, t in self.network.tensors.items() if n not in leaves})

    def loss(self, weights: Weights, sample: Sample, price: Price) -> tuple[Tensor, StepResult]:
        """Cross-entropy under one draw of the gates, plus the price of what they keep."""
        gates = self.gates_of(sample)
        drawn = gates.draw(self.temperature)
        output = self.gated.run(weights.tensors(), drawn, sample.args, sample.kwargs, training=True)
        logits = logits_of(output)
        kept = self.cost(torch.stack([p.sum() for p in gates.probabilities()]))
        loss = cross_entropy(logits, sample.labels)
        loss = loss + price.strength * torch.relu(kept - price.target) + price.kl_weight * gates.kl()
        accuracy = float((logits.argmax(dim=-1) == sample.labels).float().mean())
        return loss, StepResult(loss.item(), accuracy, kept.item())


class Learner(GatedLoss):
    """Holds no weights of its own but the generator's; `reference` are the frozen tensors that sets are read with."""

    def __init__(
        self, network: Network, generator_of: Any, reference: Mapping[str, Tensor], metric: str, temperature: float
    ):
        super().__init__(network, metric, temperature)
        self.head = Head.of(network)
        self.reader = Reader(network, self.gated, self.head, reference)
        self.generator: MaskGenerator = generator_of(self.gated.widths, self.reader.tapped, self.head.features)
        self.generator.to(network.program.device)

    def weights(self, tensors: Mapping[str, Tensor], classes: int) -> Weights:
        """Trainable copies of `tensors`, with a head of zeros for `classes` classes."""
        return self.trainable(tensors, {self.head.weight, self.head.bias}, classes)

    def gates_of(self, sample: Sample) -> Any:
        """What the generator gives."""
        return self.generator(self.reader(sample.args, sample.kwargs), sample.labels)

    @torch.no_grad()
    def probabilities(self, samples: Sequence[Sample]) -> list[np.ndarray]:
        """Keep probabilities [width] per group: the mean over samples of one data set."""
        self.generator.eval()
        each = [self.gates_of(sample).probabilities() for sample in samples]
        self.generator.train()
        return [torch.stack(group).mean(dim=0).cpu().numpy() for group in zip(*each, strict=True)]


def sgd(weights: Weights, lr: float, head_lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        [{"params": list(weights.leaves.values()), "lr": lr}, {"params": list(weights.head.values()), "lr": head_lr}],
        momentum=0.9,
    )


def gradient_step(
    learner: GatedLoss, weights: Weights, optimisers: Sequence[torch.optim.Optimizer], sample: Sample, rng: Rng,
    price: Price,
) -> StepResult:  # fmt: skip
    """One update of weights, head and generator; the draw of the gates comes from `rng`."""
    with rng.torch_global():
        loss, result = learner.loss(weights, sample, price)
    if not torch.isfinite(loss):
        raise TrainingDivergedError(
            f"the loss is {result.loss:g}; the artifact of an earlier start is left as it was. Lower lr or head_lr, "
            "and check the inputs for NaN"
        )
    for optimiser in optimisers:
        optimiser.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_([*weights.leaves.values(), *weights.head.values()], 5.0)
    for optimiser in optimisers:
        optimiser.step()
    return result
