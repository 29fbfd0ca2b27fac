"""First-order Taylor on weights: squares of a mini-batch's mean change (Molchanov et al., CVPR 2019, by weights).

Per mini-batch and coupled weight, a channel's score is (sum over its rows of weight * gradient)^2, the square of the
first-order change of the loss if those rows were zero; mean over mini-batches and members. In a trained network the
changes of single samples cancel within a batch, so that what is left is mostly noise: see `taylor`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn

from metaprune.core.errors import ConfigError
from metaprune.core.rng import Rng
from metaprune.methods.criteria.config import TaylorBatchConfig
from metaprune.methods.criteria.scores import ScoreMethod, group_scores, member_scores
from metaprune.objective.batch import call_arguments
from metaprune.protocol.method import PruneTask
from metaprune.values import ChannelGroup, Member, Plan


@dataclass(frozen=True, kw_only=True)
class TaylorBatch(TaylorBatchConfig, ScoreMethod):
    """Averages squared first-order changes of the loss over training mini-batches."""

    def scores(self, task: PruneTask, plan: Plan, rng: Rng) -> list[np.ndarray]:
        data = task.require_data(self.name)
        objective = data.require_objective()
        network = task.network
        names = {m.parameter for g in network.space for m in g.members}
        leaves = {
            n: t.detach().requires_grad_()
            for n, t in network.tensors.items()
            if n in names and isinstance(t, nn.Parameter)
        }
        tensors = {**network.tensors, **leaves}
        totals = [np.zeros(g.width) for g in network.space]
        seen = 0
        with rng.child("batches").torch_global():  # a user's DataLoader shuffles by the global generator
            stream = data.train.batches(task.batch_size, device=network.device, rng=rng.child("batches"))
            for seen, (inputs, target) in enumerate(stream, start=1):
                args, kwargs = call_arguments(inputs)
                sliced = network.sliced(network.survivors(plan), tensors=tensors)
                output = network.run(*args, plan=plan, tensors=sliced, **kwargs)
                loss = objective.sensitivity(output, target)
                grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
                change = {n: w.detach() * g for (n, w), g in zip(leaves.items(), grads, strict=True) if g is not None}
                parts = group_scores(task, partial(self._part, change), "none")
                totals = [t + p for t, p in zip(totals, parts, strict=True)]
                if seen == self.batches:
                    break
        if not seen:
            raise ConfigError("the training split gave no batch")
        if self.normalise == "mean":
            totals = [t / t.mean() if t.mean() > 0 else t for t in totals]
        return totals

    def _part(
        self, change: dict[str, torch.Tensor], _: ChannelGroup, member: Member, __: torch.Tensor
    ) -> np.ndarray | None:
        """Score of one member; change: weight * gradient by parameter."""
        return self._sum(change[member.parameter], member) if member.parameter in change else None

    def _sum(self, change: torch.Tensor, member: Member) -> np.ndarray:
        return member_scores(change, member) ** 2
