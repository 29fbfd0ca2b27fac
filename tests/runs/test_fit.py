"""fit -> search -> network, fit -> adapt -> network as a user runs them; killed, repeated, with wrong arguments."""

import json
import signal
import subprocess
import sys
import time

import pytest
import torch

import metaprune as mp
from metaprune.cli.main import main
from metaprune.core.errors import ConfigError, InfeasibleBudgetError
from metaprune.core.strict import from_dict
from metaprune.methods.pruningnet.search import FittedPruningNet
from metaprune.methods.stamp.adapt import adapt
from metaprune.methods.stamp.report_rows import fact_rows
from metaprune.report.rows import headline
from metaprune.runs.config import DataConfig, RunConfig
from metaprune.runs.fit import fit
from metaprune.values import Budget

TINY = {"epochs": 1, "batch_size": 64, "lr": 0.05, "augment": False}
RECIPE = {
    "model": {"spec": "zoo:resnet8"},
    "data": {"spec": "builtin:digits", "limit": 400},
    "budget": {"macs": "50%"},
    "method": {
        "name": "pruningnet",
        "options": {
            "weights": "shared",
            "sub_validation": 100,
            "calibration": 64,
            "batch_size": 64,
            "train": {**TINY, "nesterov": False},
            "search": {"evolution": {"population": 4, "generations": 2, "parents": 2}},
        },
    },
    "recover": {"kind": "scratch", "train": TINY},
    "latency": {"repeats": 0},
}


def recipe(**changes):
    return from_dict(RunConfig, {**RECIPE, **changes})


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fitted")
    fit(recipe(), folder / "run", progress=False)
    return folder / "run"


def test_one_fit_many_budgets_each_a_whole_run(fitted):
    run = FittedPruningNet.open(fitted, progress=False)
    for share in ("50%", "20%"):
        best = run.best(Budget(macs=share))
        record, place = run.network(Budget(macs=share), progress=False)
        assert record["quality"]["recovered"]["samples"] > 0 and record["recovery"]["kind"] == "scratch"
        assert {g["name"]: g["after"] for g in record["space"]["groups"]} == best["widths"]
        assert (
            record["cost"]["after"]["macs"]
            == best["cost"]["macs"]
            <= float(share[:-1]) / 100 * record["cost"]["before"]["macs"]
        )
        details = record["method_details"]["search"]
        assert details["scores"][details["best"]] == best["score"]
        assert json.loads((place / "record.json").read_text())["method_details"]["fit"]["genes"] == 6
        assert "Pareto" in (place / "report.html").read_text()
        assert mp.load(place) is not None


def test_a_second_search_scores_nothing_again(fitted, monkeypatch):
    first = FittedPruningNet.open(fitted, progress=False).best(Budget(macs="35%"))
    again = FittedPruningNet.open(fitted, progress=False)
    monkeypatch.setattr(type(again.search.scorer), "__call__", lambda *_: pytest.fail("scored again"))
    assert again.best(Budget(macs="35%")) == first


def test_the_front_is_of_rising_cost_and_score(fitted):
    overrides = {"method.options.search.evolution.population": 8}
    rows = FittedPruningNet.open(fitted, overrides, progress=False).pareto(targets=4)
    macs, scores = [r["cost"]["macs"] for r in rows], [r["score"] for r in rows]
    assert macs == sorted(set(macs))
    assert scores == sorted(set(scores))
    told = json.loads((fitted / "front.json").read_text())
    assert told["front"] == rows
    codec = FittedPruningNet.open(fitted, progress=False).search.codec
    assert min(macs) <= 1.5 * told["targets"][0]["macs"]  # the small end is searched, too
    assert told["targets"][0]["macs"] == macs_of(fitted, codec.smallest)


def macs_of(folder, genome):
    run = FittedPruningNet.open(folder, progress=False)
    return float(run.search.task.network.cost_model().metric("macs", run.search.codec.widths(genome[None]))[0])


def test_prune_does_it_all_and_equals_the_stages(fitted, tmp_path):
    config = recipe()
    from metaprune.runs.run import run

    record = run(config, tmp_path / "run", progress=False)
    staged = FittedPruningNet.open(fitted, progress=False).best(Budget(macs="50%"))
    assert {g["name"]: g["after"] for g in record["space"]["groups"]} == staged["widths"]


