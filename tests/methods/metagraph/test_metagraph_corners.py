"""Graph metanetwork: small data, odd networks, folders that hold something else."""

import dataclasses

import pytest
import torch
from controls import NoRewrite, control
from test_metagraph import QUICK, data_model, task_of
from torch import nn

from metaprune.core.errors import CollapseWarning, ConfigError, InfeasibleBudgetError, WeightsError
from metaprune.core.rng import Rng
from metaprune.methods.metagraph.build_graph import build_network_graph
from metaprune.methods.metagraph.data_models import data_models
from metaprune.methods.metagraph.metanet import Graph
from metaprune.methods.metagraph.pruner import some_batches
from metaprune.methods.metagraph.shrinkage import Shrinkage
from metaprune.protocol.method import PruneTask
from metaprune.testing.method_suite import small_network
from metaprune.tracing import trace
from metaprune.values import Budget

pytestmark = pytest.mark.filterwarnings("ignore:no state of the metanetwork did better")


@pytest.mark.parametrize("initial", [0.3, 0.76])
def test_what_the_initial_pruning_dropped_stays_dropped(initial):
    method, task = control(NoRewrite, QUICK, initial=initial), task_of()
    plan = method.propose(task, Budget(macs="80%"), Rng(0)).plan
    assert task.network.cost(plan).macs <= initial * task.network.cost().macs


def test_data_models_of_something_else_are_made_anew(tmp_path):
    def made(method, folder):
        return data_models([task_of(folder=folder)], method.data_models, method.ranking, Rng(0), False)

    first = made(QUICK, tmp_path)
    again = made(QUICK, tmp_path)
    assert [m.seconds for m in again] == [m.seconds for m in first]  # read, not made
    assert all(torch.equal(a.tensors[n], t) for a, b in zip(again, first, strict=True) for n, t in b.tensors.items())
    whole = dataclasses.replace(QUICK, data_models=dataclasses.replace(QUICK.data_models, shares=(1.0, 1.0)))
    assert any(m.plan.keep for m in first)
    assert not any(m.plan.keep for m in made(whole, tmp_path))
    assert not (tmp_path / "checkpoints" / "data_models" / "0-0" / "light").exists()


def test_data_models_from_scratch_share_nothing_with_the_task():
    config = dataclasses.replace(QUICK.data_models, shares=(1.0, 1.0), scratch=QUICK.data_models.train)
    task = task_of()
    first, second = data_models([task], config, QUICK.ranking, Rng(0), False)
    for a, b in ((first.tensors, second.tensors), (first.tensors, task.network.tensors)):
        weights = [n for n in a if n.endswith("weight") and a[n].dim() > 1]
        assert weights
        assert all(torch.cosine_similarity(a[n].flatten(), b[n].flatten(), 0) < 0.5 for n in weights)


def test_a_fit_of_another_seed_is_not_taken(tmp_path):
    task = task_of(folder=tmp_path)
    QUICK.propose(task, Budget(macs="60%"), Rng(0))
    with pytest.raises(ConfigError, match="another seed"):
        QUICK.propose(task, Budget(macs="60%"), Rng(1))


def test_more_tuning_steps_than_batches():
    meta = dataclasses.replace(QUICK.meta, tune_steps=20, steps=1)
    artifact = dataclasses.replace(QUICK, meta=meta).fit([task_of()], Rng(0))
    assert len(artifact.info["history"]["rows"]) == 1


def test_a_last_batch_of_one_sample_is_left_out():
    split = task_of().data.train.take(33)
    found = some_batches(split, 16, 4, torch.device("cpu"), None)
    assert [len(labels) for _, labels in found] == [16, 16]
    assert len(some_batches(split.take(1), 16, 4, torch.device("cpu"), None)) == 1


def test_an_impossible_initial_pruning_ends_before_meta_training(monkeypatch):
    monkeypatch.setattr(type(QUICK), "fit", lambda *_: pytest.fail("was fitted"))
    with pytest.raises(InfeasibleBudgetError):
        dataclasses.replace(QUICK, initial=1e-4).propose(task_of(), Budget(macs="50%"), Rng(0))
    masked = dataclasses.replace(QUICK, initial=0.8, pattern="2:4")
    with pytest.raises(InfeasibleBudgetError, match="lower `initial`"):
        masked.propose(task_of(), Budget(macs="50%", nonzero="60%"), Rng(0))


def test_a_network_that_can_shed_only_a_little():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.straight, self.small, self.head = nn.Linear(784, 10), nn.Linear(50, 8), nn.Linear(8, 10)

        def forward(self, x):
            x = x.flatten(1)
            return self.straight(x) + self.head(self.small(x[:, :50]).relu())

    task = task_of(model=Net())
    with pytest.raises(InfeasibleBudgetError):
        task.allocator(Budget(macs="80%"))
    QUICK.fit([task], Rng(0))


def test_options_that_an_artifact_overrules_are_said():
    artifact = QUICK.fit([task_of()], Rng(0))
    other = dataclasses.replace(
        QUICK, metanet=dataclasses.replace(QUICK.metanet, hidden=12), criterion_options={"p": 2}
    ).restore(artifact)
    with pytest.warns(UserWarning) as said:
        other.propose(task_of(), Budget(macs="60%"), Rng(0))
    texts = [str(w.message) for w in said]
    assert any("other options of metanet: its own are used" in t for t in texts)
    assert any("learned to prepare for" in t for t in texts)


