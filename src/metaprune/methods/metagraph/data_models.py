"""Data models: networks for the metanetwork to learn on, each pruned a little in its own way and fine-tuned."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metaprune.core.files import tensors_digest, write_sealed, write_tensors
from metaprune.core.read import read_json, read_tensors, require_seal, understood
from metaprune.core.rng import Rng
from metaprune.core.side_effects import copy_model
from metaprune.methods.criteria.random import Random
from metaprune.methods.criteria.scores import ScoreMethod
from metaprune.methods.metagraph.build_graph import build_network_graph
from metaprune.methods.metagraph.config import DataModelConfig
from metaprune.methods.metagraph.meta import DataModel
from metaprune.methods.metagraph.network_graph import NetworkGraph
from metaprune.methods.metagraph.pruner import least_macs
from metaprune.network import Network
from metaprune.protocol.artifact import plain
from metaprune.protocol.method import Method, PruneTask
from metaprune.recover.scratch import reinitialise
from metaprune.train.config import TrainConfig
from metaprune.train.loop import train
from metaprune.train.traced_module import TracedModule
from metaprune.values import Budget, Constraints, Plan


def data_models(
    tasks: Sequence[PruneTask], config: DataModelConfig, criterion: ScoreMethod, rng: Rng, progress: bool
) -> list[DataModel]:
    """Make `config.count` models per task, in turns over the tasks, so that the last ones are of different tasks.

    Kept in the task's folder: killed and started again, those that are whole, and of the same weights, data, options
    and seed, are taken as they are.
    """
    network_graphs = [build_network_graph(task.network) for task in tasks]
    models = []
    for number in range(config.count):
        for t, task in enumerate(tasks):
            folder = None if task.folder is None else task.folder / "checkpoints" / "data_models" / f"{t}-{number}"
            models.append(
                _made(task, network_graphs[t], config, criterion, rng.child(t, number), number, folder, progress)
            )
    return models


def _made(
    task: PruneTask,
    network_graph: NetworkGraph,
    config: DataModelConfig,
    criterion: ScoreMethod,
    rng: Rng,
    number: int,
    folder: Path | None,
    progress: bool,
) -> DataModel:
    began = time.perf_counter()
    identity = _identity(task, config, criterion, rng, number)
    whole = _restored(task, network_graph, identity, folder)
    if whole is not None:
        return whole
    tensors = {n: t.detach() for n, t in task.network.tensors.items()}

    def trained(given: Mapping[str, Tensor], plan: Plan, name: str, method: TrainConfig) -> dict[str, Tensor]:
        module = TracedModule(task.network, given, plan)
        train(
            module,
            task.require_data("metagraph"),
            method,
            rng=rng.child(name),
            progress=progress,
            label=f"data model {number + 1}/{config.count}, {name}",
            checkpoint_dir=None if folder is None else folder / name,
            identity={**identity, "plan": plan.to_dict()},
        )
        return module.full_size(given)

    if config.scratch is not None:
        tensors = trained(_fresh(task.network, rng.child("start")), Plan(), "scratch", config.scratch)
    plan = _lightly_pruned(task, tensors, config, criterion if number % 2 else Random(), rng)
    tensors = dropped_are_zero(task.network, trained(tensors, plan, "light", config.train), plan)
    seconds = time.perf_counter() - began
    if folder is not None:
        write_tensors(folder / "tensors.safetensors", tensors)  # the other file is last: it marks the model as whole
        digest = {"tensors_digest": tensors_digest(tensors)}
        described = {"identity": identity, "plan": plan.to_dict(), "seconds": seconds, **digest}
        write_sealed(folder / "plan.json", described)
        for name in ("scratch", "light"):
            shutil.rmtree(folder / name, ignore_errors=True)
    return DataModel(task, network_graph, tensors, plan, seconds)


def _identity(
    task: PruneTask, config: DataModelConfig, criterion: ScoreMethod, rng: Rng, number: int
) -> dict[str, Any]:
    """What a model that was kept has to share with the one that is asked for."""
    return plain(
        {
            "options": plain(config),
            "criterion": repr(criterion),
            "seed": [rng.seed, *rng.path],
            "number": number,
            "weights": tensors_digest(task.network.tensors),
            "data": task.require_data("metagraph").digest,
            "space": task.network.space.digest(),
        }
    )


def _restored(
    task: PruneTask, network_graph: NetworkGraph, identity: dict[str, Any], folder: Path | None
) -> DataModel | None:
    """The same model as an earlier start left it, if it is whole."""
    if folder is None or not (folder / "plan.json").is_file():
        return None
    path, remedy = folder / "plan.json", f"delete {folder} to train it again"
    saved = require_seal(path, read_json(path, remedy=remedy), remedy)
    if saved.get("identity") != identity:
        return None
    read = read_tensors(folder / "tensors.safetensors", remedy=remedy, digest=saved.get("tensors_digest"))
    with understood(f"{path}", remedy):
        tensors = {n: t.to(task.network.device) for n, t in read.items()}
        return DataModel(task, network_graph, tensors, Plan.from_dict(saved["plan"]), float(saved["seconds"]))


def _lightly_pruned(
    task: PruneTask, tensors: Mapping[str, Tensor], config: DataModelConfig, method: Method, rng: Rng
) -> Plan:
    """A plan at a share of the MACs that is drawn from `config.shares`."""
    low, high = config.shares
    full = float(task.network.cost().macs)
    macs = full * (low + (high - low) * float(rng.child("share").numpy().uniform()))
    if macs >= full:
        return Plan()
    here = dataclasses.replace(task, network=task.network.with_tensors(tensors), constraints=Constraints())
    return method.propose(here, Budget(macs=max(macs, least_macs(here))), rng.child("plan")).plan


def _fresh(network: Network, rng: Rng) -> Mapping[str, Tensor]:
    model = copy_model(network.model)
    reinitialise(model, rng)
    fresh_tensors = {**dict(model.named_buffers()), **dict(model.named_parameters())}
    return {n: fresh_tensors[n].detach() if n in fresh_tensors else t.detach() for n, t in network.tensors.items()}


def dropped_are_zero(network: Network, tensors: Mapping[str, Tensor], plan: Plan) -> dict[str, Tensor]:
    """Full-size tensors in which what the plan drops is zero (statistics and buffers stay)."""
    if not plan.keep:
        return dict(tensors)
    alive, zeroed_tensors = network.survivors(plan), dict(tensors)
    for name, labels in network.labelled.parameters.items():
        if not isinstance(network.tensors[name], nn.Parameter):
            continue
        value = zeroed_tensors[name].clone()
        for dim, label in enumerate(labels):
            if label is not None and alive.cut(label):
                gone = torch.from_numpy((~alive.rows(label)).nonzero()[0]).to(value.device)
                value.index_fill_(dim, gone, 0)
        zeroed_tensors[name] = value
    return zeroed_tensors
