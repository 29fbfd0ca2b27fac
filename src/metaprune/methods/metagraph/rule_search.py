"""Evolution of a scoring rule on the loss after the cut: no value of a single channel is a target.

A rule is judged by what it is for. On a network of the zoo it ranks channels, the ranking is cut to a share of the
MACs, weights behind the cut are solved anew (least squares, closed form), and the divergence of the outputs counts.
Evolution strategies with antithetic pairs: Salimans et al., Evolution Strategies as a Scalable Alternative to
Reinforcement Learning, arXiv 1703.03864, 2017, section 2; both of a pair see the same networks and shares.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from metaprune.calibration.closed_form import OutputLoss
from metaprune.calibration.sensitivity import output_loss
from metaprune.core.rng import Rng
from metaprune.methods.metagraph.channel_features import Features, channel_features
from metaprune.methods.metagraph.config import ScoreConfig
from metaprune.methods.metagraph.pruner import least_macs
from metaprune.methods.metagraph.score_rule import Rule
from metaprune.protocol.method import PruneTask
from metaprune.values import Budget

FLOOR = 0.01  # divergence that counts as none, nearly
MOMENTUM = 0.7
PLAIN = [
    Rule.of(level_of_taylor=level, **{name: 1.0})
    for name in ("taylor", "taylor_about_mean", "elimination")
    for level in (0.0, 0.5)
]
"""Where a search may begin: one criterion, all groups alike or by their level."""


@dataclass(frozen=True)
class Subject:
    """A network that rules are judged on, with what does not depend on the rule."""

    task: PruneTask
    features: Features
    loss: OutputLoss
    full_macs: float
    least_macs: float

    @classmethod
    def of(cls, task: PruneTask, rng: Rng) -> Subject:
        """Calibrate a trained network.

        Raises:
            DataError: too few training samples. WeightsError: activations that are not finite.
        """
        features = channel_features(task, rng.child("features"))
        loss = output_loss(task.network, task.require_data("metagraph"), rng.child("loss"))
        return cls(task, features, loss, float(task.network.cost().macs), least_macs(task))

    def log_loss(self, rule: Rule, share: float) -> float:
        """Cut to a share of the MACs; the logarithm of what the outputs then lose."""
        budget = Budget(macs=max(share * self.full_macs, self.least_macs))
        plan = self.task.allocator(budget).by_scores(rule.scores(self.features))
        return float(np.log(self.loss(plan) + FLOOR))


@dataclass(frozen=True)
class Found:
    """What a search gives.

    Attributes:
        rule: the best on the networks that choose.
        start: the plain criterion that it began at.
        history: a row per judgement: the step, and the mean log loss.
    """

    rule: Rule
    start: Rule
    history: Sequence[dict[str, Any]]


def search_rule(
    learned_from: Sequence[Subject],
    judged_on: Sequence[Subject],
    config: ScoreConfig,
    rng: Rng,
    say: Callable[[str], None] = lambda _: None,
) -> Found:
    """Search from the best plain criterion on; only the direction of the weights matters, so their norm stays 1."""
    losses = [judged(rule, judged_on, config.shares) for rule in PLAIN]
    start, lowest = PLAIN[int(np.argmin(losses))], min(losses)
    best, history = start, [{"step": 0, "log_loss": lowest}]
    weights, velocity = _unit(start.weights), np.zeros_like(start.weights)
    say(f"plain: log loss {lowest:.4f}")
    for step in range(config.steps):
        gradient = _gradient(weights, learned_from, config, rng.child("step", step))
        velocity = MOMENTUM * velocity + (1 - MOMENTUM) * gradient
        rate = config.rate * (1 - step / config.steps)
        weights = _unit(weights - rate * velocity / max(float(np.linalg.norm(velocity)), 1e-12))
        if (step + 1) % config.judge_every == 0 or step + 1 == config.steps:
            loss = judged(Rule(weights), judged_on, config.shares)
            history.append({"step": step + 1, "log_loss": loss})
            say(f"step {step + 1}: log loss {loss:.4f}")
            if loss < lowest:
                best, lowest = Rule(weights), loss
    return Found(best, start, history)


def judged(rule: Rule, subjects: Sequence[Subject], shares: Sequence[float]) -> float:
    """Mean over networks and shares of the logarithm of the loss."""
    return float(np.mean([subject.log_loss(rule, share) for subject in subjects for share in shares]))


def _gradient(weights: np.ndarray, subjects: Sequence[Subject], config: ScoreConfig, rng: Rng) -> np.ndarray:
    """Mean over antithetic pairs of the difference of their losses, times the direction they differ in."""
    draw, total = rng.numpy(), np.zeros_like(weights)
    for _ in range(config.pairs):
        direction = draw.standard_normal(len(weights))
        chosen = draw.choice(len(subjects), min(config.networks, len(subjects)), replace=False)
        shares = draw.uniform(min(config.shares), max(config.shares), len(chosen))
        for number, share in zip(chosen, shares, strict=True):
            more, less = (
                subjects[number].log_loss(Rule(_unit(weights + sign * config.sigma * direction)), share)
                for sign in (1, -1)
            )
            total += (more - less) * direction
    return total


def _unit(weights: np.ndarray) -> np.ndarray:
    return weights / np.linalg.norm(weights)
