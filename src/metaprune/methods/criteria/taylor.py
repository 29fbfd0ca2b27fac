"""First-order Taylor, per sample: how much the loss changes when a channel goes (Molchanov et al., CVPR 2019, gates).

A channel has a gate of 1 wherever it is consumed. Its score is the mean over samples of the squared derivative of the
sample's loss by the gate: the first-order change of that loss if the channel were zero. One backward pass per batch.

Half of it is the score of Fisher pruning (Theis et al., Faster gaze prediction with dense networks and Fisher pruning,
2018): OBD's second-order change with the empirical Fisher information of the gates in the place of the Hessian.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from metaprune.core.errors import ConfigError
from metaprune.core.rng import Rng
from metaprune.methods.criteria.config import TaylorConfig
from metaprune.methods.criteria.scores import ScoreMethod, scores_from_data
from metaprune.objective.batch import batch_size_of, call_arguments
from metaprune.protocol.method import PruneTask
from metaprune.values import Plan


@dataclass(frozen=True, kw_only=True)
class Taylor(TaylorConfig, ScoreMethod):
    """Averages squared first-order changes of every sample's loss. Groups that nothing consumes score 1 throughout."""

    def scores(self, task: PruneTask, plan: Plan, rng: Rng) -> list[np.ndarray]:
        parts = first_order_changes(task, plan, self.batches, rng)
        return scores_from_data(parts, self.normalise)


def first_order_changes(
    task: PruneTask, plan: Plan, batches: int, rng: Rng, about: Mapping[str, Tensor] | None = None
) -> list[np.ndarray]:
    """Average squared first-order changes of every sample's loss, were a channel zero: [width] per group.

    Args:
        batches: training mini-batches that are read, at most.
        about: what a channel would be instead of zero, see `Gated.run_by_sample`.

    Raises:
        ConfigError: the training split gave no batch.
    """
    data, network = task.require_data("taylor"), task.network
    objective = data.require_objective()
    tensors = {n: t.detach() for n, t in network.tensors.items()}
    mask = torch.from_numpy(np.concatenate([*plan.masks(network.space), []])).to(network.device, torch.float32)
    total, seen = torch.zeros(len(mask), dtype=torch.float64, device=network.device), 0
    with rng.child("batches").torch_global():  # a user's DataLoader shuffles by the global generator
        stream = data.train.batches(task.batch_size, device=network.device, rng=rng.child("batches"))
        for inputs, target in itertools.islice(stream, batches):
            args, kwargs = call_arguments(inputs)
            samples = batch_size_of(inputs) if network.captured.batch is not None else 1
            gates = mask.expand(samples, -1).clone().requires_grad_()
            output = network.gated.run_by_sample(tensors, gates, args, kwargs, about)
            (gradient,) = torch.autograd.grad(objective.sensitivity(output, target), [gates])
            total += (gradient.double() * samples).square().sum(dim=0)  # the loss is the mean over samples
            seen += samples
    if not seen:
        raise ConfigError("the training split gave no batch")
    return np.split((total / seen).cpu().numpy(), np.cumsum(network.space.widths))[:-1]
