"""Meta-training: the metanetwork learns to rewrite data models so that they lose little when they are pruned."""

from __future__ import annotations

import copy
import itertools
import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metaprune.core.errors import CollapseWarning, TrainingDivergedError
from metaprune.core.rng import Rng
from metaprune.methods.criteria.scores import ScoreMethod
from metaprune.methods.metagraph.config import MetaConfig
from metaprune.methods.metagraph.losses import gated_loss, tuned_loss
from metaprune.methods.metagraph.metanet import Graph, Metanet
from metaprune.methods.metagraph.network_graph import NetworkGraph
from metaprune.methods.metagraph.pruner import Batches, Pruner, area, metric_of, some_batches
from metaprune.methods.metagraph.shrinkage import Shrinkage
from metaprune.objective import signed
from metaprune.protocol.method import PruneTask
from metaprune.train.meta_loop import MetaHistory, MetaLoop
from metaprune.train.traced_module import TracedModule
from metaprune.values import Constraints, Plan

log = logging.getLogger("metaprune")
_LEARNT, _LOST = 0.2, 0.05  # share of the way from guessing to no error: a network that learnt; one that lost it


@dataclass(frozen=True, eq=False)
class DataModel:
    """A trained network that the metanetwork learns on: full-size tensors, and what it keeps already."""

    task: PruneTask
    network_graph: NetworkGraph
    tensors: Mapping[str, Tensor]
    plan: Plan = field(default_factory=Plan)
    seconds: float = 0.0
    """Wall time of making it."""

    def graph(self) -> Graph:
        network = self.task.network
        return Graph(self.network_graph.at(network.survivors(self.plan) if self.plan.keep else None), self.tensors)


class State(nn.Module):
    """The metanetwork as it is trained, and as it was when it did best."""

    def __init__(self, current: Metanet):
        super().__init__()
        self.current, self.best = current, copy.deepcopy(current)

    def keep(self) -> None:
        self.best.load_state_dict(self.current.state_dict())


def rewritten(metanet: Metanet, model: DataModel, graph: Graph, strength: float) -> dict[str, Tensor]:
    """Rewrite all tensors of a data model; differentiable in the metanetwork."""
    return graph.network_graph.written(model.tensors, metanet(graph, strength))


@dataclass(frozen=True)
class _Judging:
    """What a held-out data model is judged on, the same in every evaluation, and its accuracy before any rewrite."""

    tuning: Batches
    calibration: Batches
    judged: Batches
    before: float


