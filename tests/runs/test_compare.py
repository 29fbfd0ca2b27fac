"""`compare`: cells are ordinary runs on one dense network, shared, resumed and put side by side; `report RUN RUN`."""

import csv
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import metaprune as mp
from metaprune.cli.main import main
from metaprune.report.comparison_rows import Spread, labels_of
from metaprune.runs import compare as module
from metaprune.runs.config import RunConfig, from_dict
from metaprune.runs.lock import locked

METHODS, BUDGETS = ["magnitude p=1", "uniform"], ["80%", "40%"]


@pytest.fixture(scope="module")
def patterns(tmp_path_factory):
    draw = np.random.default_rng(0)
    prototypes, labels = draw.integers(0, 256, (4, 8, 8)), draw.integers(0, 4, 240)
    images = np.clip(prototypes[labels] + draw.normal(0, 90, (240, 8, 8)), 0, 255).astype(np.uint8)
    path = tmp_path_factory.mktemp("data") / "patterns.npz"
    np.savez(path, images=images[:, None], labels=labels)
    return path


def recipe(patterns, **changes):
    brief = {"epochs": 1, "batch_size": 64, "lr": 0.05, "augment": False}
    return {
        "model": {"spec": "zoo:mlp", "options": {"widths": [16, 16], "image_size": 8}},
        "data": {"spec": f"npz:{patterns}"},
        "train": {**brief, "epochs": 3},
        "budget": {"macs": "50%"},
        "method": {"name": "uniform", "options": {"fill": True}},
        "recover": {"kind": "finetune", "train": brief},
        "latency": {"repeats": 0},
        "device": "cpu",
        **changes,
    }


def config(patterns, **changes):
    return from_dict(RunConfig, recipe(patterns, **changes))


@pytest.fixture(scope="module")
def compared(patterns, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared") / "c"
    return mp.compare(
        config(patterns), folder, methods=METHODS, budgets=BUDGETS, seeds=2, progress=False
    ), folder  # fmt: skip


def test_every_cell_is_a_run_on_the_one_dense_network(compared, patterns, tmp_path):
    result, folder = compared
    assert len(result["runs"]) == 8 and [m["runs"] for m in result["methods"]] == [2] * 4
    dense = json.loads((folder / "dense" / "record.json").read_text())
    assert {run["dense"] for run in result["runs"]} == {dense["quality"]["dense"]["accuracy"]}
    for run in result["runs"]:
        record = json.loads((folder / run["folder"] / "record.json").read_text())
        assert record["history"]["train"] is None and record["quality"]["recovered"]["accuracy"] == run["final"]
        assert record["cost"]["after"]["macs"] <= record["bounds"]["macs"] and not record["warnings"]
    by_itself = mp.run(
        from_dict(RunConfig, json.loads((folder / run["folder"] / "config.json").read_text())), tmp_path, progress=False
    )
    assert by_itself["quality"] == record["quality"]


def test_a_name_alone_has_the_options_of_the_recipe(compared):
    _, folder = compared
    options = [json.loads(path.read_text())["method"]["options"] for path in folder.glob("uniform/*/*/config.json")]
    assert len(options) == 4 and all(given["fill"] for given in options)
    assert json.loads(next(folder.glob("magnitude*/*/*/config.json")).read_text())["method"]["options"]["p"] == 1


def test_the_page_csv_and_json_say_the_same(compared):
    result, folder = compared
    assert json.loads((folder / "comparison.json").read_text()) == json.loads(json.dumps(result))
    with (folder / "comparison.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [float(line["final"]) for line in lines] == [run["final"] for run in result["runs"]]
    assert [float(line["macs"]) for line in lines] == [run["after"]["macs"] for run in result["runs"]]
    page = (folder / "comparison.html").read_text()
    assert "2 methods compared" in page and "magnitude p=1" in page and "Accuracy right after the cut" in page


def test_a_stopped_comparison_goes_on_and_grows(compared, patterns, tmp_path, monkeypatch):
    whole, _ = compared
    did = []

    def stopping(config, folder, **given):
        did.append(folder)
        if len(did) == 4:
            raise KeyboardInterrupt
        return mp.run(config, folder, **given)

    arguments = dict(methods=METHODS, seeds=2, progress=False)
    monkeypatch.setattr(module, "run", stopping)
    with pytest.raises(KeyboardInterrupt):
        mp.compare(config(patterns), tmp_path / "c", budgets=BUDGETS[:1], **arguments)
    before = (did[0] / "record.json").stat().st_mtime_ns
    result = mp.compare(config(patterns), tmp_path / "c", budgets=BUDGETS, **arguments)
    assert (did[0] / "record.json").stat().st_mtime_ns == before
    assert [run["final"] for run in result["runs"]] == [run["final"] for run in whole["runs"]]
    with pytest.raises(mp.ConfigError, match="another config"):
        mp.compare(config(patterns, batch_size=32), tmp_path / "c", budgets=BUDGETS, **arguments)


def test_a_cell_of_another_process_is_left_to_it(patterns, tmp_path, monkeypatch):
    """Another process holds a cell: the others are done first, and it is waited for."""
    held = tmp_path / "c" / "random" / "macs=60%" / "seed-0"
    held.mkdir(parents=True)
    lock = locked(held)
    lock.__enter__()
    states = []

    def end(seconds):
        states.append((tmp_path / "c" / "uniform" / "macs=60%" / "seed-0" / "record.json").is_file())
        lock.__exit__(None, None, None)

    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=end))
    result = mp.compare(
        config(patterns), tmp_path / "c", methods=["random", "uniform"], budgets=["60%"], seeds=1, progress=False
    )
    assert states == [True] and [run["label"] for run in result["runs"]] == ["random", "uniform"]


