"""`headroom`: its answer from known figures, and runs that are judged on the validation part."""

import json

import numpy as np
import pytest
from tests.runs.test_compare import config, patterns  # noqa: F401

import metaprune as mp
from metaprune.cli.main import main
from metaprune.report.comparison_rows import RunRow
from metaprune.report.metric import MetricView
from metaprune.runs.headroom import RANDOM, RULES, UNIFORM, of_rows


def rows(uniform, tilted, random):
    figures = {UNIFORM: uniform, **dict.fromkeys(RULES, uniform), RULES[0]: tilted, RANDOM: random}
    return [RunRow(label, "macs=10%", s, "", final=v) for label, vs in figures.items() for s, v in enumerate(vs)]


def test_a_rule_far_above_uniform_is_headroom():
    answer = of_rows(rows([0.30, 0.31, 0.32], [0.50, 0.51, 0.52], [0.31, 0.32, 0.33]), higher_is_better=True)
    assert answer.search and answer.best_rule == RULES[0] and answer.gain == pytest.approx(0.2)
    assert answer.noise == pytest.approx(0.01) and not answer.differ
    text = answer.text(MetricView())
    assert text.startswith("Search: tilt=-1 is 20 points better") and "1 points" in text


def test_random_structures_that_spread_are_headroom_too():
    answer = of_rows(rows([0.30, 0.31, 0.32], [0.30, 0.31, 0.32], [0.10, 0.30, 0.50]), higher_is_better=True)
    assert answer.search and answer.differ and answer.gain == pytest.approx(0)
    assert answer.text(MetricView()).startswith("Search: random structures differ")


@pytest.mark.parametrize("sign", [1, -1])
def test_differences_within_the_noise_are_none(sign):
    uniform, tilted, random = np.array([[0.28, 0.31, 0.34], [0.29, 0.32, 0.35], [0.28, 0.31, 0.33]]) * sign
    answer = of_rows(rows(uniform, tilted, random), higher_is_better=sign > 0)
    assert not answer.search and answer.gain == pytest.approx(0.01)
    assert answer.text(MetricView()).startswith("Do not search")


def test_where_nothing_differs_seldom_anything_is_seen():
    draw, seen = np.random.default_rng(0), 0
    for _ in range(200):
        values = {label: draw.normal(0.5, 0.02, 3) for label in (UNIFORM, *RULES, RANDOM)}
        answer = of_rows([RunRow(k, "b", s, "", final=v) for k, vs in values.items() for s, v in enumerate(vs)], True)
        seen += answer.search
    assert seen <= 35  # two questions, each an accident in at most 1 of 20: 20 of 200, and three standard deviations


def test_it_is_judged_on_validation_and_goes_on(patterns, tmp_path):  # noqa: F811
    made = config(patterns)
    result = mp.headroom(made, tmp_path / "h", budgets=["40%"], seeds=2, progress=False)
    (answer,) = result["headroom"]
    assert result["split"] == "val" and answer["budget"] == "macs=40%" and answer["search"] in (True, False)
    assert (
        len(result["runs"]) == 2 * (len(RULES) + 2) and answer["text"] in (tmp_path / "h/comparison.html").read_text()
    )
    costs = {run["after"]["macs"] for run in result["runs"]}
    assert max(costs) <= 0.4 * result["runs"][0]["before"]["macs"]
    again = mp.headroom(made, tmp_path / "h", budgets=["40%"], seeds=2, progress=False)
    assert again["headroom"] == result["headroom"]
    with pytest.raises(mp.ConfigError, match="2 or more"):
        mp.headroom(made, tmp_path / "one", budgets=["40%"], seeds=1)


def test_of_a_model_by_itself_every_structure_is_trained_from_scratch(patterns, tmp_path, capsys):  # noqa: F811
    brief = [
        "--set",
        "recover.train.epochs=1",
        "--set",
        "recover.train.lr=0.05",
        "--set",
        "recover.train.augment=false",
    ]
    model = ["--set", "model.options.widths=[8,8]", "--set", "model.options.image_size=8", "--set", "device=cpu"]
    given = ["headroom", "zoo:mlp", "--data", f"npz:{patterns}", "--budgets", "50%", "--seeds", "2", "--quiet"]
    assert main([*given, *brief, *model, "--run", str(tmp_path / "h")]) == 0
    out = capsys.readouterr().out
    assert "macs=50%: " in out and ("Search: " in out or "Do not search: " in out)
    record = json.loads(next((tmp_path / "h").glob("random/*/seed-0/record.json")).read_text())
    assert record["recover"]["kind"] == "scratch" and not record["warnings"]
    assert main(["headroom", "zoo:mlp", "--budgets", "50%"]) == 2
    assert "headroom is measured on data" in capsys.readouterr().err
