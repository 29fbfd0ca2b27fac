"""What the attempts of benchmarks/faults found, by kind; each failed before."""

import json
import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import metaprune as mp
from metaprune.cli.main import main
from metaprune.core.read import read_toml
from metaprune.protocol.registry import resolved_options
from metaprune.testing import assert_untouched

X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)).eval()


def data(inputs=None):
    inputs = torch.randn(24, 4, generator=torch.Generator().manual_seed(1)) if inputs is None else inputs
    split = TensorDataset(inputs, torch.arange(24) % 3)
    return mp.as_data((split, split), num_classes=3)


class Writes(nn.Module):
    """Counts its calls, writes an attribute, and may draw random numbers."""

    def __init__(self, draws):
        super().__init__()
        self.a, self.b, self.draws = nn.Linear(4, 8), nn.Linear(8, 3), draws
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x):
        self.last = x + torch.randn_like(x) if self.draws else x
        if not self.draws:
            self.count += 1
        return self.b(self.a(self.last).relu())


@pytest.mark.parametrize("draws", [False, True])
@pytest.mark.parametrize("method", ["magnitude", "activation", "auto"])
def test_data_do_not_change_the_users_model_or_generator(draws, method):
    network = Writes(draws)
    with assert_untouched(network):
        mp.prune(network, X, budget="params=70%", method=method, data=data(), progress=False)


@pytest.mark.parametrize("inputs", [torch.zeros(24, 4), X[:1].expand(24, 4).clone(), 1e-30 * torch.randn(24, 4)])
def test_obs_ranks_inputs_that_do_not_vary(inputs):
    result = mp.prune(model(), X, budget="macs=60%", method="obs", data=data(inputs), progress=False)
    assert result.record["cost"]["after"]["macs"] <= 0.6 * result.record["cost"]["before"]["macs"]


def test_obs_names_data_that_are_not_finite():
    inputs = torch.randn(24, 4)
    inputs[5, 2] = math.nan
    with pytest.raises(mp.WeightsError, match=r"not finite.*training data"):
        mp.prune(model(), X, budget="macs=60%", method="obs", data=data(inputs), progress=False)


def test_numbers_of_numpy_in_constraints_go_into_the_record():
    result = mp.prune(
        model(), X, budget="macs=80%", round_to=np.int64(2), ratios={"0": np.float32(0.5)}, progress=False
    )
    assert json.loads(json.dumps(result.record))["constraints"]["round_to"] == 2


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda tmp: mp.prune(model(), X, budget="macs=60%", rounds=2**40, progress=False), "rounds=.*at most 1000"),
        (
            lambda tmp: mp.prune(model(), X, budget="macs=60%", recover=nn.ReLU(), progress=False),
            "recover is a network",
        ),
        (lambda tmp: mp.trace(model(), X, batch_dim=-(2**40)), "batch_dim=.*from 0 on"),
        (lambda tmp: mp.trace(nn.Linear(4, 3), X.long()), "does not run on the example inputs.*What to do"),
        (lambda tmp: mp.as_data((data().train.source,) * 2, num_classes=2**40), "num_classes=1,099,511,627,776"),
        (lambda tmp: mp.load("x" * 5000), "folder=.*path"),
        (lambda tmp: mp.load("a\0b"), "folder=.*path"),
        (lambda tmp: mp.Plan({"0": torch.zeros(2, device="meta")}), "channel numbers"),
        (lambda tmp: resolved_options("gates", {"lr": 10**400}), "lr=.*float can hold"),
        (lambda tmp: resolved_options("gates", {"steps": 10**400}), "steps=.*finite"),
        (lambda tmp: resolved_options("pruningnet", {"screening": 10**400}), "screening=.*finite"),
        (lambda tmp: mp.RunConfig(model={}, budget=mp.Budget(macs=1)), "model"),
        (lambda tmp: read_toml(tmp / "bad.toml"), "bad.toml.*line 1.*correct"),
    ],
)
def test_absurd_values_are_one_line_that_says_what_to_do(call, words, tmp_path):
    (tmp_path / "bad.toml").write_text("seed 3\n")
    with pytest.raises(mp.MetapruneError, match=words) as caught:
        call(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def test_an_example_that_holds_itself():
    itself = {}
    itself["x"] = itself
    with pytest.raises(mp.InputsError, match="hold themselves"):
        mp.trace(model(), itself)


def test_a_loss_that_does_not_take_the_output_is_told_early():
    class GivesWeights(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 8)

        def forward(self, x):
            return self.a.weight

    with pytest.raises(mp.DataError, match="objective 'classification' does not take what GivesWeights returns"):
        mp.prune(GivesWeights(), X, budget="params=60%", data=data(), progress=False)


def test_a_traced_module_of_torch_jit_is_cut():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.trace(model(), X)
    assert mp.prune(traced, X, budget="macs=60%", progress=False).pruned.error <= 1e-9


@pytest.mark.parametrize(
    "line",
    [
        ["inspect", "zoo:resnet8", "--input-shape", str(2**40)],
        ["prune", "--model", "zoo:mlp", "--budget", "macs=60%", "--set", f"latency.repeats={2**40}"],
    ],
)
def test_sizes_on_the_command_line_allocate_nothing(line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(line) == 2
    assert "give" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_fit_without_training_says_so(tmp_path, capsys):
    np.savez(tmp_path / "d.npz", images=np.zeros((60, 8, 8), np.uint8), labels=np.arange(60) % 3)
    (tmp_path / "r.toml").write_text(
        f"""budget = {{ macs = "60%" }}
        model = {{ spec = "zoo:mlp", options = {{ image_size = 8 }} }}
        data = {{ spec = "npz:{tmp_path / "d.npz"}" }}
        method = {{ name = "pruningnet", options = {{ weights = "closed-form" }} }}
        """
    )
    assert main(["fit", "pruningnet", str(tmp_path / "r.toml"), "--run", str(tmp_path / "fit"), "--quiet"]) == 0
    assert "no parameters to train" in capsys.readouterr().out


def test_options_that_hold_themselves_are_not_saved(tmp_path):
    itself = {}
    itself["x"] = itself
    result = mp.prune(model(), X, budget="macs=60%", progress=False)
    with pytest.raises(mp.ConfigError, match="plain data"):
        result.save(tmp_path / "net", spec="zoo:mlp", options=itself)
