"""Can a mask that reads the data gain anything? Asked of masks that nothing was learned for, before meta-training.

Every domain gets its own mask, those of the others, one of all pooled, magnitude's and a random one, all of the same
widths, solved by least squares with a head of the domain's own, and some steps of training. Where its own mask is no
better than a pooled one, a generator has nothing to learn but one good mask.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from metaprune.core.rng import Rng
from metaprune.data import Data
from metaprune.data.types import NO_SAMPLES
from metaprune.methods.stamp.closed_form import own_scores, solved, with_head
from metaprune.methods.stamp.reader import Head
from metaprune.network import Network
from metaprune.protocol.method import PruneTask
from metaprune.protocol.registry import create_method
from metaprune.surgery import cut
from metaprune.train.config import TrainConfig
from metaprune.train.evaluate import evaluate
from metaprune.train.loop import train
from metaprune.values import Budget, Plan

IMAGES, JUDGED, BATCH = 300, 500, 50  # of a domain: to choose, solve and train with; validation samples that judge
STEPS = (0, 20, 150)
TUNE = TrainConfig(batch_size=BATCH, lr=0.03, augment=False)
LEAST_GAIN = {"foreign": 0.05, "pooled": 0.03}  # accuracy at 20 steps, the least that a generator is worth
Scores = list[np.ndarray]


def measure(task: PruneTask, domains: Sequence[Data], share: float, metric: str, rng: Rng) -> dict[str, Any]:
    """Compare masks on every domain at `share` of the cost; validation accuracy by domain, mask and training steps.

    Returns:
        rows, the mean gain of own masks over foreign and pooled ones after 20 steps, `pays`, and a verdict in words.
    """
    rows_of_head = task.network.tensors[Head.of(task.network).weight].shape[0]
    data = {d.name: few(d, rows_of_head) for d in domains}
    budget = Budget.parse({metric: share * task.network.cost()[metric]})
    networks = {name: with_head(task.network, d, rng.child("head", name)) for name, d in data.items()}
    scores = masks_of(task, networks, data, rng)
    rows: dict[str, Any] = {}
    for name, d in data.items():
        rows[name] = {}
        for mask, ranking in scores.items():
            foreign = mask in data and mask != name
            steps = STEPS[:2] if foreign else STEPS
            plan = task.allocator(budget).by_ratio(ranking)
            label = "own" if mask == name else mask
            rows[name][label] = after_steps(networks[name], plan, d, steps, rng.child("train", name))
    return {"share": share, "rows": rows, **_verdict(rows, min(len(d.val) for d in data.values()))}


def few(data: Data, classes: int) -> Data:
    """Take a few samples of a domain to train with and to judge by, of the first `classes` classes."""
    draw, parts = Rng(0, ("headroom",)).numpy(), []
    for split, count in ((data.train, IMAGES), (data.val, JUDGED)):
        indexed: Any = split  # `Pool` has seen that it can be indexed
        chosen = np.flatnonzero(np.asarray(indexed.labels) < classes)
        parts.append(indexed.subset(draw.permutation(chosen)[:count]))
    return dataclasses.replace(data, train=parts[0], val=parts[1], test=None)


def masks_of(task: PruneTask, networks: Mapping[str, Network], data: Mapping[str, Data], rng: Rng) -> dict[str, Scores]:
    """Rank channels by every domain's own loss, by all domains', by magnitude, and at random; [width] per group."""
    scores: dict[str, Scores] = {
        name: own_scores(dataclasses.replace(task, network=networks[name], data=d, folder=None), rng.child(name))
        for name, d in data.items()
    }
    pooled = [np.mean(group, axis=0) for group in zip(*scores.values(), strict=True)]
    magnitude = create_method("magnitude", {"p": 1}).scores(task, Plan(), rng)  # type: ignore[attr-defined]
    draw = rng.child("random").numpy()
    chance = [draw.random(group.width) for group in task.network.space]
    return scores | {"pooled": pooled, "magnitude": magnitude, "random": chance}


def after_steps(network: Network, plan: Plan, data: Data, steps: Sequence[int], rng: Rng) -> dict[int, float]:
    """Validation accuracy of the solved cut after some numbers of training steps, each from its own start."""
    weights, found = solved(network, plan, data, rng.child("solve")), {}
    for count in steps:
        model = cut(network, plan, weights=weights, verify=False).model
        if count:
            config = dataclasses.replace(TUNE, epochs=count / math.ceil(len(data.train) / BATCH))
            train(model, dataclasses.replace(data, val=NO_SAMPLES), config, rng=rng, progress=False)
        found[count] = evaluate(model, data.val, objective=data.objective, batch_size=250)["accuracy"]
    return found


def _verdict(rows: Mapping[str, Any], judged: int) -> dict[str, Any]:
    """Mean gains of own masks after 20 steps, and what they mean."""
    at = STEPS[1]
    gains: dict[str, list[float]] = {"foreign": [], "pooled": []}
    for by in rows.values():
        others = [r[at] for mask, r in by.items() if mask in rows]
        gains["pooled"].append(by["own"][at] - by["pooled"][at])
        gains["foreign"].append(by["own"][at] - float(np.mean(others)))
    gain = {k: float(np.mean(v)) for k, v in gains.items()}
    noise = math.sqrt(0.5 / judged / len(rows))  # of a difference of two accuracies near a half, mean over domains
    pays = all(gain[k] >= max(least, 2 * noise) for k, least in LEAST_GAIN.items())
    said = f"after {at} steps a domain's own mask is {100 * gain['foreign']:+.1f} points from others' masks and "
    said += f"{100 * gain['pooled']:+.1f} from one of all domains"
    meaning = "a generator has something to learn" if pays else "a generator can gain little: try `adapt --steps 0`"
    return {"gain": gain, "noise": noise, "pays": pays, "verdict": f"{said}: {meaning}"}
