"""`lr="auto"` of a recovery: what the ramp finds, and that it leaves nothing behind."""

import itertools

import pytest
import torch
from train_fakes import data, mlp, same, weights

from metaprune.core.rng import Rng
from metaprune.recover.config import RecoverConfig
from metaprune.recover.run import recover
from metaprune.train.config import TrainConfig
from metaprune.train.loop import NEW_WEIGHTS_LR, train
from metaprune.train.rate import FACTOR, LEAST, STEPS, fitting_rate


def descent(curvature):
    """Gradient descent on curvature * x^2 / 2 from 1."""
    point = [1.0]

    def update(rate):
        point[0] -= rate * curvature * point[0]
        return True

    return fitting_rate(update, lambda: curvature * point[0] ** 2 / 2)


def test_the_rate_follows_the_curvature():
    rates = [descent(2.0**power) for power in range(-2, 8, 3)]
    assert all(first == 8 * second for first, second in itertools.pairwise(rates))
    assert all(0.5 <= 2.0**power * rate <= 1 for power, rate in zip(range(-2, 8, 3), rates, strict=True))


def test_a_ramp_that_never_helps_ends_at_the_least_rate():
    assert fitting_rate(lambda rate: True, lambda: 1.0) == LEAST / 2
    assert fitting_rate(lambda rate: False, lambda: 1.0) == LEAST / 2
    losses = iter([1.0, 2.0])  # the second is too bad to go on
    assert fitting_rate(lambda rate: True, lambda: next(losses)) == LEAST / 2


def fit(model, lr, **options):
    config = RecoverConfig(train=TrainConfig(epochs=1, batch_size=16, lr=lr, schedule="constant", **options))
    return recover(model, None, data(), config, rng=Rng(0), device="cpu", progress=False).last.lr


@pytest.mark.parametrize("options", [{}, {"optimizer": "adamw"}, {"ema_decay": 0.9}])
def test_training_is_that_at_the_rate_that_was_found(options):
    auto, given = mlp(), mlp()
    with torch.random.fork_rng():
        rate = fit(auto, "auto", **options)
    assert LEAST / 2 < rate < LEAST * FACTOR**STEPS
    assert fit(given, rate, **options) == rate
    assert same(weights(auto), weights(given))


@pytest.mark.parametrize("optimizer", list(NEW_WEIGHTS_LR))
def test_new_weights_get_the_usual_rate(optimizer):
    config = TrainConfig(epochs=1, schedule="constant", optimizer=optimizer)
    history = train(mlp(), data(), config, rng=Rng(0), device="cpu", progress=False)
    assert history.last.lr == NEW_WEIGHTS_LR[optimizer]
