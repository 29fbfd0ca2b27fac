"""An infeasible budget names the constraint that binds, and no other."""

import itertools

import pytest
import torch
from torch import nn

import metaprune as mp

SIZES = (4, 16, 16, 16, 3)
LAYERS = [m for a, b in itertools.pairwise(SIZES) for m in (nn.Linear(a, b), nn.ReLU())][:-1]
TASK = {"method": "magnitude", "progress": False}


def said(budget, model=None, **constraints):
    model = nn.Sequential(*LAYERS) if model is None else model
    with pytest.raises(mp.InfeasibleBudgetError) as caught:
        mp.prune(model, torch.ones(2, 4), budget=budget, **TASK, **constraints)
    assert caught.value.smallest["params"] > 0
    return str(caught.value)


@pytest.mark.parametrize(
    ("constraints", "named"),
    [
        ({"ignore": ["2"], "min_keep": 2}, "What binds is ignore '2': without it"),
        ({"only": ["0"]}, "What binds is only=['0'], which leaves 1 of 3 groups to shrink: without it"),
        ({"ratios": {"2": 0.9, "0": 0.5}}, "What binds is the ratio 0.9 of '2' or the ratio 0.5 of '0': without"),
        ({"min_keep": 12}, "What binds is min_keep=12: without it"),
        ({"round_to": 8, "ignore": []}, "What binds is round_to=8: without it"),
        (
            {"ties": [["0", "2", "4"]], "ignore": ["6"]},
            "What binds is ignore '6' or the tie ['0', '2', '4'], which holds '4', left whole by ignore '6': without",
        ),
    ],
)
def test_the_constraint_that_binds_is_named(constraints, named):
    budget = {"params": "25%"} if "ties" in constraints else {"params": "15%"}
    text = said(budget, **constraints)
    assert named in text, text
    assert "Raise the budget, or relax that" in text
    for other in ("round_to", "min_keep", "ratios", "only", "ties", "keep_module"):
        assert other in named or other not in text, text


def test_without_what_is_named_the_budget_is_met():
    model = nn.Sequential(*LAYERS)
    assert "ignore '2'" in said({"params": "15%"}, ignore=["2"], min_keep=2)
    result = mp.prune(model, torch.ones(2, 4), budget={"params": "15%"}, min_keep=2, **TASK)
    assert result.record["cost"]["after"]["params"] <= 0.15 * result.record["cost"]["before"]["params"]


def test_several_constraints_may_bind_together():
    text = said({"params": "10%"}, ignore=["0", "4"], min_keep=4)
    assert "more than one constraint, most of all ignore '" in text


def test_where_no_constraint_binds_the_largest_rest_is_named():
    model = nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 300))
    assert "No constraint binds: of what cannot be dropped, most is in 2." in said("params=1%", model)
