"""`RewriteAndPrune`: the steps from a network to a proposal."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from metaprune.core.errors import CollapseWarning, NoEffectWarning
from metaprune.core.files import tensors_digest
from metaprune.core.rng import Rng
from metaprune.elastic.weights import zeroed
from metaprune.methods.metagraph.build_graph import build_network_graph
from metaprune.methods.metagraph.config import MetaConfig
from metaprune.methods.metagraph.data_models import dropped_are_zero
from metaprune.methods.metagraph.learned import RestoredMetanet
from metaprune.methods.metagraph.meta import DataModel
from metaprune.methods.metagraph.metanet import Graph, Metanet
from metaprune.methods.metagraph.network_graph import NetworkGraph
from metaprune.methods.metagraph.pruner import Pruner, metric_of, ranking, some_batches, weight_criterion
from metaprune.methods.metagraph.shrinkage import Shrinkage
from metaprune.methods.weight_masks.method import WeightMasks
from metaprune.protocol.method import PruneTask
from metaprune.train.config import TrainConfig
from metaprune.train.loop import train
from metaprune.train.loss import TrainLoss
from metaprune.train.traced_module import TracedModule
from metaprune.values import Budget, Plan, Proposal

if TYPE_CHECKING:
    from metaprune.methods.metagraph.method import MetaGraph

LossOf = Callable[[TracedModule], TrainLoss | None]
_CALIBRATION, _JUDGED = 4, 8  # batches
_BINS = 20
_MUCH = 0.1  # of the parameters, that no edge or node holds


@torch.no_grad()
def by_metanet(
    metanet: Metanet, model: DataModel, strength: float, network_graph: NetworkGraph | None = None
) -> dict[str, Tensor]:
    """Rewrite the weights of a data model; `network_graph` stands in for the model's own graph."""
    graph = model.graph() if network_graph is None else Graph(network_graph, model.tensors)
    metanet.eval()
    return graph.network_graph.written(model.tensors, metanet(graph, strength))


