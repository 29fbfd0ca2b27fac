"""Meta-training over episodes of reference data: Reptile or first-order MAML on the weights, Adam on the generator."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from metaprune.methods.stamp.episodes import Pool
from metaprune.methods.stamp.learner import Learner, Price, StepResult, Weights, gradient_step, sgd
from metaprune.rng import Rng
from metaprune.train.checkpoint import load_checkpoint, restore, save_checkpoint
from metaprune.train.progress import TrainProgress

Outer = Literal["reptile", "fomaml"]


@dataclass(frozen=True, kw_only=True)
class MetaConfig:
    """Meta-training. Not read in the paper: the steps are Reptile's (Nichol et al. 2018), the figures are ours."""

    episodes: int = 300
    """Episodes: a random data set, random classes of it, a new head."""
    ways: tuple[int, int] = (5, 20)
    """Least and most classes of an episode."""
    inner_steps: int = 8
    """Gradient steps of an episode."""
    batch_size: int = 64
    """Samples of a step; the set that the mask is generated from is the same batch."""
    lr: float = 0.05
    """Learning rate of the weights (SGD)."""
    head_lr: float = 0.3
    """Learning rate of the head (SGD)."""
    generator_lr: float = 3e-3
    """Learning rate of the mask generator (Adam)."""
    head: Literal["zero", "kept"] = "kept"
    """kept: an episode takes up the head rows of its classes where the last one left them; zero: a new head in each."""
    outer: Outer = "reptile"
    """reptile: the weights move towards those at the end of an episode; fomaml: against the gradient taken there."""
    outer_lr: float = 1.0
    """Step of the weights towards an episode's; falls to zero along a line."""
    ramp: float = 0.25
    """Share of the episodes in which the strength of the cost rises from zero."""
    save_every: int = 25
    """Episodes between checkpoints."""
    augment: bool = True
    """Augment the samples as the data source defines it, also those that masks are read from: the generator would take
    whole images for another data set than shifted ones."""


@dataclass
class Rows:
    """Figures of every episode, JSON-able; what `train.checkpoint` saves as a history."""

    rows: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}


class MetaState(nn.Module):
    """What meta-training changes: the generator, the network's weights and buffers, the last episode's mask."""

    def __init__(
        self, generator: nn.Module, tensors: dict[str, Tensor], channels: int, heads: Sequence[dict[str, Tensor]] = ()
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
        self.register_buffer("last_mask", torch.ones(channels, dtype=torch.bool))

    def tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, f"tensor{i}") for i, name in enumerate(self._names)}

    def head(self, number: int) -> dict[str, Tensor]:
        """Of the reference data set `number`, one row for each of its classes."""
        return {name: getattr(self, f"head{number}_{i}") for i, name in enumerate(self._heads[number])}


def meta_train(
    learner: Learner, state: MetaState, pools: Sequence[Pool], config: MetaConfig, rng: Rng, *,
    price: Price, folder: Path | None, identity: dict[str, Any], progress: bool,
) -> Rows:  # fmt: skip
    """Train `state` in place; continues from `folder` after a kill, to the same numbers."""
    adam = torch.optim.Adam(learner.generator.parameters(), lr=config.generator_lr)
    rows = Rows()
    if folder is not None and (checkpoint := load_checkpoint(folder, identity)) is not None:
        restore(checkpoint, model=state, optimizer=adam)
        rows.rows = list(checkpoint.numbers["history"]["rows"])
    done = len(rows.rows)
    bar = TrainProgress("episodes", total_steps=config.episodes, done_steps=done, show=progress)
    with bar:
        for number in range(done, config.episodes):
            ramp = min(1.0, (number + 1) / max(1.0, config.ramp * config.episodes))
            ramped = dataclasses.replace(price, strength=ramp * price.strength)
            row = _episode(learner, state, pools, config, adam, rng.child("episode", number), number, ramped)
            rows.rows.append(row)
            bar.step(0.0)
            last = number + 1 == config.episodes
            if folder is not None and (last or (number + 1) % config.save_every == 0):
                save_checkpoint(
                    folder, model=state, optimizer=adam, scaler=None, history=rows, identity=identity  # type: ignore[arg-type]
                )  # fmt: skip
    return rows


def _episode(
    learner: Learner, state: MetaState, pools: Sequence[Pool], config: MetaConfig, adam: Any, rng: Rng, number: int,
    price: Price,
) -> dict[str, Any]:  # fmt: skip
    domain = int(rng.child("domain").numpy().integers(len(pools)))
    pool, kept = pools[domain], state.head(domain) if config.head == "kept" else {}
    classes = pool.choose(config.ways, rng.child("classes"))
    weights = learner.weights(state.tensors(), len(classes))
    rows = np.searchsorted(pool.classes, classes)
    for name, tensor in kept.items():
        weights.head[name].data.copy_(tensor[rows])
    optimiser = sgd(weights, config.lr, config.head_lr)
    results: list[StepResult] = []
    for step in range(config.inner_steps):
        inner = rng.child("step", step)
        sample = pool.draw(classes, config.batch_size, inner.child("sample"), augment=config.augment)
        results.append(gradient_step(learner, weights, (optimiser, adam), sample, inner.child("gates"), price))
    for name, tensor in kept.items():
        tensor[rows] = weights.head[name].detach()
    size = config.outer_lr * (1 - number / config.episodes)
    if config.outer == "reptile":
        _reptile(state, weights, size)
    else:
        sample = pool.draw(classes, config.batch_size, rng.child("outer"), augment=config.augment)
        size *= config.lr * config.inner_steps
        _fomaml(learner, state, weights, sample, rng.child("outer gates"), size, price)
    sample = pool.draw(classes, config.batch_size, rng.child("mask"), augment=config.augment)
    mask = torch.from_numpy(np.concatenate(learner.probabilities([sample])) > 0.5).to(state.last_mask.device)  # type: ignore[arg-type]
    alike = jaccard(mask.cpu().numpy(), state.last_mask.cpu().numpy())  # type: ignore[union-attr]
    state.last_mask.copy_(mask)  # type: ignore[operator,union-attr]
    last = results[-1]
    return {
        "episode": number + 1, "data": pool.name, "ways": len(classes), "loss": last.loss, "accuracy": last.accuracy,
        "kept_cost": last.kept_cost, "kept_channels": float(mask.float().mean()), "jaccard_with_previous": alike,
    }  # fmt: skip


def _reptile(state: MetaState, weights: Weights, size: float) -> None:
    trained = weights.tensors()
    with torch.no_grad():
        for name, tensor in state.tensors().items():
            if tensor.is_floating_point():
                tensor.lerp_(trained[name].detach(), size)


def _fomaml(
    learner: Learner, state: MetaState, weights: Weights, sample: Any, rng: Rng, size: float, price: Price
) -> None:
    """The gradient at the end of the episode, on other samples, applied to the weights it started from."""
    with rng.torch_global():
        loss, _ = learner.loss(weights, sample, price)
    names = list(weights.leaves)
    gradients = torch.autograd.grad(loss, [weights.leaves[n] for n in names], allow_unused=True)
    own = state.tensors()
    with torch.no_grad():
        for name, gradient in zip(names, gradients, strict=True):
            if gradient is not None:
                own[name].sub_(gradient, alpha=size)
        for name, buffer in weights.buffers.items():
            if buffer.is_floating_point():
                own[name].lerp_(buffer, 0.1)


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """|a and b| / |a or b| of two boolean masks; 1 for two empty ones."""
    union = int((a | b).sum())
    return 1.0 if union == 0 else int((a & b).sum()) / union
