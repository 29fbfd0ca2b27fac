"""What config and data tell is said before the first epoch, not after hours."""

import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

import metaprune as mp
from metaprune.core.strict import from_dict
from metaprune.runs.config import RunConfig
from metaprune.runs.fit import fit
from metaprune.runs.run import run


@pytest.fixture
def base(tmp_path, monkeypatch):
    labels = np.arange(120) % 3
    np.savez(tmp_path / "d.npz", images=np.zeros((120, 8, 8), np.uint8), labels=labels)
    import metaprune.runs.run as module

    monkeypatch.setattr(module, "train", lambda *_, **__: pytest.fail("trains before it checks"))
    return {
        "model": {"spec": "zoo:mlp", "options": {"image_size": 8, "widths": [16, 16]}},
        "data": {"spec": f"npz:{tmp_path / 'd.npz'}"},
        "budget": {"macs": "60%"},
        "train": {"epochs": 1, "batch_size": 16},
        "latency": {"repeats": 0},
    }


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"method": {"name": "pruningnet", "options": {"sub_validation": 2000}}}, "too few to hold out 2000"),
        ({"method": {"name": "pruningnet", "options": {"weights": "generated", "blocks": ["no*"]}}}, "matches nothing"),
        ({"method": {"name": "pruningnet", "options": {"artifact": "/nope"}}}, "nope"),
        ({"method": {"name": "stamp", "options": {"artifact": "/nope"}}}, "nope"),
        ({"method": {"name": "pruningnet", "options": {"storage": "postgresql:u:p@h"}}}, "does not parse"),
        ({"recover": {"kind": "finetune", "train": {"optimizer": "python:nope:make"}}}, "nope"),
        ({"recover": {"kind": "finetune", "train": {"schedule": "python:nope:make"}}}, "nope"),
        ({"recover": {"kind": "distil", "train": {"log_with": "nope"}}}, "log_with='nope'"),
        ({"train": {"log_with": "nope"}}, "log_with='nope'"),
        ({"constraints": {"ignore": ["nope*"]}}, "matches no group"),
        ({"data": {"limit": 1}, "recover": {"kind": "finetune"}}, "1 training samples"),
    ],
)
def test_runs_say_it_before_they_train(base, tmp_path, changes, text):
    data = {**base, **changes, "data": {**base["data"], **changes.get("data", {})}}
    with pytest.raises(mp.MetapruneError, match=text):
        run(from_dict(RunConfig, data), tmp_path / "run", progress=False)


def test_a_fit_says_it_before_it_trains_the_dense_network(base, tmp_path):
    data = {**base, "method": {"name": "pruningnet", "options": {"sub_validation": 2000}}}
    with pytest.raises(mp.DataError, match="too few to hold out 2000"):
        fit(from_dict(RunConfig, data), tmp_path / "fit", progress=False)


class FixedBatch(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(64, 8), nn.Linear(8, 3)
        self.offset = nn.Parameter(torch.zeros(2, 8))

    def forward(self, x):
        return self.b(self.a(x.flatten(1)) + self.offset)


def test_a_batch_size_that_cannot_be_timed_is_told_first(base, tmp_path, monkeypatch):
    module = types.ModuleType("fixed_batch_module")
    module.make = FixedBatch
    monkeypatch.setitem(sys.modules, "fixed_batch_module", module)
    model = {"spec": "python:fixed_batch_module:make", "input_shape": [1, 8, 8]}
    data = {**base, "model": model, "latency": {"repeats": 1, "batch_size": 7}}
    with pytest.raises(mp.ConfigError, match=r"latency\.batch_size=7"):
        run(from_dict(RunConfig, data), tmp_path / "run", progress=False)


def test_a_password_is_refused_before_the_search(tmp_path):
    from metaprune.methods.pruningnet import METHOD

    method = METHOD.method_class()(storage="postgresql://u:S3CRET@h/db")
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(mp.ConfigError, match="METAPRUNE_STORAGE"):
        mp.prune(model, torch.randn(2, 4), budget="macs=60%", method=method, data=None)


# ---------------------------------------------------------------------------------------------------- small things


def test_importing_leaves_pythons_random_numbers_alone():
    code = (
        "import random; a = random.getstate(); import metaprune as mp; mp.prune, mp.fit; assert random.getstate() == a"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_bound_that_looks_like_a_share_is_asked_about():
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
    with pytest.raises(mp.InfeasibleBudgetError, match=r"Was macs=50% meant\?"):
        mp.prune(model, torch.randn(2, 64), budget="macs=50")


def test_absurd_counts_are_refused_or_capped():
    with pytest.raises(mp.ConfigError, match="epochs"):
        mp.TrainConfig(epochs=1e300)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    steps = {"method": "magnitude", "method_options": {"steps": 10**9}}
    mp.prune(model, torch.randn(2, 4), budget="macs=60%", progress=False, **steps)


def test_a_model_on_the_meta_device_is_told_to_get_weights():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(mp.MetapruneError, match="meta device"):
        mp.prune(model, torch.randn(2, 4, device="meta"), budget="macs=60%")
