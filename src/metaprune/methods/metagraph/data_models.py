"""Data models: networks for the metanetwork to learn on, each pruned a little in its own way and fine-tuned."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from metaprune.files import write_json, write_tensors
from metaprune.methods.base import Task
from metaprune.methods.metagraph.meta import DataModel
from metaprune.methods.metagraph.module import Structure
from metaprune.methods.metagraph.wire import wire
from metaprune.methods.random import Random
from metaprune.methods.scores import Ranking
from metaprune.network import Network
from metaprune.recover.scratch import reinitialise
from metaprune.rng import Rng
from metaprune.train.config import TrainConfig
from metaprune.train.loop import train
from metaprune.values import Budget, Constraints, Plan


@dataclass(frozen=True, kw_only=True)
class DataModelConfig:
    """The paper: 10 networks trained from scratch, pruned to a speed-up of 1.32 (ResNet-56) by the criterion."""

    count: int = 4
    """Data models per task, the last of which judges."""
    start: str = "trained"
    """trained: every one starts from the task's own weights; scratch: from a new initialisation (the paper's)."""
    shares: tuple[float, float] = (0.7, 1.0)
    """Least and most of the MACs that a data model keeps; odd ones are pruned by the criterion, even ones at random."""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=1, lr=0.01))
    """Training after the light pruning (and before it, with start = "scratch")."""


def data_models(
    tasks: Sequence[Task], config: DataModelConfig, criterion: Ranking, rng: Rng, progress: bool
) -> list[DataModel]:
    """`config.count` per task, in turns over the tasks, so that the last ones are of different tasks.

    Kept in the task's folder: killed and started again, those that are whole are taken as they are.
    """
    wirings = [wire(task.network) for task in tasks]
    found = []
    for number in range(config.count):
        for t, task in enumerate(tasks):
            place = None if task.folder is None else task.folder / "checkpoints" / "data_models" / f"{t}-{number}"
            tensors, plan = _made(task, config, criterion, rng.child(t, number), number, place, progress)
            found.append(DataModel(task, wirings[t], tensors, plan))
    return found


def _made(
    task: Task, config: DataModelConfig, criterion: Ranking, rng: Rng, number: int, place: Path | None, progress: bool
) -> tuple[Mapping[str, Tensor], Plan]:  # fmt: skip
    device = task.network.program.device
    if place is not None and (place / "plan.json").is_file():
        plan = Plan.from_dict(json.loads((place / "plan.json").read_text()))
        return {n: t.to(device) for n, t in load_file(place / "tensors.safetensors").items()}, plan
    data = task.require_data("metagraph")
    tensors: Mapping[str, Tensor] = {n: t.detach() for n, t in task.network.tensors.items()}
    if config.start == "scratch":
        tensors = _trained(task.network, _fresh(task.network, rng.child("start")), Plan(), data, config, rng, progress)
    low, high = config.shares
    share = low + (high - low) * float(rng.child("share").numpy().uniform())
    plan = Plan()
    if share < 1:
        how = criterion if number % 2 else Random()
        here = dataclasses.replace(task, network=task.network.with_tensors(tensors), constraints=Constraints())
        plan = how.propose(here, Budget(macs=f"{100 * share}%"), rng.child("plan")).plan
    tensors = _trained(task.network, tensors, plan, data, config, rng.child("light"), progress)
    tensors = dropped_are_zero(task.network, tensors, plan)
    if place is not None:
        write_tensors(place / "tensors.safetensors", tensors)
        write_json(place / "plan.json", plan.to_dict())  # last: it marks the data model as whole
    return tensors, plan


def _fresh(network: Network, rng: Rng) -> Mapping[str, Tensor]:
    model = copy.deepcopy(network.model)
    reinitialise(model, rng)
    own = {**dict(model.named_buffers()), **dict(model.named_parameters())}
    return {n: own[n].detach() if n in own else t.detach() for n, t in network.tensors.items()}


def _trained(
    network: Network, tensors: Mapping[str, Tensor], plan: Plan, data: object, config: DataModelConfig, rng: Rng,
    progress: bool,
) -> dict[str, Tensor]:  # fmt: skip
    module = Structure(network, tensors, plan)
    train(module, data, config.train, rng=rng, progress=progress, label="data model")  # type: ignore[arg-type]
    return module.full_size(tensors)


def dropped_are_zero(network: Network, tensors: Mapping[str, Tensor], plan: Plan) -> dict[str, Tensor]:
    """Full-size tensors in which what the plan drops is zero (statistics and buffers stay)."""
    if not plan.keep:
        return dict(tensors)
    alive, found = network.survivors(plan), dict(tensors)
    for name, labels in network.labelled.parameters.items():
        if not isinstance(network.tensors[name], nn.Parameter):
            continue
        value = found[name].clone()
        for dim, label in enumerate(labels):
            if label is not None and alive.cut(label):
                gone = torch.from_numpy((~alive.rows(label)).nonzero()[0]).to(value.device)
                value.index_fill_(dim, gone, 0)
        found[name] = value
    return found
