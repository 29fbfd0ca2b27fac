"""Checkpoints: exact resume, refusal of another run's, ties, and folders that a kill left behind."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from train_fakes import FakeData, blobs, data, mlp, same, weights

from metaprune.core.errors import ConfigError, WeightsError
from metaprune.core.rng import Rng
from metaprune.train import checkpoint as checkpoints
from metaprune.train.config import TrainConfig
from metaprune.train.loop import train

torch.set_num_threads(1)


class StopNow(Exception):
    pass


def fit(model, directory, *, stop_after=None, given=None, seed=0, identity=None, **options):
    def on_epoch(row):
        if row.epoch == stop_after:
            raise StopNow

    config = TrainConfig(**{"epochs": 4, "batch_size": 16, **options})
    return train(
        model,
        given or data(),
        config,
        rng=Rng(seed),
        device="cpu",
        checkpoint_dir=directory,
        progress=False,
        on_epoch=on_epoch,
        identity=identity,
    )


class Tied(nn.Module):
    """A shared parameter, a view of a parameter's storage, and a buffer that the state dict leaves out."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.second.weight = self.first.weight
        self.second.bias = nn.Parameter(self.first.bias.data)
        self.register_buffer("calls", torch.zeros(1), persistent=False)

    def forward(self, x):
        self.calls += 1
        return self.third(self.second(self.first(x).relu()) + 0.001 * self.calls)


def tied():
    with Rng(0).torch_global():
        return Tied()


@pytest.mark.parametrize("make", [mlp, tied])
@pytest.mark.parametrize(
    "optimizer", [{"optimizer": "sgd"}, {"optimizer": "adamw"}, {"momentum": 0.0, "nesterov": False}]
)
def test_resume_is_exact(tmp_path, make, optimizer):
    whole, resumed = make(), make()
    options = {"lr": 0.01, "warmup_epochs": 1.5, "epochs": 3.5, "decay_norm_and_bias": False, **optimizer}
    history = fit(whole, tmp_path / "a", **options)
    with pytest.raises(StopNow):
        fit(resumed, tmp_path / "b", stop_after=2, **options)
    resumed = make()
    again = fit(resumed, tmp_path / "b", **options)
    assert same(weights(whole), weights(resumed))
    assert [(r.epoch, r.train, r.val) for r in history.rows] == [(r.epoch, r.train, r.val) for r in again.rows]
    if make is tied:
        assert torch.equal(whole.calls, resumed.calls)
        assert resumed.first.weight is resumed.second.weight


def test_complete_run_is_loaded_not_trained(tmp_path):
    first, second = mlp(), mlp(seed=3)
    history = fit(first, tmp_path)
    again = fit(second, tmp_path, stop_after=4)  # would raise if the last epoch ran again
    assert again == history
    assert same(weights(first), weights(second))
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-0004"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.1}, r"config.lr: 'auto' there, 0.1 here.*start over"),
        ({"seed": 1}, "rng"),
        ({"given": FakeData(blobs(50))}, "data"),
        ({"identity": {"plan": "abc"}}, "plan: 'absent' there, 'abc' here"),
    ],
)
def test_another_run_is_refused(tmp_path, change, message):
    fit(mlp(), tmp_path)
    model = mlp(seed=5)
    before = weights(model)
    with pytest.raises(ConfigError, match=message):
        fit(model, tmp_path, **change)
    assert same(weights(model), before)


def test_other_shapes_are_refused(tmp_path):
    fit(mlp(), tmp_path)
    with pytest.raises(ConfigError, match="shapes"):
        fit(nn.Sequential(nn.Linear(8, 3)), tmp_path)


def test_leftovers_of_a_kill_are_passed_over(tmp_path):
    whole, resumed = mlp(), mlp()
    fit(whole, tmp_path / "a")
    with pytest.raises(StopNow):
        fit(resumed, tmp_path / "b", stop_after=2)
    for name in (".tmp-epoch-0003", ".old-epoch-0001"):
        (tmp_path / "b" / name).mkdir()
        (tmp_path / "b" / name / "checkpoint.json").write_text("{half")
    resumed = mlp()
    fit(resumed, tmp_path / "b")
    assert same(weights(whole), weights(resumed))


def test_older_checkpoint_stays_until_the_new_one_is_whole(tmp_path, monkeypatch):
    def fails(*args):
        raise OSError("disk full")

    with pytest.raises(StopNow):
        fit(mlp(), tmp_path, stop_after=1)
    monkeypatch.setattr(checkpoints, "save_file", fails)
    with pytest.raises(OSError, match="disk full"):
        fit(mlp(), tmp_path)
    assert [path.name for path in tmp_path.glob("epoch-*")] == ["epoch-0001"]


def test_damaged_checkpoint_says_what_to_do(tmp_path):
    fit(mlp(), tmp_path)
    path = tmp_path / "epoch-0004" / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(WeightsError, match=r"epoch-0004 cannot be read .*delete"):
        fit(mlp(), tmp_path)


def test_numbers_are_plain_json(tmp_path):
    fit(mlp(), tmp_path)
    document = json.loads((tmp_path / "epoch-0004" / "checkpoint.json").read_text())
    assert document["epoch"] == 4
    assert document["digest"] == checkpoints.digest_of(document["identity"])
    assert len(document["history"]["rows"]) == 4
