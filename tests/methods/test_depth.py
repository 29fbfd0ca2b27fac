"""Whole branches by budget: the method for depth, and what rankings and allocations make of `min_keep=0`."""

import pytest
import torch
from torch import nn

import metaprune as mp
from metaprune.core.errors import ConfigError, PlanError
from metaprune.core.rng import Rng
from metaprune.core.strict import from_dict
from metaprune.data import as_data
from metaprune.methods import create_method
from metaprune.protocol.artifact import plain
from metaprune.protocol.method import PruneTask
from metaprune.search.units import branch_units, units_of
from metaprune.testing.method_suite import small_data, small_network
from metaprune.testing.networks import Lambda
from metaprune.tracing import trace
from metaprune.values import Budget, Constraints

DATA = small_data()
NETWORKS = {k: trace(small_network(k), torch.zeros(2, 1, 28, 28)) for k in ("cnn", "transformer")}


def streams(*sizes):
    """A stream of 4 channels with one MLP per size, which adds that much."""

    def forward(m, x):
        for block in m.blocks:
            x = x + block(x)
        return m.head(x)

    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4)) for _ in sizes]
    with torch.no_grad():
        for block, size in zip(blocks, sizes, strict=True):
            block[2].weight.mul_(size)
            block[2].bias.mul_(size)
    return trace(Lambda(forward, blocks=nn.ModuleList(blocks), head=nn.Linear(4, 3)).eval(), torch.randn(2, 4))


SAMPLES = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
DATA_OF_FOUR = as_data((torch.utils.data.TensorDataset(SAMPLES, torch.zeros(32, dtype=torch.long)),) * 2)


@pytest.mark.parametrize("criterion", ["cosine", "loss"])
@pytest.mark.parametrize("iterative", [True, False])
def test_what_adds_least_goes_first(criterion, iterative):
    network = streams(1.0, 0.01, 2.0, 0.1)
    method = create_method("depth", {"criterion": criterion, "iterative": iterative, "samples": 8, "batch_size": 4})
    proposal = method.propose(PruneTask(network, DATA_OF_FOUR), Budget(macs="55%"), Rng(0))
    assert [entry["branch"] for entry in proposal.details["depth"]["order"]] == ["blocks.1", "blocks.3"]
    assert set(proposal.plan.keep) == {"blocks.1.0", "blocks.3.0"}


def test_cosine_is_one_minus_that_of_the_stream():
    network = streams(1.0, 0.5)
    method = create_method("depth", {"criterion": "cosine", "samples": 32, "iterative": False})
    proposal = method.propose(PruneTask(network, DATA_OF_FOUR), Budget(macs="40%"), Rng(0))
    told = {e["branch"]: e["influence"] for e in proposal.details["depth"]["order"]}
    x = SAMPLES
    for i, block in enumerate(network.model.blocks):
        after = x + block(x).detach()
        expected = 1 - torch.nn.functional.cosine_similarity(x, after, dim=1).mean()
        assert told[f"blocks.{i}"] == pytest.approx(float(expected), rel=1e-4)
        x = after


def test_without_branches_it_says_so():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    network = trace(model, torch.randn(2, 4))
    with pytest.raises(PlanError, match="no branch may be dropped"):
        create_method("depth").require_feasible(PruneTask(network, DATA_OF_FOUR), Budget(macs="100%"))


# ---------------------------------------------------------------------------------------------- min_keep=0