def test_what_a_method_cannot_do_is_a_row(patterns, tmp_path):
    """BatchNorm scales say nothing of a network without BatchNorm: its groups stay whole."""
    arguments = dict(methods=["bn_scale", "uniform"], seeds=1, progress=False)
    result = mp.compare(config(patterns), tmp_path / "c", budgets=["macs=60%,params=70%"], **arguments)
    failed, done = result["runs"]
    assert "no channel group has one" in failed["failure"] and failed["final"] is None
    assert done["final"] is not None and not done["failure"]
    assert "no channel group has one" in (tmp_path / "c" / "comparison.html").read_text()
    with pytest.raises(mp.InfeasibleBudgetError):  # no method can: before any training
        mp.compare(config(patterns), tmp_path / "d", budgets=["60%", "50"], **arguments)
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ["magnitud"]}, "Did you mean 'magnitude'"),
        ({"methods": ["magnitude q=1"]}, "unknown key magnitude.q"),
        ({"methods": ["magnitude p"]}, "write key=value"),
        ({"methods": ["magnitude 'p"]}, "not understood"),
        ({"methods": ["uniform", "uniform"]}, "there twice"),
        ({"methods": []}, "are lists"),
        ({"budgets": "50%"}, "are lists"),
        ({"budgets": ["mac=50%"]}, "macs"),
        ({"seeds": 0}, "give 1 or more"),
        ({"config": {"budget": {"macs": "50%", "params": "50%"}}}, "names no metric"),
        ({"config": {"recover": {"kind": "auto"}}, "methods": ["uniform", "pruningnet"]}, "recover differently"),
    ],
)
def test_bad_input_is_told_in_one_line_before_any_training(changes, message, patterns, tmp_path):
    given = {"methods": METHODS, "budgets": BUDGETS, **changes}
    with pytest.raises(mp.ConfigError, match=message) as told:
        mp.compare(config(patterns, **given.pop("config", {})), tmp_path / "c", progress=False, **given)
    assert "\n" not in str(told.value) and not (tmp_path / "c").exists()


def test_what_a_method_lacks_is_said_before_the_training(patterns, tmp_path):
    methods = ["uniform", f"metagraph artifact={tmp_path / 'none'}"]
    with pytest.raises(mp.MetapruneError, match="none"):
        mp.compare(config(patterns), tmp_path / "c", methods=methods, budgets=["60%"], progress=False)
    assert not (tmp_path / "c").exists()


@pytest.mark.slow
def test_workers_share_the_cells_on_the_command_line(patterns, tmp_path):
    (tmp_path / "own.py").write_text(
        "from metaprune.methods.criteria.uniform import Uniform\n\n\nclass Own(Uniform):\n    name = 'own'\n"
    )
    (tmp_path / "r.toml").write_text("\n".join(f"{key} = {_toml(value)}" for key, value in recipe(patterns).items()))
    variables = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "metaprune.cli.main", "compare", "r.toml", "--methods", "python:own:Own,random"]
    command += ["--budgets", "60%", "--seeds", "2", "--workers", "2", "--run", "c", "--quiet"]
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "python:own:Own" in done.stdout and "comparison.html" in done.stdout
    assert len(list((tmp_path / "c").glob("*/*/*/record.json"))) == 4


def _toml(value):
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(part)}" for key, part in value.items()) + " }"
    return json.dumps(value)


# ---------------------------------------------------------------------------------------------------- report RUN RUN


def test_finished_runs_are_compared(compared, tmp_path, monkeypatch, capsys):
    _, folder = compared
    monkeypatch.chdir(tmp_path)
    runs = sorted(str(path.parent) for path in folder.glob("*/*/seed-0/record.json"))
    assert main(["report", *runs, str(folder / "dense")]) == 0
    assert "magnitude" in capsys.readouterr().out
    result = json.loads((tmp_path / "comparison.json").read_text())
    assert len(result["runs"]) == 5 and result["differences"][0].startswith("these runs differ in recover")
    assert {run["label"] for run in result["runs"]} == {"magnitude", "uniform fill=True", "uniform fill=False"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "give its folder"), (["none"], "holds no finished run"), (["none", "none"], "holds no finished run")],
)
def test_report_refuses_in_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["report", *arguments]) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1


def test_labels_name_what_differs_and_spreads_leave_out_what_is_missing():
    records = [{"method": "a", "method_options": {"p": p, "q": 0}} for p in (1, 2)] + [{"method": "b"}]
    assert labels_of(records) == ["a p=1", "a p=2", "b"]
    assert Spread.of([None, 1.0, 3.0]) == Spread(2.0, 1.0, 3.0) and Spread.of([None]) is None
