"""The main job on small data: the one-liner, whole runs, runs that are killed, and the command line."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

import metaprune as mp
from metaprune.cli.main import main
from metaprune.core.errors import ConfigError, DataError, InfeasibleBudgetError, MetapruneError, PlanError, WeightsError
from metaprune.core.rng import Rng
from metaprune.models import create
from metaprune.runs.config import RunConfig, from_dict
from metaprune.runs.run import run
from metaprune.testing import assert_untouched
from metaprune.testing.method_suite import small_data, small_network
from metaprune.values import Plan, Proposal


@pytest.fixture
def patterns(tmp_path):
    """A set that can be learnt in seconds: ten noisy patterns of 8x8 grey pixels."""
    draw = np.random.default_rng(0)
    prototypes = draw.integers(0, 256, (10, 8, 8))
    labels = draw.integers(0, 10, 1200)
    images = np.clip(prototypes[labels] + draw.normal(0, 40, (1200, 8, 8)), 0, 255).astype(np.uint8)
    path = tmp_path / "patterns.npz"
    np.savez(path, images=images[:, None], labels=labels)
    return path


def config(patterns, **changes):
    base = {
        "model": {"spec": "zoo:resnet8", "options": {"widths": [8, 16, 32]}},
        "data": {"spec": f"npz:{patterns}"},
        "train": {"epochs": 4, "batch_size": 64, "lr": 0.1, "augment": False},
        "budget": {"macs": "50%"},
        "recover": {"kind": "finetune", "train": {"epochs": 2, "batch_size": 64, "augment": False}},
        "latency": {"repeats": 2, "batch_size": 4},
        "device": "cpu",
    }
    return from_dict(RunConfig, {**base, **changes})


def test_the_one_liner_changes_nothing_of_the_input_and_recovers():
    model, data = small_network("cnn"), small_data()
    with assert_untouched(model):
        result = mp.prune(
            model,
            torch.zeros(2, 1, 28, 28),
            budget="macs=50%,params=60%",
            method="taylor",
            method_options={"batches": 1},
            data=data,
            recover="bn",
            progress=False,
        )
    cost = result.record["cost"]
    assert cost["after"]["macs"] <= 0.5 * cost["before"]["macs"]
    assert result.record["proof"]["error"] <= 1e-9
    assert result.record["quality"]["recovered"]["samples"] == 96
    json.dumps(result.record)


def test_needs_are_said_before_any_work():
    for options in ({"method": "taylor"}, {"recover": "finetune"}):
        with pytest.raises(ConfigError, match="needs data"):
            mp.prune(small_network("cnn"), torch.zeros(2, 1, 28, 28), budget="macs=50%", **options)


def test_a_whole_run_learns_and_leaves_a_whole_folder(patterns, tmp_path):
    record = run(config(patterns), tmp_path / "run", progress=False)
    quality = record["quality"]
    assert quality["split"] == "test"
    assert quality["dense"]["accuracy"] > 0.8  # ten classes
    assert quality["recovered"]["accuracy"] > 0.7
    names = {p.name for p in (tmp_path / "run").iterdir()}
    assert names >= {
        "config.json",
        "log.txt",
        "dense.safetensors",
        "record.json",
        "plan.json",
        "network.json",
        "model.safetensors",
        "report.html",
    }
    assert record["file_bytes"]["after"] < record["file_bytes"]["before"]
    model = mp.load(tmp_path / "run")
    assert sum(p.numel() for p in model.parameters()) == record["cost"]["after"]["params"]
    again = run(config(patterns), tmp_path / "run", progress=False)
    assert again == record  # a finished run is not run again
    with pytest.raises(ConfigError, match="another config"):
        run(config(patterns, seed=1), tmp_path / "run", progress=False)


def test_the_same_seed_gives_the_same_run(patterns, tmp_path):
    first = run(config(patterns), tmp_path / "a", progress=False)
    second = run(config(patterns), tmp_path / "b", progress=False)
    assert first["quality"] == second["quality"]
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


def test_a_false_start_does_not_claim_the_folder(patterns, tmp_path):
    with pytest.raises(ConfigError, match=r"magnitude\.steps='two' must be int"):
        run(
            config(patterns, method={"name": "magnitude", "options": {"steps": "two"}}),
            tmp_path / "run",
            progress=False,
        )
    with pytest.raises(InfeasibleBudgetError):  # before the training
        run(config(patterns, budget={"macs": 1}), tmp_path / "run", progress=False)
    assert "Traceback" in (tmp_path / "run" / "log.txt").read_text()  # there, and not on the terminal
    assert not (tmp_path / "run" / "checkpoints").exists()
    right = config(patterns, train=None, recover={"kind": "none"})
    assert run(right, tmp_path / "run", progress=False)["quality"]


def loaders(**options):
    draw = torch.Generator().manual_seed(0)
    images, labels = torch.randn(64, 1, 28, 28, generator=draw), torch.randint(0, 10, (64,), generator=draw)
    train = DataLoader(TensorDataset(images, labels), 16, shuffle=True, **options)
    return train, DataLoader(TensorDataset(images, labels), 32)


def test_users_loaders_give_one_plan_per_seed_and_leave_the_global_generator():
    model, plans = small_network("cnn"), []
    for ambient in (1, 2):
        torch.manual_seed(ambient)
        before = torch.get_rng_state()
        result = mp.prune(
            model,
            torch.zeros(2, 1, 28, 28),
            budget="macs=50%",
            method="taylor",
            method_options={"batches": 1},
            data=loaders(),
            recover="bn",
            progress=False,
        )
        assert torch.equal(torch.get_rng_state(), before)
        plans.append(result.plan)
    assert plans[0] == plans[1]


def text_data():
    tokens = torch.randint(0, 20, (24, 5), generator=torch.Generator().manual_seed(0))
    samples = [({"tokens": row, "scale": torch.ones(1)}, int(row.sum() % 2)) for row in tokens]

    class Samples(Dataset):
        def __len__(self):
            return len(samples)

        def __getitem__(self, index):
            return samples[index]

    return Samples(), Samples()


class Bag(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = torch.nn.Embedding(20, 16), torch.nn.Linear(16, 2)

    def forward(self, tokens, scale):
        return {"logits": self.head(self.embed(tokens).mean(1) * scale)}


def test_a_run_on_inputs_that_are_not_images(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    plan = {
        "model": {"spec": "python:test_run:Bag"},
        "data": {"spec": "python:test_run:text_data"},
        "budget": {"params": "50%"},
        "latency": {"repeats": 1, "batch_size": 3},
        "device": "cpu",
        "recover": {"kind": "distil", "train": {"epochs": 1, "batch_size": 8}},
    }
    record = run(from_dict(RunConfig, plan), tmp_path / "run", progress=False)
    assert record["quality"]["recovered"]["samples"] == 24


def test_data_that_does_not_fit_the_model_is_refused_before_any_work():
    with Rng(0).torch_global():
        few, deep = (create("zoo:resnet8", in_channels=c, num_classes=n) for c, n in ((1, 5), (3, 10)))
    for recover in (None, "finetune"):
        with pytest.raises(DataError, match="5 outputs and noise has 10 classes"):
            mp.prune(few, torch.zeros(2, 1, 28, 28), budget="macs=50%", data=small_data(), recover=recover)
        with pytest.raises(DataError, match="does not run on samples of noise"):
            mp.prune(deep, torch.zeros(2, 3, 28, 28), budget="macs=50%", data=small_data(), recover=recover)


def test_labels_that_are_no_classes_are_refused_where_they_are_needed():
    images = torch.randn(32, 1, 28, 28)
    data = (TensorDataset(images, torch.randn(32)), TensorDataset(images, torch.randn(32)))
    options = {"budget": "macs=50%", "data": data, "progress": False}
    for more in ({"method": "taylor"}, {"recover": "finetune"}, {"recover": "distil"}):
        with pytest.raises(DataError, match="what its labels mean is not known"):
            mp.prune(small_network("cnn"), torch.zeros(2, 1, 28, 28), **options, **more)
    assert mp.prune(small_network("cnn"), torch.zeros(2, 1, 28, 28), recover="bn", **options).record["quality"] is None


def test_weights_that_are_not_finite_are_refused():
    model = small_network("cnn")
    with torch.no_grad():
        model.conv1.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(WeightsError, match=r"conv1\.weight are not finite"):
        mp.prune(model, torch.zeros(2, 1, 28, 28), budget="macs=50%")


def test_a_budget_is_hard_whoever_wrote_the_method():
    class Everything:
        name, needs_data = "everything", False

        def propose(self, task, budget, rng):
            return Proposal(Plan())

    with pytest.raises(PlanError, match="over the budget"):
        mp.prune(small_network("cnn"), torch.zeros(2, 1, 28, 28), budget="macs=50%", method=Everything())
    for wrong in (Everything, None):  # a class, nothing
        with pytest.raises(ConfigError, match="neither a name"):
            mp.prune(small_network("cnn"), torch.zeros(2, 1, 28, 28), budget="macs=50%", method=wrong)


@pytest.mark.slow
def test_a_run_killed_in_recovery_continues_to_the_same_end(patterns, tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'device = "cpu"\nmodel = {{ spec = "zoo:resnet8", options = {{ widths = [8, 16, 32] }} }}\n'
        f'data = {{ spec = "npz:{patterns}" }}\ntrain = {{ epochs = 1, batch_size = 64 }}\n'
        'budget = { macs = "50%" }\n'
        'recover = { kind = "distil", train = { epochs = 6, batch_size = 64 } }\nlatency = { repeats = 0 }\n'
    )
    command = [sys.executable, "-m", "metaprune.cli.main", "prune", str(recipe), "--quiet", "--run"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen([*command, str(tmp_path / "killed")], env=environment, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "killed" / "log.txt"
    for _ in range(600):
        if log.exists() and "recover ..." in log.read_text() and (tmp_path / "killed/checkpoints/recover").exists():
            break
        assert child.poll() is None, child.communicate()[1]
        time.sleep(0.1)
    time.sleep(0.5)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert not (tmp_path / "killed" / "record.json").exists()
    for name in ("killed", "whole"):
        subprocess.run([*command, str(tmp_path / name)], env=environment, check=True, capture_output=True)
    files = [(tmp_path / n / "model.safetensors").read_bytes() for n in ("killed", "whole")]
    assert files[0] == files[1]


# ---------------------------------------------------------------------------------------------------- command line


def test_help_is_quick_because_torch_is_not_imported():
    code = (
        "import sys\nfrom metaprune.cli.main import main\ntry: main(['prune', '--help'])\nexcept SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    subprocess.run([sys.executable, "-c", "import metaprune, sys; assert 'torch' not in sys.modules"], check=True)


def test_verbs_on_a_run(patterns, tmp_path, capsys):
    run(config(patterns, train={"epochs": 1, "batch_size": 64}), tmp_path / "run", progress=False)
    (tmp_path / "run" / "report.html").unlink()
    assert main(["report", str(tmp_path / "run")]) == 0
    assert "MACs" in capsys.readouterr().out
    assert (tmp_path / "run" / "report.html").exists()
    assert main(["export", str(tmp_path / "run"), "--format", "pt2", "--time", "--batch", "3", "--repeats", "2"]) == 0
    assert (tmp_path / "run" / "model.pt2").exists()
    said = capsys.readouterr().out
    assert re.search(r"PyTorch: dense [\d.]+ ms, pruned [\d.]+ ms, [\d.]+ times as fast \(batch 3, \d+ thread", said)
    assert main(["export", str(tmp_path / "run"), "--batch", "3"]) == 2
    assert "give --time, too" in capsys.readouterr().err
    (tmp_path / "run" / "config.json").unlink()
    assert main(["export", str(tmp_path / "run"), "--format", "pt2", "--time"]) == 2
    assert "holds no dense network" in capsys.readouterr().err


def test_inspect_and_models(capsys):
    assert main(["inspect", "zoo:resnet8", "--option", "num_classes=7", "--input-shape", "1", "20", "20"]) == 0
    out = capsys.readouterr().out
    assert "prunable, group" in out
    assert "not prunable: graph output" in out
    assert main(["models"]) == 0
    assert "zoo:resnet56" in capsys.readouterr().out


def test_graph_counts_and_draws(tmp_path, capsys):
    assert main(["graph", "zoo:resnet20", "--out", str(tmp_path / "new" / "graph.html")]) == 0
    out = capsys.readouterr().out
    assert "701 nodes, 30,672 edges" in out
    assert "every parameter is in the graph" in out
    assert "<html" in (tmp_path / "new" / "graph.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prune"], "give a recipe"),
        (["prune", "nowhere.toml"], "no recipe"),
        (["prune", "--model", "zoo:resnt8", "--budget", "macs=50%"], "resnet8"),
        (["prune", "--model", "zoo:resnet8", "--budget", "macs=1000"], "smallest reachable"),
        (["prune", "--model", "zoo:resnet8", "--budget", "macs=50%", "--method", "taylr"], "Did you mean 'taylor'"),
        (["prune", "--model", "zoo:resnet8", "--budget", "macs=50%", "--set", "constraints.ignore=['con2']"], "conv1"),
        (["prune", "--model", "zoo:resnet8", "--budget", "macs=0.5"], "a share is written '50%'"),
        (["prune", "--model", "zoo:resnet8", "--budget", "macs=50%,macs=20%"], "twice"),
        (["prune", "--model", "zoo:resnet8", "--budget", "macs=50%", "--run", "/proc/x"], "Check the path"),
        (["inspect", "zoo:resnet8", "--option", "num_classes=many"], "cannot be built with num_classes='many'"),
        (["inspect", "zoo:resnet8", "--weights", "pretrained"], "ships no weights"),
        (["inspect", "zoo:resnet8", "--batch", "0"], "--batch"),
        (["data", "get", "mnist", "--from", "nowhere"], "not a folder"),
        (["data", "get"], "name at least one"),
        (["report", "nowhere"], "no finished run"),
        (["inspect", "nothing"], "zoo:NAME"),
        (["inspect", "zoo:resnet8", "--input-shape", "3", "32", "32"], "does not run on the example inputs"),
    ],
)
def test_mistakes_end_with_one_message(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_verbs_that_do_not_share_their_work_refuse_a_launcher(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["prune", "--model", "zoo:resnet8", "--budget", "macs=50%", "--run", str(tmp_path / "run")]) == 2
    assert "launched as 2 processes" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_errors_share_one_root():
    import metaprune.core.errors as errors

    kinds = [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, Exception)]
    assert all(issubclass(k, (MetapruneError, Warning)) for k in kinds)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        import metaprune

        assert set(metaprune.__all__) <= set(dir(metaprune))
