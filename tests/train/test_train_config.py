"""Options are refused with a reason, schedules are what they are on paper, histories survive JSON."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest

from metaprune.core.errors import ConfigError
from metaprune.train.config import TrainConfig
from metaprune.train.history import EpochRow, History
from metaprune.train.schedule import learning_rate, steps_per_epoch


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "adamv"}, "Did you mean 'adamw'"),
        ({"schedule": "cosin"}, "Did you mean 'cosine'"),
        ({"epochs": 0.0}, "epochs=0.0"),
        ({"epochs": float("nan")}, "epochs=nan"),
        ({"batch_size": 0}, "at least 1"),
        ({"batch_size": 2.5}, "whole number"),
        ({"lr": -1.0}, "lr=-1"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"max_grad_norm": 0.0}, "max_grad_norm"),
        ({"epochs": 1.0, "warmup_epochs": 2.0}, "shorten the warm-up"),
        ({"momentum": 0.0}, "nesterov"),
        ({"mixed_precision": "fp32"}, "mixed_precision"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**options)


def test_configs_are_read_without_torch():
    code = "import sys, metaprune.train.config, metaprune.recover.config; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_learning_rates_by_hand():
    def rate(step, schedule):
        config = TrainConfig(schedule=schedule)
        return learning_rate(step, 0.4, total_steps=12, warmup_steps=4, config=config)

    for schedule in ("cosine", "linear", "constant"):
        assert [rate(step, schedule) for step in range(4)] == pytest.approx([0.1, 0.2, 0.3, 0.4])
        assert rate(4, schedule) == pytest.approx(0.4)
    assert rate(8, "cosine") == pytest.approx(0.2)
    assert rate(6, "cosine") == pytest.approx(0.2 * (1 + math.cos(math.pi / 4)))
    assert rate(12, "cosine") == pytest.approx(0.0)
    assert rate(10, "linear") == pytest.approx(0.1)
    assert rate(11, "constant") == 0.4


@pytest.mark.parametrize(
    ("samples", "batch_size", "processes", "steps"),
    [(10, 5, 1, 2), (11, 5, 1, 2), (12, 5, 1, 3), (3, 128, 1, 1), (1, 128, 1, 0), (4, 1, 1, 4), (13, 10, 2, 1)],
)
def test_steps_drop_a_single_last_sample(samples, batch_size, processes, steps):
    assert steps_per_epoch(samples, batch_size, processes) == steps


def test_history_survives_json():
    row = EpochRow(
        epoch=1,
        train={"loss": 0.5, "accuracy": 0.25},
        val=None,
        lr=0.1,
        seconds=2.0,
        samples_per_s=64.0,
    )
    history = History([row])
    assert History.from_dict(json.loads(json.dumps(history.to_dict()))) == history
    assert history.last == row
    assert History().last is None