def test_a_search_killed_with_sigkill_goes_on(fitted):
    search = [
        sys.executable,
        "-m",
        "metaprune.cli.main",
        "search",
        str(fitted),
        "--budget",
        "macs=45%",
        "--only-search",
    ]
    search += ["--quiet", "--set", "method.options.search.evolution.generations=8"]
    victim = subprocess.Popen(search, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    started, before = time.time(), scored(fitted)
    while victim.poll() is None and time.time() - started < 120 and scored(fitted) < before + 8:
        time.sleep(0.05)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    overrides = {"method.options.search.evolution.generations": 8}
    run = FittedPruningNet.open(fitted, overrides, progress=False)
    killed = run.best(Budget(macs="45%"))
    alone = FittedPruningNet.open(fitted, {**overrides, "method.options.storage": "sqlite://"}, progress=False)
    assert killed == alone.best(Budget(macs="45%"))


def scored(folder):
    import sqlite3

    with sqlite3.connect(f"file:{folder / 'search.db'}?mode=ro", uri=True, timeout=10) as base:
        return base.execute("select count(*) from trials where state='COMPLETE'").fetchone()[0]


def test_the_same_fit_again_is_finished_and_another_config_is_refused(fitted):
    before = (fitted / "artifact.json").stat().st_mtime_ns
    fit(recipe(), fitted, progress=False)
    assert (fitted / "artifact.json").stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match="another config"):
        fit(recipe(seed=1), fitted, progress=False)


def test_wrong_arguments(fitted, tmp_path, capsys):
    with pytest.raises(ConfigError, match="learns nothing"):
        fit(recipe(method={"name": "magnitude"}), tmp_path / "x")
    with pytest.raises(ConfigError, match="holds no fitted run"):
        FittedPruningNet.open(tmp_path)
    with pytest.raises(InfeasibleBudgetError, match="smallest reachable"):
        FittedPruningNet.open(fitted, progress=False).best(Budget(macs="0.1%"))
    with pytest.raises(ConfigError, match="nothing to search"):
        FittedPruningNet.open(fitted, progress=False).best(Budget(macs="100%"))
    secret = {**RECIPE["method"]["options"], "storage": "postgresql+psycopg://me:secret@host/db"}
    with pytest.raises(ConfigError, match="password would be written"):
        fit(recipe(method={"name": "pruningnet", "options": secret}), tmp_path / "x")
    assert not (tmp_path / "x").exists()
    for arguments, text in (
        (["search", str(fitted), "--budget", "latency_ms=3", "--quiet", "--only-search"], "latency"),
        (["search", str(fitted), "--pareto", "--budget", "macs=50%"], "leave --budget out"),
        (["search", str(fitted), "--budget", "macs=50%", "--set", "method.options.inherit=true"], "finetune or distil"),
        (["search", str(fitted), "--budget", "macs=50%", "--run", str(fitted), "--workers", "2"], "another config"),
        (["search", str(fitted), "--workers", "0"], "give 1 or more"),
        (["search", str(fitted), "--budget", "macs=50%", "--set", "budget.macs=20%"], "budget.macs does nothing here"),
        (["search", str(fitted), "--budget", "macs=50%", "--only-search", "--run", "x"], "--run is the folder"),
        (["search", str(fitted), "--budget", "macs=50%", "--storage", "redis://localhost:1"], "cannot be opened"),
        (["search", str(fitted), "--set", "method.options.hidden=99"], "was decided by the fit"),
        (["search", str(fitted), "--budget", "macs=50%", "--set", "data.limit=500", "--quiet"], "another data digest"),
        (["search", str(fitted), "--searcher", "evolutoin"], "Did you mean 'evolution'"),
        (["fit", "pruningnet", str(tmp_path / "no.toml")], "no recipe"),
        (["fit", "pruningnte", "recipes/resnet8_fashion_mnist_pruningnet_macs50.toml"], "Did you mean 'pruningnet'"),
    ):
        assert main(arguments) == 2
        assert text in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------- STAMP

STAMP = {
    "model": {"spec": "zoo:resnet8"},
    "data": {"spec": "builtin:digits", "limit": 400},
    "budget": {"params": "40%"},
    "train": TINY,
    "method": {
        "name": "stamp",
        "options": {
            "meta": {"episodes": 3, "inner_steps": 2, "batch_size": 32, "ways": [3, 5], "augment": False},
            "adapt_steps": 2,
            "sets": 2,
            "set_dim": 8,
            "heads": 2,
            "hidden": 8,
        },
    },
    "recover": {"kind": "finetune", "train": TINY},
    "latency": {"repeats": 0},
}


@pytest.fixture(scope="module")
def meta_trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stamp") / "run"
    fit(from_dict(RunConfig, STAMP), folder, progress=False)
    return folder


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    """A colour data set of another size and number of classes, 20 images a class."""
    import numpy as np

    draw = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 20)
    images = draw.integers(0, 60, (80, 20, 20, 3)) + 45 * labels[:, None, None, None]
    file = tmp_path_factory.mktemp("data") / "target.npz"
    np.savez(file, images=images.astype(np.uint8), labels=labels)
    return f"npz:{file}"


def test_adapt_to_other_channels_size_and_classes(meta_trained, target):
    record, place = adapt(meta_trained, DataConfig(spec=target), Budget(params="30%"), progress=False)
    assert record["cost"]["after"]["params"] <= 0.3 * record["cost"]["before"]["params"]
    found = record["method_details"]["stamp"]
    assert len(found["adaptation"]) == 2
    assert set(found["seconds"]) == set(found["macs"]) == {"adapt", "encode"}
    assert found["meta_training"]["macs"] > 0
    assert record["quality"]["recovered"]["samples"] > 0
    seen, after = record["recovery"]["samples"], record["cost"]["after"]["macs"]
    assert seen > 0 and record["recovery"]["macs"] == 3 * after * seen
    assert record["quality"]["untrained_head"] and "->" not in headline(record)
    facts = {row.name for row in fact_rows(record)}
    assert "Training the small network: MACs" in facts
    size = record["config"]["data"]["image_size"]
    assert mp.load(place)(torch.zeros(2, 1, size, size)).shape == (2, 4)
    assert "<html" in (place / "report.html").read_text()


