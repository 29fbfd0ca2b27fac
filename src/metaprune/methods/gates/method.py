"""Static gates, learned with the weights on the data at hand: the control of what emits gates for a data set.

One gate per channel, the same whatever a set holds, in three forms. concrete: independent keep probabilities (relaxed
as in Maddison et al., The concrete distribution, ICLR 2017; with a price on expected cost as in Louizos et al., ICLR
2018). vib: Gaussian scales under an information bottleneck (Dai et al., Compressing neural networks using the
variational information bottleneck, ICML 2018). beta_bernoulli: keep probabilities with a sparse prior (Lee et al.,
Adaptive network sparsification with dependent variational Beta-Bernoulli dropout, 2018: BBDropout).

Ours: gates on the channel groups of the traced network, consumed once per reader (`elastic/gated.py`); one draw a
batch, not a sample; the price on expected cost beside each form's KL, so that all reach a budget in few steps; ranking
by keep probability (for vib the sigmoid of ln mu^2 - ln sigma^2, a half at the paper's threshold); scales of what is
kept are not folded in.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from metaprune.core.errors import ConfigError
from metaprune.core.rng import Rng
from metaprune.data import Data
from metaprune.methods.gates.config import GatesConfig
from metaprune.methods.gating.distributions import GATES
from metaprune.methods.gating.training import GatedLoss, Price, Sample, asked_share, gradient_steps, sgd
from metaprune.objective import Objective
from metaprune.objective.batch import call_arguments, channels_last
from metaprune.protocol.method import BaseMethod, PruneTask
from metaprune.values import Budget, Plan, Proposal

_GATE_LR = 0.02  # of Adam; one is enough for all three forms at 200 steps
_LEAST = 0.01  # share of the full cost that is asked for where the budget bounds another metric


@dataclass(frozen=True, kw_only=True)
class Gates(GatesConfig, BaseMethod):
    """Trains weights and one gate per channel for `steps`, keeps the most probable channels that fit the budget."""

    def propose(self, task: PruneTask, budget: Budget, rng: Rng) -> Proposal:
        data, allocator = task.require_data(self.name), task.allocator(budget)
        if allocator.full_network_fits:
            return Proposal(Plan())
        share = asked_share(task.network, budget, self.metric, _LEAST)
        learner = _Static(task, self, data.require_objective())
        weights = learner.trainable(task.network.tensors)
        optimisers = (sgd(weights, self.lr, self.lr), torch.optim.Adam(learner.raw, lr=_GATE_LR))
        price = Price(self.strength, share, self.kl_weight)
        drawn = ((sample, rng.child("step", i)) for i, sample in enumerate(self._samples(task, data, rng)))
        with rng.child("batches").torch_global():  # a user's DataLoader shuffles by the global generator
            rows = gradient_steps(learner, weights, optimisers, drawn, price)
        with torch.no_grad():
            probabilities = [p.cpu().numpy() for p in learner.gates_of(None, share).probabilities()]
        macs = 3.0 * self.steps * self.batch_size * task.network.cost().macs
        details = {self.name: {"macs": macs, "steps": rows}}
        new = {n: t.detach() for n, t in weights.tensors().items()} if self.weights == "trained" else None
        return Proposal(allocator.by_scores(probabilities), new, (), details)

    def _samples(self, task: PruneTask, data: Data, rng: Rng) -> Iterator[Sample]:
        """`steps` augmented batches, pass after pass over the training split."""
        done = 0
        while done < self.steps:
            began, passed = done, rng.child("pass", done)
            device = task.network.device
            for inputs, target in data.train.batches(self.batch_size, device=device, rng=passed, augment=True):
                if done == self.steps:
                    return
                done += 1
                yield Sample(*call_arguments(channels_last(inputs)), target)
            if done == began:
                raise ConfigError("the training split gave no batch")


class _Static(GatedLoss):
    """Gates that are parameters."""

    def __init__(self, task: PruneTask, method: Gates, objective: Objective):
        super().__init__(task.network, method.metric, method.temperature, objective)
        self._form: Any = GATES[method.gate]
        device = task.network.device
        start = torch.tensor(self._form.start(method.keep), device=device)
        self.raw = [nn.Parameter(start.repeat(width, 1)) for width in self.gated.widths]

    def gates_of(self, sample: Sample | None, share: float) -> Any:
        return self._form([r * 1.0 for r in self.raw])
