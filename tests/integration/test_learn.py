"""fit -> search -> network as a user runs them, on real digits; killed, repeated, with wrong arguments."""

import json
import signal
import subprocess
import sys
import time

import pytest

import metaprune as mp
from metaprune.cli.main import main
from metaprune.config import RunConfig
from metaprune.errors import ConfigError, InfeasibleBudgetError
from metaprune.learn import Fitted, fit
from metaprune.strict import from_dict
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
    run = Fitted.open(fitted, progress=False)
    for share in ("50%", "20%"):
        best = run.best(Budget(macs=share))
        record, place = run.network(Budget(macs=share), progress=False)
        assert record["quality"]["recovered"]["samples"] > 0
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
    first = Fitted.open(fitted, progress=False).best(Budget(macs="35%"))
    again = Fitted.open(fitted, progress=False)
    monkeypatch.setattr(type(again.session.scorer), "__call__", lambda *_: pytest.fail("scored again"))
    assert again.best(Budget(macs="35%")) == first


def test_the_front_is_of_rising_cost_and_score(fitted):
    rows = Fitted.open(fitted, {"method.options.search.evolution.population": 8}, progress=False).pareto(targets=4)
    macs, scores = [r["cost"]["macs"] for r in rows], [r["score"] for r in rows]
    assert macs == sorted(set(macs))
    assert scores == sorted(set(scores))
    assert json.loads((fitted / "front.json").read_text())["front"] == rows


def test_prune_does_it_all_and_equals_the_stages(fitted, tmp_path):
    config = recipe()
    from metaprune.pipeline import run

    record = run(config, tmp_path / "run", progress=False)
    staged = Fitted.open(fitted, progress=False).best(Budget(macs="50%"))
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
    run = Fitted.open(fitted, overrides, progress=False)
    killed = run.best(Budget(macs="45%"))
    alone = Fitted.open(fitted, {**overrides, "method.options.storage": "sqlite://"}, progress=False)
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
        Fitted.open(tmp_path)
    with pytest.raises(InfeasibleBudgetError, match="smallest reachable"):
        Fitted.open(fitted, progress=False).best(Budget(macs="0.1%"))
    for arguments, text in (
        (["search", str(fitted), "--budget", "latency_ms=3", "--quiet", "--only-search"], "latency"),
        (["search", str(fitted), "--pareto", "--budget", "macs=50%"], "leave --budget out"),
        (["search", str(fitted), "--workers", "0"], "give 1 or more"),
        (["search", str(fitted), "--set", "method.options.hidden=99"], "was decided by the fit"),
        (["search", str(fitted), "--budget", "macs=50%", "--set", "data.limit=500", "--quiet"], "another data digest"),
        (["search", str(fitted), "--searcher", "evolutoin"], "Did you mean 'evolution'"),
        (["fit", "pruningnet", str(tmp_path / "no.toml")], "no recipe"),
        (["fit", "pruningnte", "recipes/resnet8_fashion_mnist_pruningnet_macs50.toml"], "Did you mean 'pruningnet'"),
    ):
        assert main(arguments) == 2
        assert text in capsys.readouterr().err