def test_adapt_by_command_line_structure_only(meta_trained, target, tmp_path, capsys):
    arguments = ["adapt", str(meta_trained), "--data", target, "--budget", "macs=50%", "--steps", "0", "--quiet"]
    arguments += ["--set", "method.options.variant=structure", "--run", str(tmp_path / "out")]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "STAMP: " in said and "report:" in said
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert record["config"]["recover"]["kind"] == "scratch"
    assert record["method_details"]["stamp"]["adaptation"] == []


def test_wrong_arguments_of_adapt(meta_trained, fitted, target, tmp_path, capsys):
    for arguments, text in (
        (["adapt", str(tmp_path), "--data", target, "--budget", "params=25%"], "holds no fitted run"),
        (["adapt", str(fitted), "--data", target, "--budget", "params=25%"], "is for stamp"),
        (["search", str(meta_trained), "--budget", "params=25%"], "is for pruningnet"),
        (["adapt", str(meta_trained), "--data", target, "--budget", "params=0.01%", "--quiet"], "smallest reachable"),
        (
            [
                "adapt",
                str(meta_trained),
                "--data",
                target,
                "--budget",
                "params=25%",
                "--set",
                "method.options.hidden=9",
            ],
            "was decided by the fit",
        ),
        *(
            (["adapt", str(meta_trained), "--data", target, "--budget", "params=25%", "--set", setting], text)
            for setting, text in (
                ("data.nope=3", "unknown key data.nope"),
                ("data.spec=builtin:mnist", "what --data says"),
                ("data.limit=abc", "data.limit"),
                ("budget.macs=30%", "budget.macs does nothing here"),
                ("model.new_head=false", "model.new_head does nothing"),
            )
        ),
    ):
        assert main(arguments) == 2
        assert text in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------- graph metanetwork


METAGRAPH = {
    **{k: STAMP[k] for k in ("data", "train", "recover", "latency")},
    "model": {"spec": "zoo:resnet8"},
    "budget": {"macs": "50%"},
    "method": {
        "name": "metagraph",
        "options": {
            "objective": "rewrite",
            "metanet": {"hidden": 8, "layers": 1},
            "data_models": {"count": 2, "train": TINY},
            "meta": {"steps": 3, "batches": 1, "batch_size": 32, "evaluate_every": 3, "judged": 64},
        },
    },
}


@pytest.mark.filterwarnings("ignore:no state of the metanetwork did better")
def test_one_metanetwork_prunes_other_networks(tmp_path, capsys):
    from metaprune.runs.run import run

    artifact = fit(from_dict(RunConfig, METAGRAPH), tmp_path / "fit", progress=False)
    assert artifact.info["macs"] > 0
    method = {"name": "metagraph", "options": {"artifact": str(tmp_path / "fit")}}
    other = from_dict(RunConfig, {**METAGRAPH, "model": {"spec": "zoo:resnet20"}, "method": method})
    record = run(other, tmp_path / "pruned", progress=False)
    assert record["cost"]["after"]["macs"] <= 0.5 * record["cost"]["before"]["macs"]
    assert [s["step"] for s in record["method_details"]["metagraph"]["steps"]] == ["start", "rewrite", "pruning"]
    assert mp.load(tmp_path / "pruned")(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert 'id="metagraph"' in (tmp_path / "pruned" / "report.html").read_text()
    assert main(["adapt", str(tmp_path / "fit"), "--data", "builtin:digits", "--budget", "params=40%"]) == 2
    assert "holds a metagraph" in capsys.readouterr().err


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore:no state of the metanetwork did better")
def test_one_fit_from_networks_of_several_depths(tmp_path):
    from metaprune.runs.run import run

    both = from_dict(RunConfig, {**METAGRAPH, "also": [{"spec": "zoo:resnet20"}]})
    artifact = fit(both, tmp_path / "fit", progress=False)
    shares = [m["macs"] for m in artifact.info["data_models"]]
    assert len(shares) == 4  # two of each network
    assert (tmp_path / "fit" / "dense.safetensors").stat().st_size != (
        tmp_path / "fit" / "also-1" / "dense.safetensors"
    ).stat().st_size
    with pytest.raises(ConfigError, match="more networks for `metaprune fit metagraph`"):
        run(both, tmp_path / "pruned", progress=False)
    with pytest.raises(ConfigError, match="meta-trained on one network"):
        fit(recipe(also=[{"spec": "zoo:resnet20"}]), tmp_path / "other", progress=False)