def test_patterns_say_which_branches_may_go():
    space = NETWORKS["transformer"].space
    dropped = lambda **k: [space.branch_groups.index(u.groups.tolist()) for u in branch_units(space, Constraints(**k))]  # noqa: E731
    assert dropped() == [] and dropped(min_keep=0) == list(range(8))
    assert dropped(min_keep={"blocks.1.mlp:branch": 0}) == [3]
    assert dropped(min_keep={"*.attn:branch": 0}) == [0, 2, 4, 6]
    assert dropped(min_keep={"blocks.1.mlp:branch": 2, "*:branch": 0}) == [0, 1, 2, 4, 5, 6, 7]
    assert dropped(min_keep=0, ignore=("blocks.0.*:branch",)) == [2, 3, 4, 5, 6, 7]
    assert dropped(min_keep=0, only=("*.mlp:branch",)) == [1, 3, 5, 7]
    assert dropped(min_keep=0, keep_config=True) == []
    assert all(u.levels.min() >= 1 for u in units_of(space, Constraints(min_keep=0)))
    with pytest.raises(PlanError, match="min_keep pattern 'nothing' matches"):
        branch_units(space, Constraints(min_keep={"nothing": 0}))
    with pytest.raises(ConfigError, match="whole numbers from 0 on"):
        Constraints(min_keep={"*": -1})


def test_recipes_and_records_hold_patterns():
    read = from_dict(Constraints, {"min_keep": {"*:branch": 0}, "whole": ["*.attn*"]}, "constraints")
    assert read == Constraints(min_keep={"*:branch": 0}, whole=("*.attn*",))
    assert from_dict(Constraints, plain(read), "constraints") == read
    assert from_dict(Constraints, {"min_keep": 0}, "constraints").min_keep == 0


METHODS = [("magnitude", {}), ("taylor", {"batches": 1, "steps": 2}), ("uniform", {}), ("random", {})]
METHODS += [pytest.param("magnitude", {"allocate": "sensitivity"}, marks=pytest.mark.thorough)]
METHODS += [("gates", {"steps": 2, "batch_size": 32})]


@pytest.mark.parametrize(("method", "options"), METHODS)
@pytest.mark.parametrize("kind", ["cnn", "transformer"])
def test_rankings_and_allocations_meet_budgets_with_branches_that_may_go(method, options, kind):
    network = NETWORKS[kind]
    task = PruneTask(network, DATA, Constraints(min_keep=0), batch_size=32)
    for share in ("60%", "12%"):  # the second takes branches of the transformer in any case
        budget = Budget(params=share)
        plan = create_method(method, options).propose(task, budget, Rng(0)).plan
        assert network.cost(plan).params <= budget.bounds(network.cost())["params"]
        assert mp.cut(network, plan, form="graph").error is not None
        widths = plan.widths(network.space)
        assert share == "60%" or method != "uniform" or kind == "cnn" or (widths == 0).any() or widths.min() == 1


def test_a_layer_that_says_nothing_is_dropped_by_ranking():
    network = streams(1.0, 0.0, 1.0)
    with torch.no_grad():
        for parameter in network.model.blocks[1].parameters():
            parameter.zero_()
    task = PruneTask(network, constraints=Constraints(min_keep=0))
    plan = create_method("magnitude", {"normalise": "none"}).propose(task, Budget(params="75%"), Rng(0)).plan
    assert plan.keep["blocks.1.0"] == ()


@pytest.mark.parametrize("compensate", ["bias", "least-squares"])
def test_a_run_without_a_branch_is_compensated_and_recovered(compensate):
    result = prune_depth(small_network("transformer"), compensate=compensate)
    record = result.record
    assert record["cost"]["after"]["params"] <= 0.7 * record["cost"]["before"]["params"]
    assert result.plan.keep and not any(result.plan.keep.values())
    assert record["method_details"]["depth"]["order"] and record["compensation"]["layers"]


def prune_depth(model, **options):
    train = mp.TrainConfig(epochs=1, batch_size=32)
    return mp.prune(
        model,
        torch.zeros(2, 1, 28, 28),
        budget="params=70%",
        method="depth",
        method_options={"samples": 16},
        recover=mp.RecoverConfig(kind="finetune", train=train),
        data=DATA,
        progress=False,
        **options,
    )


def test_rounds_refuse_what_they_would_lose():
    with pytest.raises(PlanError, match="cannot carry on what the dropped branch"):
        prune_depth(small_network("transformer"), rounds=2)