class Trainer:
    """Meta-training on `models[:-held]`; the last `held` of them judge."""

    def __init__(
        self, metanet: Metanet, models: Sequence[DataModel], config: MetaConfig, criterion: ScoreMethod, held: int
    ):
        self.state, self.config, self.models = State(metanet), config, list(models)
        self.learnt, self.judges = range(len(models) - held), range(len(models) - held, len(models))
        self.graphs = [m.graph() for m in models]
        self.shrinkages = [Shrinkage(m.task.network, config.alpha) for m in models]
        # the task's constraints are for its result; data models are pruned as far as it takes
        self.pruners = [Pruner(replace(m.task, constraints=Constraints()), criterion, m.plan) for m in models]
        self.norms = [self._norm(i) for i in range(len(models))]

    def _norm(self, i: int) -> float:
        squares = self.shrinkages[i].squares(self.models[i].tensors)
        return float(sum(s.sum() for s in squares)) / 2

    def run(self, rng: Rng, folder: Path | None, identity: Mapping[str, Any], progress: bool) -> MetaHistory:
        """Train; ends early, with a warning, when the rewritten networks lose all they knew."""
        config = self.config
        adam = torch.optim.AdamW(self.state.current.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        loop = MetaLoop(
            label="meta-training",
            state=self.state,
            optimizer=adam,
            steps=config.steps,
            save_every=config.save_every,
            folder=folder,
            identity=identity,
            progress=progress,
        )
        history = loop.resume()
        judging = {i: self._judging(i, rng) for i in self.judges}
        if not history.evaluations:
            history.evaluations.append(self._evaluation(0, judging, rng))

        def step(number: int) -> dict[str, Any]:
            for group in adam.param_groups:
                group["lr"] = config.lr * (1 + math.cos(math.pi * number / config.steps)) / 2
            return self._step(adam, rng.child("step", number), number)

        def has_ended(number: int, history: MetaHistory) -> bool:
            evaluations = history.evaluations
            if number + 1 == config.steps or (number + 1) % config.evaluate_every == 0:
                evaluations.append(self._evaluation(number + 1, judging, rng))
                if evaluations[-1]["area"] > max(e["area"] for e in evaluations[:-1]):
                    self.state.keep()
            return evaluations[-1]["collapsed"]

        if not history.evaluations[-1]["collapsed"]:
            loop.run(history, step, has_ended)
        self._warn(history)
        return history

    def _step(self, adam: torch.optim.Optimizer, rng: Rng, number: int) -> dict[str, Any]:
        """One update: gradients of all losses at the rewritten weights, then once through the metanetwork."""
        draw = rng.numpy()
        i, strength = int(draw.choice(self.learnt)), float(draw.uniform())
        model, network = self.models[i], self.models[i].task.network
        self.state.current.train()
        new = rewritten(self.state.current, model, self.graphs[i], strength)
        leaves = {n: t.detach().requires_grad_() for n, t in new.items() if t.requires_grad}
        tensors = {**new, **leaves}
        plan = model.plan
        if self.config.objective != "sparsity":
            plan = self.pruners[i].at_share(tensors, self.config.share(strength), rng.child("rank"))
        alive = network.survivors(plan) if plan.keep else None
        data = model.task.require_data("metagraph")
        count = self.config.tune_steps + self.config.batches
        batches = some_batches(data.train, self.config.batch_size, count, network.device, rng)
        batches = list(itertools.islice(itertools.cycle(batches), count))  # of a small data set, again
        if self.config.objective == "straight-through":
            gates = self.shrinkages[i].gates(tensors, plan)
            fit, metric = gated_loss(network, tensors, gates, batches, data.require_objective())
        else:
            small = dict(network.sliced(alive, tensors=tensors))
            objective, tune = data.require_objective(), (self.config.tune_steps, self.config.tune_lr)
            fit, metric = tuned_loss(network.at(alive), small, batches, objective, *tune)
        shrunk = self.shrinkages[i].loss(tensors, self.shrinkages[i].weights(tensors, model.plan)) / self.norms[i]
        (self.config.shrinkage * strength * shrunk).backward()
        names = [n for n, leaf in leaves.items() if leaf.grad is not None]
        adam.zero_grad()
        torch.autograd.backward([new[n] for n in names], [leaves[n].grad for n in names])
        norm = float(nn.utils.clip_grad_norm_(self.state.current.parameters(), self.config.max_grad_norm))
        if not math.isfinite(norm + fit):
            raise TrainingDivergedError(
                f"meta-training step {number + 1}: loss or gradient is not finite; lower meta.lr"
            )
        adam.step()
        return {
            "step": number + 1,
            "model": i,
            "strength": strength,
            "fit": fit,
            "metric": metric,
            "shrinkage": shrunk.item(),
            "loss": fit + self.config.shrinkage * strength * shrunk.item(),
            "gradient_norm": norm,
        }

    @torch.no_grad()
    def _evaluation(self, number: int, judging: Mapping[int, _Judging], rng: Rng) -> dict[str, Any]:
        """Score after the cut (and `tune_steps`) at several budgets: held-out data models, validation split."""
        self.state.current.eval()
        curves, whole = [], []
        for i, at in judging.items():
            points = []
            for share in self.config.shares:
                new = rewritten(self.state.current, self.models[i], self.graphs[i], self.config.strength(share))
                points += self.pruners[i].curve(
                    new, [share], at.calibration, at.judged, rng.child("judge"), at.tuning, self.config.tune_lr
                )
            curves.append(points)
            new = rewritten(self.state.current, self.models[i], self.graphs[i], 1.0)
            whole.append(self._whole(i, new, at.calibration, at.judged))
        uncut = float(np.mean(whole))
        mean = [{k: float(np.mean([p[k] for p in points])) for k in points[0]} for points in zip(*curves, strict=True)]
        evaluation = {
            "step": number,
            "curve": mean,
            "area": area(mean),
            "uncut": uncut,
            "collapsed": self._has_collapsed(uncut, float(np.mean([at.before for at in judging.values()]))),
        }
        log.info(
            "meta-training step %d: %.4f after the cut, %.4f uncut", number, evaluation["area"], evaluation["uncut"]
        )
        return evaluation

    def _whole(self, i: int, tensors: Mapping[str, Tensor], calibration: Batches, judged: Batches) -> float:
        """Score of a data model with other tensors, without a further cut."""
        objective = self.models[i].task.require_data("metagraph").require_objective()
        module = TracedModule(self.models[i].task.network, tensors, self.models[i].plan)
        module.calibrate(calibration)
        return signed(objective.primary, metric_of(module, judged, objective))

    def _has_collapsed(self, score: float, before: float) -> bool:
        """Whether rewritten networks know nothing any more, and knew something; without a chance level, only NaN."""
        data = self.models[0].task.require_data("metagraph")
        guess = data.require_objective().chance(data.num_classes)
        if guess is None:
            return not math.isfinite(score)
        skill, had = ((x - guess) / (1 - guess) for x in (score, before))
        return skill < _LOST and had > _LEARNT

    def _judging(self, i: int, rng: Rng) -> _Judging:
        data, size = self.models[i].task.require_data("metagraph"), self.config.batch_size
        device = self.models[i].task.network.device
        calibration = some_batches(data.train, size, 4, device, rng.child("calibration"))
        judged = some_batches(data.val, size, math.ceil(self.config.judged / size), device, None)
        tuning = some_batches(data.train, size, self.config.tune_steps, device, rng.child("tuning"))
        return _Judging(tuning, calibration, judged, self._whole(i, self.models[i].tensors, calibration, judged))

    def _warn(self, history: MetaHistory) -> None:
        if history.evaluations[-1]["collapsed"]:
            warnings.warn(
                f"meta-training collapsed at step {history.evaluations[-1]['step']}: rewritten networks are at chance. "
                "The best state before is kept; lower meta.lr or meta.shrinkage",
                CollapseWarning,
                stacklevel=4,
            )
        elif max(e["area"] for e in history.evaluations) <= history.evaluations[0]["area"]:
            warnings.warn(
                "no state of the metanetwork did better than no rewrite: the artifact rewrites nothing. More steps, a "
                "lower meta.lr or meta.shrinkage may help",
                CollapseWarning,
                stacklevel=4,
            )