def test_an_artifact_that_rewrites_nothing_says_so():
    method = dataclasses.replace(QUICK, meta=dataclasses.replace(QUICK.meta, lr=1e-12))
    artifact = method.fit([task_of()], Rng(0))
    artifact = dataclasses.replace(
        artifact,
        tensors={
            n: torch.zeros_like(t) if "_out" in n or "kernel_" in n or "vector_" in n else t
            for n, t in artifact.tensors.items()
        },
    )
    with pytest.warns(CollapseWarning, match="rewrites nothing"):
        method.restore(artifact).propose(task_of(), Budget(macs="60%"), Rng(0))


def damaged(artifact, how):
    tensors, info = dict(artifact.tensors), dict(artifact.info)
    name = next(iter(tensors))
    if how == "NaN":
        tensors[name] = torch.full_like(tensors[name], float("nan"))
    elif how == "sizes":
        tensors[name] = tensors[name][:1].clone()
    elif how == "features":
        info["features"] = []
    else:
        del info["options"]
    return dataclasses.replace(artifact, tensors=tensors, info=info)


@pytest.mark.parametrize(
    ("how", "text"),
    [("NaN", "NaN"), ("sizes", "belong together"), ("features", "other node"), ("options", "belong together")],
)
def test_a_damaged_artifact_is_refused_before_any_training(how, text):
    """By `require_feasible`, which runs before a network is trained."""
    task = task_of()
    method = QUICK.restore(damaged(QUICK.fit([task], Rng(0)), how))
    with pytest.raises(ConfigError, match=text):
        method.require_feasible(task, Budget(macs="60%"))
    control(NoRewrite, method).require_feasible(task, Budget(macs="60%"))  # has no use for it


def test_a_folder_without_an_artifact_is_refused_before_any_training(tmp_path):
    with pytest.raises(ConfigError, match="no artifact of metagraph"):
        dataclasses.replace(QUICK, artifact=str(tmp_path)).require_feasible(task_of(), Budget(macs="60%"))


class Rows(nn.Module):
    """Reads an image row by row; most of its weights are in `mid`."""

    def __init__(self, mid):
        super().__init__()
        self.first, self.mid, self.head = nn.Linear(28, 16), mid, nn.Linear(24, 10)

    def forward(self, x):
        x = self.mid(self.first(x.flatten(1, 2)).relu())
        return self.head((x[0] if isinstance(x, tuple) else x).mean(1))


def test_what_the_graph_cannot_express_is_said():
    method = QUICK.restore(QUICK.fit([task_of()], Rng(0)))
    task = task_of(model=Rows(nn.LSTM(16, 24, batch_first=True)).eval())
    assert build_network_graph(task.network).breaks == ("head",)
    with pytest.warns(UserWarning) as said:
        method.propose(task, Budget(macs="90%"), Rng(0))
    texts = [str(w.message) for w in said]
    assert any("does not hold 85% of the parameters (mid." in t for t in texts)
    assert any("the channels that are read by head" in t for t in texts)


def test_statistics_that_are_not_finite_are_refused():
    model = small_network("cnn")
    next(b for n, b in model.named_buffers() if n.endswith("running_var"))[0] = float("nan")
    with pytest.raises(WeightsError, match="running_var"):
        QUICK.propose(task_of(model=model), Budget(macs="50%"), Rng(0))


def test_infinity_in_a_buffer_is_a_mask():
    model = small_network("cnn")
    model.register_buffer("mask", torch.full((4, 4), float("-inf")).triu(1))
    task = task_of(model=model)
    plan = control(NoRewrite, QUICK).propose(task, Budget(macs="60%"), Rng(0)).plan
    assert task.network.cost(plan).macs <= 0.6 * task.network.cost().macs


class Standardised(nn.Module):
    """A weight that is normalised on its way, and looks like itself again by `reshape_as`."""

    def __init__(self):
        super().__init__()
        self.weight, self.head = nn.Parameter(torch.randn(6, 3, 3, 3)), nn.Linear(6, 2)

    def forward(self, x):
        flat = self.weight.reshape(1, 6, -1)
        weight = torch.batch_norm(flat, None, None, None, None, True, 0.0, 1e-5, False).reshape_as(self.weight)
        return self.head(torch.conv2d(x, weight, padding=1).relu().mean((2, 3)))


class Windows(nn.Module):
    """A linear layer whose rows overlap in one vector."""

    def __init__(self):
        super().__init__()
        self.vector, self.head = nn.Parameter(torch.randn(20)), nn.Linear(5, 2)

    def forward(self, x):
        return self.head(nn.functional.linear(x, self.vector.unfold(0, 16, 1)).relu())


def test_a_standardised_weight_is_covered_and_overlapping_rows_are_not():
    network_graph = build_network_graph(trace(Standardised(), torch.zeros(2, 3, 8, 8)))
    assert "weight" not in dict(network_graph.uncovered)
    network_graph = build_network_graph(trace(Windows(), torch.zeros(2, 16)))
    assert "vector" in dict(network_graph.uncovered)


def test_a_network_without_any_covered_weight_is_refused():
    model = nn.Conv2d(3, 4, 20, bias=False)  # 400 taps, more than an edge may carry
    task = PruneTask(trace(model, torch.zeros(1, 3, 20, 20)))
    with pytest.raises(ConfigError, match="no parameter of this network is in its graph: weight"):
        Graph(build_network_graph(task.network), task.network.tensors)


def test_a_group_without_trained_weights_weighs_nothing():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("first", torch.randn(12, 8))
            self.register_buffer("second", torch.randn(5, 12))
            self.head = nn.Linear(5, 2)

        def forward(self, x):
            return self.head(nn.functional.linear(nn.functional.linear(x, self.first).relu(), self.second).relu())

    task = PruneTask(trace(Net(), torch.zeros(2, 8)))
    shrinkage = Shrinkage(task.network)
    tensors = data_model(task).tensors
    assert torch.isfinite(shrinkage.loss(tensors, shrinkage.weights(tensors)))
