"""Metanetwork: a scoring rule learned on a zoo; or the rewrite of a network so that plain pruning hurts it less.

Meta Pruning via Graph Metanetworks, Y. Liu, X. Wang, M. Zhang, arXiv 2506.12041, 2025. Only its abstract and code could
be read: a network becomes a graph and back, a graph neural network rewrites the weights, trained on cross-entropy plus
group sparsity of the rewritten network; initial pruning -> fine-tuning -> rewrite -> fine-tuning -> pruning ->
fine-tuning. The cut inside meta-training, the strength input, the choice of the state on a validation split and all
figures are ours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from torch import Tensor, nn

from metaprune.core.errors import InfeasibleBudgetError, WeightsError
from metaprune.core.files import tensors_digest
from metaprune.core.rng import Rng
from metaprune.methods.criteria.scores import ScoreMethod
from metaprune.methods.metagraph.config import MetaGraphConfig
from metaprune.methods.metagraph.data_models import data_models
from metaprune.methods.metagraph.learned import features, restored, warn_of_others
from metaprune.methods.metagraph.meta import Trainer
from metaprune.methods.metagraph.metanet import Metanet
from metaprune.methods.metagraph.pruner import ranking, weight_criterion
from metaprune.methods.metagraph.rewrite import RewriteAndPrune
from metaprune.methods.metagraph.rule_fit import SHIPPED, fit_rule, learning_of
from metaprune.methods.metagraph.score_rule import Rule, RuleScores
from metaprune.methods.metagraph.zoo import zoo_digest
from metaprune.methods.weight_masks.method import WeightMasks
from metaprune.protocol.artifact import Artifact, found_or_fitted, plain
from metaprune.protocol.method import BaseMethod, PruneTask
from metaprune.protocol.options import AT_RUN_TIME, fitted_options
from metaprune.values import Budget, Plan, Proposal


@dataclass(frozen=True, kw_only=True)
class MetaGraph(MetaGraphConfig, BaseMethod):
    """Ranks channels by a learned rule; or meta-trains a graph metanetwork, rewrites with it and prunes plainly."""

    learns: ClassVar[bool] = True
    """False: a control of studies, the same flow without a metanetwork."""
    flow: ClassVar[type[RewriteAndPrune]] = RewriteAndPrune

    fitted: Artifact | None = field(default=None, repr=False, metadata=AT_RUN_TIME)
    """Set by `restore`."""

    @property
    def ranking(self) -> ScoreMethod:
        """The criterion of channels."""
        return ranking(self.criterion, self.ranking_options)

    @property
    def weights(self) -> WeightMasks | None:
        """The criterion of single weights; None where channels are pruned."""
        return weight_criterion(self)

    def require_feasible(self, task: PruneTask, budget: Budget) -> None:
        """See `metaprune.protocol.method.require_feasible`. A given artifact is read, too."""
        if self.learns and (given := self.fitted or self.artifact) is not None:
            artifact = given if isinstance(given, Artifact) else Artifact.load(given, self.name)
            if objective_of(artifact) == "score":
                self.require_no_rewrite()
                Rule.restored(artifact)
            else:
                restored(artifact, task)
        self._require_reachable(task, budget)

    def _require_reachable(self, task: PruneTask, budget: Budget) -> None:
        """With an initial pruning, masks are judged after it."""
        full = float(task.network.cost().macs)
        if self.initial < 1:
            task.allocator(Budget(macs=self.initial * full))
        if self.weights is None:
            task.allocator(budget)
        elif self.initial == 1:
            self.weights.require_feasible(task, budget)
        elif budget.bounds(task.network.cost()).get("macs", full) < self.initial * full:
            raise InfeasibleBudgetError(
                f"masks of single weights ({self.pattern}) leave MACs as the initial pruning left them, and "
                f"initial={self.initial:g} is above {budget.macs}. Bound nonzero instead, or lower `initial`",
                {"macs": self.initial * full},
            )

    # ------------------------------------------------------------------------------------------ meta-training

    def fit(self, tasks: Sequence[PruneTask], rng: Rng) -> Artifact:
        """Learn a rule on the zoo or on the tasks; or meta-train a rewrite on data models of all tasks.

        Networks of the tasks may differ. A rewrite is resumable where the first task has a folder.

        Raises:
            WeightsError: NaN or infinity in a network's weights. DataError: no images to train on.
        """
        for task in tasks:
            _require_finite(task.network.tensors)
        if self.objective == "score":
            return fit_rule(
                learning_of(tasks, self.score, rng), self.score, self._identity(tasks, rng), rng.child("rule")
            )
        first = tasks[0]
        models = data_models(tasks, self.data_models, self.ranking, rng.child("data models"), first.progress)
        made = sum(m.seconds for m in models)
        with rng.child("metanet").torch_global():
            metanet = Metanet(self.metanet).to(first.network.device)
        trainer = Trainer(metanet, models, self.meta, self.ranking, held=len(tasks))
        identity = self._identity(tasks, rng)
        folder = None if first.folder is None else first.folder / "checkpoints" / "metagraph"
        rows = trainer.run(rng.child("meta"), folder, identity, first.progress)
        info = {
            "features": features(),
            "history": rows.to_dict(),
            **identity,
            "data_models": [{"macs": p.share(m.plan)} for p, m in zip(trainer.pruners, models, strict=True)],
            "graph": {"nodes": models[0].network_graph.nodes, "edges": models[0].network_graph.edge_count},
            "parameters": sum(p.numel() for p in metanet.parameters()),
            "stages": {"data_models": made, "meta": rows.seconds},
            "seconds": made + rows.seconds,
            "macs": self._fit_macs(tasks, len(rows.rows)),
        }
        return Artifact(self.name, {n: t.detach().cpu() for n, t in trainer.state.best.state_dict().items()}, info)

    def _identity(self, tasks: Sequence[PruneTask], rng: Rng) -> dict[str, Any]:
        """What a fit depends on."""
        identity: dict[str, Any] = {
            "options": self._fit_options(),
            "spaces": [t.network.space.digest() for t in tasks],
            "data": [[d.name, d.digest] for d in (t.require_data(self.name) for t in tasks)],
            "weights": [tensors_digest(t.network.tensors) for t in tasks],
            "seed": [rng.seed, *rng.path],
        }
        if self.objective == "score" and self.score.zoo is not None:
            identity["zoo"] = zoo_digest(Path(self.score.zoo))
        return plain(identity)

    def _fit_macs(self, tasks: Sequence[PruneTask], steps: int) -> float:
        """Of the networks: training of the data models, and every meta-step; the metanetwork's own are not in it."""
        full = float(np.mean([t.network.cost().macs for t in tasks]))
        lean = (1 + self.meta.smallest) / 2 if self.meta.objective == "cut" else 1.0
        images = float(np.mean([len(t.require_data(self.name).train) for t in tasks]))
        made = len(tasks) * self.data_models.count * self.data_models.epochs * images
        seen = steps * (self.meta.tune_steps + self.meta.batches) * self.meta.batch_size
        return 3 * full * (made * float(np.mean(self.data_models.shares)) + lean * seen)

    def restore(self, artifact: Artifact) -> Self:
        return dataclasses.replace(self, fitted=artifact)

    def _fit_options(self) -> dict[str, Any]:
        return plain(
            {name: plain(getattr(self, name)) for name in fitted_options(self)}
            | {"criterion_options": self.ranking_options}
        )

    # ------------------------------------------------------------------------------------------ one network

    def propose(self, task: PruneTask, budget: Budget, rng: Rng) -> Proposal:
        """Initial pruning, rewrite, plan within `budget`; with fine-tuning between where the options say so.

        Raises:
            InfeasibleBudgetError: no structure meets the budget. ConfigError: an artifact of other node features.
            WeightsError: NaN or infinity in the weights.
        """
        task.require_data(self.name)
        self._require_reachable(task, budget)
        slack = task.allocator(budget).full_network_fits if self.weights is None else self.weights.slack(task, budget)
        if slack:
            return Proposal(Plan())
        _require_finite(task.network.tensors)
        learned = None
        if self.learns:
            artifact = self._artifact(task, rng)
            if objective_of(artifact) == "score":
                return self._ranked(artifact, task, budget, rng.child("prune"))
            learned = restored(artifact, task)
            warn_of_others(artifact, self._fit_options(), MetaGraph()._fit_options())
        flow = self.flow(self, task, budget, rng.child("prune"))
        flow.initial()
        flow.rewritten(learned)
        return flow.pruned() if self.weights is None else flow.masked(self.weights)

    def _ranked(self, artifact: Artifact, task: PruneTask, budget: Budget, rng: Rng) -> Proposal:
        """Plan within `budget` by the artifact's rule."""
        self.require_no_rewrite()
        rule = Rule.restored(artifact)
        proposal = RuleScores(rule=rule, allocate=self.allocate).propose(task, budget, rng)
        figures = {k: artifact.info.get(k) for k in ("history", "networks", "seconds", "stages", "macs")}
        learned = {self.name: {"rule": rule.named(), "meta_training": figures}}
        return dataclasses.replace(proposal, details={**proposal.details, **learned})

    def _artifact(self, task: PruneTask, rng: Rng) -> Artifact:
        def expected() -> Mapping[str, Any]:
            return self._identity([task], rng.child("fit"))

        folder = None if task.folder is None else task.folder / self.name
        there = dataclasses.replace(task, folder=folder)
        given = self.fitted or self.artifact
        if given is None and self.objective == "score" and self.score.zoo is None:
            given = str(SHIPPED)
        return found_or_fitted(self.name, given, folder, expected, lambda: self.fit([there], rng.child("fit")))


def objective_of(artifact: Artifact) -> str:
    """Tell what an artifact was fitted for; those of early versions are of rewrites."""
    return artifact.info.get("options", {}).get("objective", "rewrite")


def _require_finite(tensors: Mapping[str, Tensor]) -> None:
    # infinity in a buffer may be an attention mask
    bad = [n for n, t in tensors.items() if t.isnan().any() or (isinstance(t, nn.Parameter) and t.isinf().any())]
    if bad:
        raise WeightsError(
            f"NaN or infinity in {', '.join(bad[:4])}: a graph of these weights would spread it; train anew"
        )
