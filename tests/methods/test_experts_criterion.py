"""The criterion of experts, against its definition."""

import numpy as np
import pytest
import torch
from mixtures import EXPERTS, TAKEN, Mixture, X, by_index, by_one_hot, by_scatter, by_two_dimensions, experts_of
from torch.utils.data import TensorDataset

import metaprune as mp
from metaprune.protocol.method import PruneTask
from metaprune.protocol.registry import create_method

INPUTS = torch.randn(96, 5, generator=torch.Generator().manual_seed(2))


def task_of(model):
    samples = TensorDataset(INPUTS, torch.zeros(len(INPUTS), 3))
    return PruneTask(mp.trace(model, X), mp.as_data((samples, samples), objective="regression"))


def scores_of(model, plan=None):
    task = task_of(model)
    (group,) = experts_of(task.network)
    method = create_method("experts", {"normalise": "none", "samples": len(INPUTS)})
    return method.scores(task, plan or mp.Plan(), mp.Rng(0))[task.network.space.index[group.name]]


@torch.no_grad()
def by_definition(model, keep=tuple(range(EXPERTS))):
    """Mean over the tokens of an expert of routed weight x norm of its output, one token after the other."""
    sums, tokens = np.zeros(EXPERTS), np.zeros(EXPERTS)
    for x in model.inp(INPUTS):
        logits = model.router(x)[list(keep)]
        weights, chosen = logits.softmax(-1).topk(TAKEN)
        for weight, e in zip(weights / weights.sum(), (keep[i] for i in chosen), strict=True):
            sums[e] += float(weight * (model.down[e] @ (model.up[e] @ x).relu()).norm())
            tokens[e] += 1
    return sums / np.maximum(tokens, 1)


@pytest.mark.filterwarnings("ignore:no layer with weights reads")
@pytest.mark.parametrize("dispatch", [by_index])
@pytest.mark.filterwarnings("error:routed outputs of")
def test_scores_are_the_definition(dispatch):
    model = Mixture(dispatch)
    assert np.allclose(scores_of(model), by_definition(model), rtol=1e-5)
    keep = (0, 2, 3, 5)
    plan = mp.Plan({experts_of(mp.trace(model, X))[0].name: keep})
    assert np.allclose(scores_of(model, plan), by_definition(model, keep), rtol=1e-5)


@pytest.mark.filterwarnings("ignore:no layer with weights reads")
@pytest.mark.parametrize("dispatch", [by_scatter, by_two_dimensions, by_one_hot])
def test_other_dispatches_are_ranked_by_what_reads_them(dispatch):
    with pytest.warns(UserWarning, match="^routed outputs of router are not found: ranked by activation$") as caught:
        scores = scores_of(Mixture(dispatch))
    assert sum("routed outputs" in str(w.message) for w in caught) == 1
    assert (scores > 0).all() and np.ptp(scores) > 0


@pytest.mark.filterwarnings("ignore:no layer with weights reads")
@pytest.mark.parametrize("method", ["experts", "activation", "random", "magnitude", "taylor", "uniform"])
def test_every_method_sees_experts(method):
    task = task_of(Mixture(by_index))
    (group,) = experts_of(task.network)
    data = task.data if method in ("experts", "activation", "taylor") else None
    result = mp.prune(
        task.network.model, X, budget="params=60%", method=method, data=data, only=["*:experts"], progress=False
    )
    kept = result.plan.keep[group.name]
    assert TAKEN <= len(kept) < EXPERTS and list(result.plan.keep) == [group.name]
    if method == "experts":
        scores = by_definition(task.network.model)
        assert min(scores[list(kept)]) > max(np.delete(scores, list(kept)))


@pytest.mark.filterwarnings("ignore:no layer with weights reads")
def test_the_gradient_of_a_sample_sees_experts():
    task = task_of(Mixture(by_index))
    scores = create_method("taylor", {"normalise": "none"}).scores(task, mp.Plan(), mp.Rng(0))
    (group,) = experts_of(task.network)
    assert np.ptp(scores[task.network.space.index[group.name]]) > 0
