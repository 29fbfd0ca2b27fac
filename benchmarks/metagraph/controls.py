"""Controls of the graph metanetwork: the same flow with something else in place of the rewrite.

Noise and shrinkage move the weights as far as the metanetwork does; a shuffled graph shows what the connections are
worth; without a rewrite the same fine-tunings are left, on the objective alone or with group sparsity.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from metaprune.core.errors import ConfigError
from metaprune.core.rng import Rng
from metaprune.methods.metagraph.meta import DataModel
from metaprune.methods.metagraph.metanet import Metanet
from metaprune.methods.metagraph.method import MetaGraph
from metaprune.methods.metagraph.network_graph import NetworkGraph
from metaprune.methods.metagraph.rewrite import RewriteAndPrune, by_metanet
from metaprune.methods.metagraph.shrinkage import Shrinkage
from metaprune.objective import Objective
from metaprune.train.loss import TrainLoss
from metaprune.train.traced_module import TracedModule

Tensors = Mapping[str, Tensor]


def noise_like(new: Tensors, old: Tensors, rng: Rng) -> dict[str, Tensor]:
    """Move every tensor as far as in `new`, in a random direction; what did not move or is zero stays."""
    noisy = {}
    for name, value in new.items():
        change = value - old[name] if value.is_floating_point() else torch.zeros(1)
        if not change.any():
            noisy[name] = value
            continue
        noise = torch.randn(value.shape, generator=rng.child(name).torch()).to(value) * (old[name] != 0)
        noisy[name] = old[name] + noise * change.norm() / noise.norm().clamp_min(1e-12)
    return noisy


def shuffled(network_graph: NetworkGraph, rng: Rng) -> NetworkGraph:
    """Mix up the inputs of every block: the same weights in a graph that is wrong."""
    edges = []
    for number, e in enumerate(network_graph.edges):
        order = torch.randperm(e.into.shape[1], generator=rng.child(number).torch())
        if e.into.shape[1] == 1:  # blocks of one input (depthwise, identity) exchange theirs
            blocks = torch.randperm(len(e.into), generator=rng.child(number).torch())
            edges.append(replace(e, into=e.into[blocks]))
        else:
            edges.append(replace(e, into=e.into[:, order]))
    return replace(network_graph, edges=tuple(edges))


@torch.no_grad()
def shrunk_like(new: Tensors, model: DataModel, shrinkage: Shrinkage) -> dict[str, Tensor]:
    """Shrink channels by their weights gamma, all by one factor, so that the network moves as far as in `new`."""
    old = model.tensors
    floats = [n for n, t in old.items() if isinstance(model.task.network.tensors[n], nn.Parameter)]
    far = torch.stack([(new[n] - old[n]).square().sum() for n in floats]).sum().sqrt()
    gammas = shrinkage.weights(old, model.plan)
    leaves = {n: old[n].detach().clone().requires_grad_() for n in floats}
    with torch.enable_grad():
        loss = shrinkage.loss({**old, **leaves}, gammas)
        grads = dict(
            zip(floats, torch.autograd.grad(loss, [leaves[n] for n in floats], allow_unused=True), strict=True)
        )
    step = torch.stack([g.square().sum() for g in grads.values() if g is not None]).sum().sqrt().clamp_min(1e-12)
    return {n: old[n] - g * (far / step) if (g := grads.get(n)) is not None else t for n, t in old.items()}


class SparseLoss(TrainLoss):
    """The objective's loss plus `reg` times the weighted shrinkage of the network in training.

    Group-sparsity training on the target itself, as DepGraph's sparse learning. The weights gamma are taken anew every
    `every` steps.
    """

    def __init__(
        self,
        objective: Objective,
        shrinkage: Shrinkage,
        tensors_of: Callable[[], Tensors],
        reg: float,
        every: int = 20,
    ):
        super().__init__(objective)
        self._shrinkage, self._tensors_of, self._reg, self._every = shrinkage, tensors_of, reg, every
        self._step, self._weights = 0, list[Tensor]()

    def __call__(self, output: Any, inputs: Any, target: Any) -> Tensor:
        tensors = self._tensors_of()
        if self._step % self._every == 0:
            self._weights = self._shrinkage.weights(tensors)
        self._step += 1
        return super().__call__(output, inputs, target) + self._reg * self._shrinkage.loss(tensors, self._weights)


class _NoiseFlow(RewriteAndPrune):
    def new_weights(self, metanet: Metanet, model: DataModel, strength: float) -> dict[str, Tensor]:
        return noise_like(super().new_weights(metanet, model, strength), self.tensors, self.rng.child("noise"))


class _ShrinkageFlow(RewriteAndPrune):
    def new_weights(self, metanet: Metanet, model: DataModel, strength: float) -> dict[str, Tensor]:
        shrinkage = Shrinkage(self.task.network, self.method.meta.alpha)
        return shrunk_like(super().new_weights(metanet, model, strength), model, shrinkage)


class _ShuffledFlow(RewriteAndPrune):
    def new_weights(self, metanet: Metanet, model: DataModel, strength: float) -> dict[str, Tensor]:
        alive = self.task.network.survivors(self.plan) if self.plan.keep else None
        wrong = shuffled(model.network_graph.at(alive), self.rng.child("shuffled"))
        return by_metanet(metanet, model, strength, wrong)


class _SparseFlow(RewriteAndPrune):
    method: Sparse

    def tuning_loss(self, module: TracedModule) -> TrainLoss:
        """Of whole networks only: a module at a plan holds slices, which the groups' rows do not fit."""
        shrinkage = Shrinkage(self.task.network, self.method.meta.alpha)
        return SparseLoss(self.data.require_objective(), shrinkage, module.tensors, self.method.sparse_reg)


class Noise(MetaGraph):
    """Noise as large as the rewrite, tensor by tensor."""

    flow = _NoiseFlow


class ShrinkageOnly(MetaGraph):
    """Shrunk channels, as far from the network as the rewrite."""

    flow = _ShrinkageFlow


class Shuffled(MetaGraph):
    """The metanetwork on a graph that is wrong."""

    flow = _ShuffledFlow


class NoRewrite(MetaGraph):
    """The same fine-tunings and the same criterion."""

    learns = False


@dataclass(frozen=True, kw_only=True)
class Sparse(MetaGraph):
    """No rewrite; `finetune` trains the whole network with group sparsity of weight `sparse_reg`."""

    learns: ClassVar[bool] = False
    flow: ClassVar[type[RewriteAndPrune]] = _SparseFlow

    sparse_reg: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.finetune is None or self.initial < 1:
            raise ConfigError("group sparsity trains the whole network: set finetune, and leave initial at 1")


def control(kind: type[MetaGraph], method: MetaGraph, **options: Any) -> MetaGraph:
    """Make a control with the options of `method`."""
    return kind(**{f.name: getattr(method, f.name) for f in fields(MetaGraph)} | options)
