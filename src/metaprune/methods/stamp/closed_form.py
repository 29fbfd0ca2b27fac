"""A data set's own network without a gradient step on weights: channels, weights and head from one look at its samples.

Channels: per-sample Taylor on the target. Weights: least squares against the dense network on the target's samples.
Head: ridge regression of the classes on the features, before the choice and after the cut.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from metaprune.calibration.batches import HELD_OUT, calibration_batches
from metaprune.calibration.compensate import compensate
from metaprune.core.rng import Rng
from metaprune.data import Data
from metaprune.methods.stamp.reader import Head, by_sample
from metaprune.network import Network
from metaprune.objective.batch import call_arguments
from metaprune.protocol.method import PruneTask
from metaprune.protocol.registry import create_method
from metaprune.values import Budget, Plan

SAMPLES = 1024
RIDGES = (1e-3, 1e-2, 1e-1, 1.0)  # of the features' mean square
SCALES = (1.0, 2.0, 4.0, 8.0, 16.0)  # of the logits: regression on 0 and 1 leaves them small
ABSENT = -20.0  # bias of a class that the data do not have


def from_statistics(task: PruneTask, budget: Budget, rng: Rng) -> tuple[Plan, dict[str, Tensor]]:
    """Choose what stays, solve for its weights, and give the network a head: plan, and full-size tensors."""
    data = task.require_data("stamp")
    network = with_head(task.network, data, rng.child("head"))
    scored = dataclasses.replace(task, network=network)
    plan = task.allocator(budget).by_ratio(own_scores(scored, rng))
    return plan, solved(network, plan, data, rng)


def own_scores(task: PruneTask, rng: Rng) -> list[np.ndarray]:
    """Rank channels by what the data's own loss says of them: per-sample Taylor, [width] per group."""
    return create_method("taylor", {}).scores(task, Plan(), rng.child("taylor"))  # type: ignore[attr-defined]


def solved(network: Network, plan: Plan, data: Data, rng: Rng) -> dict[str, Tensor]:
    """Solve the kept weights on the data, and the head anew on what the cut network makes of them; full size."""
    batches = calibration_batches(network, data.train, SAMPLES, rng.child("samples"))
    new = compensate(network, plan, batches, kind="least-squares", rng=rng.child("solve")).weights
    tensors = {n: t.detach() for n, t in network.tensors.items()} | dict(new)
    return tensors | head_of(network.with_tensors(tensors), plan, data, rng.child("head"))


def with_head(network: Network, data: Data, rng: Rng) -> Network:
    """Return the network with a head for the classes of `data`, solved on its own features."""
    tensors = {n: t.detach() for n, t in network.tensors.items()}
    return network.with_tensors(tensors | head_of(network, Plan(), data, rng))


@torch.no_grad()
def head_of(network: Network, plan: Plan, data: Data, rng: Rng) -> dict[str, Tensor]:
    """Solve the last layer by ridge regression on the features of the network at `plan`.

    Ridge and scale of the logits are those of least cross-entropy on every fourth sample. Classes beyond those of
    `data` get a logit that never wins.

    Returns:
        weight [classes, features], zero where a feature is dropped, and bias, by their names.
    """
    head = Head.of(network)
    x, y = _features(network, plan, head, data, rng)
    judged = torch.arange(len(x)) % HELD_OUT == 0
    rows, count = network.tensors[head.weight].shape[0], int(y.max()) + 1
    _, ridge, scale = min(_judged(x, y, judged, count, head.bias is not None))
    weight, bias = _solve(x, y, count, ridge, head.bias is not None)
    label = network.labelled.parameters[head.weight][1]
    kept = np.arange(x.shape[1]) if label is None or not plan.keep else network.survivors(plan).index(label)
    full = torch.zeros(rows, head.features, dtype=torch.float64)
    full[:count, torch.as_tensor(kept)] = scale * weight.T
    like = network.tensors[head.weight]
    new = {head.weight: full.to(like)}
    if head.bias is not None:
        offset = torch.full((rows,), ABSENT, dtype=torch.float64)
        offset[:count] = scale * bias
        new[head.bias] = offset.to(like)
    return new


def _judged(x: Tensor, y: Tensor, judged: Tensor, count: int, has_bias: bool) -> Iterator[tuple[float, float, float]]:
    """(cross-entropy on the judged samples, ridge, scale) of everything tried."""
    for ridge in RIDGES:
        weight, bias = _solve(x[~judged], y[~judged], count, ridge, has_bias)
        logits = x[judged] @ weight + bias
        for scale in SCALES:
            yield float(functional.cross_entropy(scale * logits, y[judged])), ridge, scale


def _solve(x: Tensor, y: Tensor, count: int, ridge: float, has_bias: bool) -> tuple[Tensor, Tensor]:
    """Weight [features, classes] and bias of the ridge regression of classes on features; both centred for a bias."""
    target = functional.one_hot(y, count).double()
    centre, mean = x.mean(dim=0) * has_bias, target.mean(dim=0) * has_bias
    z = x - centre
    gram = z.T @ z / len(z)
    gram += ridge * gram.diagonal().mean().clamp(min=1e-12) * torch.eye(len(gram), dtype=gram.dtype)
    weight = torch.linalg.solve(gram, z.T @ (target - mean) / len(z))
    return weight, mean - centre @ weight


def _features(network: Network, plan: Plan, head: Head, data: Data, rng: Rng) -> tuple[Tensor, Tensor]:
    """What enters the head, float64 [N, features], and the labels, of up to `SAMPLES` training samples."""
    features: list[Tensor] = []
    labels: list[Tensor] = []

    def call(step: Any, args: list, kwargs: dict) -> Any:
        if step.node.name == head.node:
            features.append(args[0].double().cpu())
        return step.target(*args, **kwargs)

    at = network.at(plan)
    stream = data.train.batches(64, device=network.device, rng=rng)
    for inputs, target in itertools.islice(stream, -(-SAMPLES // 64)):
        args, kwargs = call_arguments(inputs)
        at.execute(args, kwargs, call=call)
        labels.append(target.cpu())
    return by_sample(torch.cat(features)), torch.cat(labels)