class RewriteAndPrune:
    """The steps of one proposal: initial pruning, rewrite, cut or masks, with fine-tuning between.

    Each step leaves the primary metric on the validation split, cost as shares of the full one, and seconds.
    Studies put a control in place of the rewrite by overriding `new_weights` or `tuning_loss`.
    """

    def __init__(self, method: MetaGraph, task: PruneTask, budget: Budget, rng: Rng):
        self.method, self.task, self.budget, self.rng = method, task, budget, rng
        self.pruner = Pruner(task, ranking(method.criterion, method.ranking_options))
        self.tensors: dict[str, Tensor] = {n: t.detach() for n, t in task.network.tensors.items()}
        self.plan = Plan()
        self.masking = weight_criterion(method)
        self.details: dict[str, Any] = {"steps": []}
        data, device = task.require_data(method.name), task.network.device
        self.data = data
        self.calibration = some_batches(data.train, task.batch_size, _CALIBRATION, device, rng.child("calibration"))
        self.judged = some_batches(data.val, task.batch_size, _JUDGED, device, None)
        self._began = time.perf_counter()
        self._judge("start", TracedModule(task.network, self.tensors))

    def initial(self) -> None:
        """Prune lightly before the rewrite, and fine-tune."""
        if self.method.initial < 1:
            bound = Budget(macs=self.method.initial * float(self.task.network.cost().macs))
            self.plan = self.pruner.plan(self.tensors, bound, self.rng.child("initial"))
            self.tensors = dropped_are_zero(self.task.network, self.tensors, self.plan)
            self.pruner = dataclasses.replace(self.pruner, start=self.plan)
            self._tuned("initial pruning", self.method.initial_finetune)

    def rewritten(self, learned: RestoredMetanet | None) -> None:
        """Rewrite, where there is a metanetwork, and fine-tune."""
        network = self.task.network
        model = DataModel(self.task, build_network_graph(network), self.tensors, self.plan)
        network_graph = model.network_graph
        self.details["graph"] = {
            "nodes": network_graph.nodes,
            "edges": network_graph.edge_count,
            "uncovered": dict(network_graph.uncovered),
        }
        if learned is not None:
            _warn_of_gaps(network_graph, network.cost().params)
            before, strength = self.tensors, self._strength(learned.meta)
            self.tensors = self.new_weights(learned.metanet, model, strength)
            moved = _moved(before, self.tensors)
            if not moved:
                warnings.warn("the artifact rewrites nothing: see its meta-training", CollapseWarning, stacklevel=4)
            self.details |= {
                "strength": strength,
                "moved": moved,
                "norms": self._norms(before),
                "meta_training": learned.info,
            }
        self._tuned("rewrite" if learned is not None else "no rewrite", self.method.finetune, self.tuning_loss)

    def new_weights(self, metanet: Metanet, model: DataModel, strength: float) -> dict[str, Tensor]:
        """Rewrite the weights of `model`."""
        return by_metanet(metanet, model, strength)

    def tuning_loss(self, module: TracedModule) -> TrainLoss | None:
        """Choose the loss of the fine-tuning after the rewrite; None: the objective's."""
        return None

    def pruned(self) -> Proposal:
        """Plan within the budget, with the weights the plan belongs to and BatchNorm statistics of its own."""
        plan = self.pruner.plan(self.tensors, self.budget, self.rng.child("final"))
        if plan == self.plan and plan.keep:
            warnings.warn(
                f"initial={self.method.initial:g} leaves no more than the budget allows: nothing is cut after the "
                "rewrite. Raise initial",
                NoEffectWarning,
                stacklevel=4,
            )
        module = TracedModule(self.task.network, self.tensors, plan)
        self._judge("pruning", module, plan)
        return Proposal(plan, module.full_size(self.tensors), (), {"metagraph": self.details})

    def masked(self, criterion: WeightMasks) -> Proposal:
        """Add masks of single weights within the budget to the plan so far, and statistics that belong to them."""
        network = self.task.network
        masks, mask_details = criterion.masks(self.task, self.tensors, self.budget, self.plan)
        module = TracedModule(network, zeroed(self.tensors, masks), self.plan)
        self._judge("masking", module, self.plan, masks=masks)
        details = {"metagraph": self.details} | ({"masks": mask_details} if masks else {})
        return Proposal(self.plan, module.full_size(self.tensors), (), details, masks)

    def _norms(self, before: Mapping[str, Tensor]) -> dict[str, dict[str, list[int]]]:
        """Channels of every group counted by their norm, in bins up to the largest before."""
        shrinkage, counts_by_group = Shrinkage(self.task.network), {}
        sides = [shrinkage.squares(t) for t in (before, self.tensors)]
        space = self.task.network.space
        for group, mask, *squares in zip(space, self.plan.masks(space), *sides, strict=True):
            sizes = [s.mean(0).sqrt().detach().float().cpu()[torch.from_numpy(mask)] for s in squares]
            top = float(sizes[0].max()) or 1.0
            counts = [torch.histc(s.clamp(max=top), _BINS, 0, top).int().tolist() for s in sizes]
            counts_by_group[group.name] = dict(zip(("before", "after"), counts, strict=True))
        return counts_by_group

    def _strength(self, meta: MetaConfig) -> float:
        if self.method.strength is not None:
            return self.method.strength
        if self.masking is not None:
            network = self.task.network
            masks, _ = self.masking.masks(self.task, self.tensors, self.budget, self.plan)
            return meta.strength(network.cost(self.plan, masks=masks).nonzero / network.cost().params)
        plan = self.pruner.plan(self.tensors, self.budget, self.rng.child("strength"))
        return meta.strength(self.pruner.share(plan))

    def _tuned(self, step: str, config: TrainConfig | None, loss_of: LossOf | None = None) -> None:
        """Judge a step; then, where asked for, fine-tune at the plan so far and judge again."""
        module = TracedModule(self.task.network, self.tensors, self.plan)
        self._judge(step, module, self.plan)
        if config is not None:
            folder = None if self.task.folder is None else self.task.folder / self.method.name / step.replace(" ", "_")
            train(
                module,
                self.data,
                config,
                rng=self.rng.child(step),
                loss=None if loss_of is None else loss_of(module),
                label=step,
                progress=self.task.progress,
                checkpoint_dir=folder,
                identity={"weights": tensors_digest(self.tensors), "plan": self.plan.to_dict()},
            )
            self._judge(f"fine-tuning after {step}", module, self.plan, calibrate=False)
        self.tensors = module.full_size(self.tensors)

    def _judge(
        self,
        step: str,
        module: TracedModule,
        plan: Plan | None = None,
        calibrate: bool = True,
        masks: Mapping[str, Tensor] | None = None,
    ) -> None:
        if calibrate and step != "start":
            module.calibrate(self.calibration)
        now, network = time.perf_counter(), self.task.network
        full, cost = network.cost(), network.cost(plan or Plan(), masks=masks)
        shares = {m: cost[m] / full[m] for m in ("macs", "params", "nonzero")}
        metric = metric_of(module, self.judged, self.data.require_objective())
        self.details["steps"].append({"step": step, "metric": metric, **shares, "seconds": now - self._began})
        self._began = time.perf_counter()


def _warn_of_gaps(network_graph: NetworkGraph, params: float) -> None:
    """A rewrite of a part of the network is worth knowing of."""
    left = sum(network_graph.uncovered.values()) / params
    if left > _MUCH:
        names = sorted(network_graph.uncovered, key=lambda n: -network_graph.uncovered[n])
        warnings.warn(
            f"the graph does not hold {left:.0%} of the parameters ({', '.join(names[:3])}): the rewrite leaves these "
            "as they are. `metaprune graph` lists all",
            UserWarning,
            stacklevel=5,
        )
    if network_graph.breaks:
        warnings.warn(
            f"no rule of the graph follows the channels that are read by {', '.join(network_graph.breaks[:3])}: the "
            "rewrite does not know what comes before",
            UserWarning,
            stacklevel=5,
        )


def _moved(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, float]:
    """How far every tensor went, relative to its norm."""
    change_by_name = {}
    for name, old in before.items():
        if old.is_floating_point() and (change := float((after[name] - old).norm())):
            change_by_name[name] = round(change / max(float(old.norm()), 1e-12), 6)
    return change_by_name
