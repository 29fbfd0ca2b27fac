"""Meta-training over episodes of reference data: Reptile or first-order MAML on the weights, Adam on the generator."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metaprune.core.rng import Rng
from metaprune.methods.gating.training import Price, StepResult, TrainableTensors, gradient_step, sgd
from metaprune.methods.stamp.config import HEAD_LR, MetaConfig
from metaprune.methods.stamp.episodes import Pool
from metaprune.methods.stamp.generator import BANK_SAMPLES, BANK_SETS
from metaprune.methods.stamp.learner import Learner
from metaprune.train.meta_loop import MetaHistory, MetaLoop
from metaprune.train.processes import ALONE, Processes


class MetaState(nn.Module):
    """What meta-training changes: the generator, the network's weights and buffers, the last episode's mask."""

    def __init__(
        self, generator: nn.Module, tensors: dict[str, Tensor], gates: int, heads: Sequence[dict[str, Tensor]] = ()
    ):
        super().__init__()
        self.generator = generator
        self._names = list(tensors)
        self._heads = [list(head) for head in heads]
        for number, head in enumerate(heads):
            for i, tensor in enumerate(head.values()):
                self.register_buffer(f"head{number}_{i}", tensor.detach().clone())
        for i, tensor in enumerate(tensors.values()):
            self.register_buffer(f"tensor{i}", tensor.detach().clone())
        self.register_buffer("last_mask", torch.ones(gates, dtype=torch.bool))

    def tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, f"tensor{i}") for i, name in enumerate(self._names)}

    def head(self, number: int) -> dict[str, Tensor]:
        """Return the head of reference data set `number`, one row for each of its classes."""
        return {name: getattr(self, f"head{number}_{i}") for i, name in enumerate(self._heads[number])}


def fill_bank(learner: Learner, pools: Sequence[Pool], config: MetaConfig, rng: Rng) -> None:
    """Reference sets by which all later sets are standardised: of all domains in turns, random classes."""
    views, labels = [], []
    for number in range(BANK_SETS):
        draw, pool = rng.child(number), pools[number % len(pools)]
        classes, look = pool.choose(config.ways, draw.child("classes")), config.look(draw)
        sample = pool.draw(classes, BANK_SAMPLES, draw.child("sample"), augment=config.augment, look=look)
        views.append(learner.reader(sample.args, sample.kwargs))
        labels.append(sample.target)
    learner.generator.remember(views, labels)


def meta_train(
    learner: Learner,
    state: MetaState,
    pools: Sequence[Pool],
    config: MetaConfig,
    rng: Rng,
    *,
    price: Price,
    folder: Path | None,
    identity: dict[str, Any],
    progress: bool,
    processes: Processes = ALONE,
) -> MetaHistory:
    """Train `state` in place; continues from `folder` after a kill, to the same numbers.

    Every episode aims at a share of the full cost between the generator's two, evenly in its logarithm.

    Several processes walk the same episodes with the same draws, each on its share of every batch, and hold the same
    tensors after every step but for BatchNorm statistics, which become the main process's at the end of an episode.
    """
    adam = torch.optim.Adam(learner.generator.parameters(), lr=config.generator_lr)
    loop = MetaLoop(
        label="episodes",
        state=state,
        optimizer=adam,
        steps=config.episodes,
        save_every=config.save_every,
        folder=folder,
        identity=identity,
        progress=progress,
        processes=processes,
    )
    history = loop.resume()
    processes.copy_from_main([*state.parameters(), *state.buffers()])  # a GPU may round what was read otherwise

    def episode(number: int) -> dict[str, Any]:
        ramp = min(1.0, (number + 1) / max(1.0, config.ramp * config.episodes))
        draw = rng.child("episode", number)
        asked = math.exp(draw.child("share").numpy().uniform(*np.log(learner.generator.shares)))
        ramped = dataclasses.replace(price, strength=ramp * price.strength, target=asked)
        return _episode(learner, state, pools, config, adam, draw, number, ramped, processes)

    return loop.run(history, episode)


def _episode(
    learner: Learner,
    state: MetaState,
    pools: Sequence[Pool],
    config: MetaConfig,
    adam: Any,
    rng: Rng,
    number: int,
    price: Price,
    processes: Processes,
) -> dict[str, Any]:
    domain = int(rng.child("domain").numpy().integers(len(pools)))
    pool, kept_head = pools[domain], state.head(domain) if config.head == "kept" else {}
    classes, look = pool.choose(config.ways, rng.child("classes")), config.look(rng)
    weights = learner.weights(state.tensors(), len(classes))
    rows = np.searchsorted(pool.classes, classes)
    for name, tensor in kept_head.items():
        weights.head[name].data.copy_(tensor[rows])
    optimiser = sgd(weights, config.lr, HEAD_LR)
    results: list[StepResult] = []
    for step in range(config.inner_steps):
        inner = rng.child("step", step)
        sample = pool.draw(classes, config.batch_size, inner.child("sample"), augment=config.augment, look=look)
        gates = inner.child("gates")
        results.append(gradient_step(learner, weights, (optimiser, adam), sample, gates, price, processes))
    for name, tensor in kept_head.items():
        tensor[rows] = weights.head[name].detach()
    size = config.outer_lr * (1 - number / config.episodes)
    if config.outer == "reptile":
        processes.copy_from_main(weights.buffers.values())
        _reptile(state, weights, size)
    else:
        sample = pool.draw(classes, config.batch_size, rng.child("outer"), augment=config.augment, look=look)
        size *= config.lr * config.inner_steps
        _fomaml(learner, state, weights, sample, rng.child("outer gates"), size, price, processes)
    sample = pool.draw(classes, config.batch_size, rng.child("mask"), augment=config.augment, look=look)
    mask = np.concatenate(learner.probabilities([sample], middle(learner.generator.shares))) > 0.5
    alike = jaccard(mask, state.last_mask.cpu().numpy())  # type: ignore[union-attr,operator]
    state.last_mask.copy_(torch.from_numpy(mask))  # type: ignore[operator,union-attr]
    last = results[-1]
    return {
        "episode": number + 1,
        "data": pool.name,
        "ways": len(classes),
        "loss": last.loss,
        "accuracy": last.metric,
        "kept_cost": last.kept_cost,
        "asked": price.target,
        "kept_channels": float(mask.mean()),
        "jaccard_with_previous": alike,
    }


def _reptile(state: MetaState, weights: TrainableTensors, size: float) -> None:
    trained = weights.tensors()
    with torch.no_grad():
        for name, tensor in state.tensors().items():
            if tensor.is_floating_point():
                tensor.lerp_(trained[name].detach(), size)


def _fomaml(
    learner: Learner,
    state: MetaState,
    weights: TrainableTensors,
    sample: Any,
    rng: Rng,
    size: float,
    price: Price,
    processes: Processes,
) -> None:
    """The gradient at the end of the episode, on other samples, applied to the weights it started from."""
    with rng.torch_global():
        loss, _ = learner.loss(weights, sample, price, processes)
    names = list(weights.leaves)
    gradients = torch.autograd.grad(loss, [weights.leaves[n] for n in names], allow_unused=True)
    processes.average([g for g in gradients if g is not None])
    processes.copy_from_main(weights.buffers.values())
    tensors = state.tensors()
    with torch.no_grad():
        for name, gradient in zip(names, gradients, strict=True):
            if gradient is not None:
                tensors[name].sub_(gradient, alpha=size)
        for name, buffer in weights.buffers.items():
            if buffer.is_floating_point():
                tensors[name].lerp_(buffer, 0.1)


def conditioning(
    learner: Learner, pools: Sequence[Pool], config: MetaConfig, rng: Rng, tasks: int = 8
) -> dict[str, Any]:
    """Measure how alike the masks of two samples of one task are, and those of different tasks: Jaccard at equal size.

    Equal size: each mask is the half of all gates with the highest probabilities. Data are shown as they are: looks
    would pass for data sets.
    """
    masks: list[list[np.ndarray]] = []
    for number in range(max(tasks, len(pools))):
        draw, pool = rng.child(number), pools[number % len(pools)]
        classes = pool.choose(config.ways, draw.child("classes"))
        twins = []
        for twin in range(2):
            sample = pool.draw(classes, config.batch_size, draw.child("sample", twin), augment=config.augment)
            flat = np.concatenate(learner.probabilities([sample], middle(learner.generator.shares)))
            twins.append(np.argsort(np.argsort(-flat, kind="stable")) < len(flat) // 2)
        masks.append(twins)
    same = float(np.mean([jaccard(*pair) for pair in masks]))
    n = len(masks)
    other = float(np.mean([jaccard(masks[i][0], masks[j][1]) for i in range(n) for j in range(n) if i != j]))
    return {"jaccard_same": same, "jaccard_different": other, "margin": same - other, "tasks": n}


def middle(shares: tuple[float, float]) -> float:
    """Average two shares in their logarithms."""
    return math.sqrt(shares[0] * shares[1])


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """|a and b| / |a or b| of two boolean masks; 1 for two empty ones."""
    union = int((a | b).sum())
    return 1.0 if union == 0 else int((a & b).sum()) / union
