"""Pruning in rounds: budgets fall by one factor, plans compose, the whole cut is proved, kills change nothing."""

import copy

import pytest
import torch
from sample_networks import build

import metaprune as mp
from metaprune.core.errors import ConfigError, PlanError
from metaprune.protocol.registry import create_method
from metaprune.recover.config import RecoverConfig
from metaprune.report.rows import history_rows
from metaprune.testing.method_suite import small_data, small_network
from metaprune.testing.networks import TOYS, toy
from metaprune.testing.oracles import assert_untouched
from metaprune.train.config import TrainConfig

EXAMPLE = torch.zeros(2, 1, 28, 28)
SHORT = RecoverConfig(kind="finetune", train=TrainConfig(epochs=1, batch_size=32, lr=0.01, augment=False))


def pruned(kind="cnn", **options):
    given = {
        "budget": "macs=40%",
        "method": "magnitude",
        "data": small_data(),
        "progress": False,
        "rounds": 3,
    } | options
    return mp.prune(small_network(kind), EXAMPLE, **given)


@pytest.mark.parametrize("kind", ["cnn", "transformer"])
@pytest.mark.parametrize("form", ["auto", "graph"])
def test_without_recovery_rounds_drop_what_one_network_drops(kind, form):
    """Rounds on smaller and smaller networks, against the same shares of the original one after the other."""
    model = small_network(kind)
    with assert_untouched(model):
        result = mp.prune(model, EXAMPLE, budget={"macs": "40%"}, rounds=3, form=form, progress=False)
    network = mp.trace(model, EXAMPLE)
    assert result.pruned.error <= 1e-9
    assert result.record["cost"]["after"]["macs"] <= 0.4 * network.cost().macs
    alone = mp.cut(network, result.plan, form=form)
    x = torch.randn(3, 1, 28, 28)
    torch.testing.assert_close(result.model.eval()(x), alone.model.eval()(x), rtol=0, atol=0)


def test_budgets_fall_by_one_factor_and_each_round_drops_more():
    seen = []

    class Watching:
        name, needs_data = "watching", False

        def propose(self, task, budget, rng):
            seen.append((float(task.network.cost().macs), budget.bounds(task.network.cost())["macs"]))
            return create_method("uniform").propose(task, budget, rng)

    result = pruned(method=Watching(), recover=SHORT)
    full = result.record["cost"]["before"]["macs"]
    assert [round(bound / full, 3) for _, bound in seen] == [round(0.4 ** (k / 3), 3) for k in (1, 2, 3)]
    costs = [cost for cost, _ in seen]
    assert costs[0] == full and costs[1] <= seen[0][1] and costs[2] <= seen[1][1]
    assert list(result.record["history"]) == ["recover round 1", "recover round 2", "recover"]
    assert result.record["rounds"] == 3
    assert len(history_rows(result.record)) == 3
    assert result.record["recovery"]["samples"] == 3 * 96


def test_the_last_cut_is_proved_with_the_weights_that_the_rounds_before_left():
    """The recovered network of round one, cut by hand, is the result of a second round that does not recover."""
    left = []

    def once(model, data):
        if not left:
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(0.01)
            left.append(copy.deepcopy(model))

    result = pruned(recover=once, rounds=2)
    assert result.pruned.error <= 1e-9
    smaller = mp.trace(left[0], EXAMPLE)
    bound = 0.4 * result.record["cost"]["before"]["macs"]
    by_hand = mp.prune(left[0], EXAMPLE, budget={"macs": bound}, progress=False)
    assert smaller.cost(by_hand.plan).macs == result.record["cost"]["after"]["macs"]
    x = torch.randn(3, 1, 28, 28)
    torch.testing.assert_close(result.model.eval()(x), by_hand.model.eval()(x), rtol=0, atol=1e-6)


def test_a_killed_round_goes_on_where_it_was(tmp_path):
    whole = pruned(recover=SHORT, checkpoint_dir=tmp_path / "whole")
    calls = []

    class Dying:
        name, needs_data = "magnitude", False

        def propose(self, task, budget, rng):
            calls.append(task)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return create_method("magnitude").propose(task, budget, rng)

    with pytest.raises(KeyboardInterrupt):
        pruned(method=Dying(), recover=SHORT, checkpoint_dir=tmp_path / "killed")
    trained = sorted(p.name for p in (tmp_path / "killed" / "rounds").iterdir())
    assert trained == ["1", "2"]
    resumed = pruned(recover=SHORT, checkpoint_dir=tmp_path / "killed")
    assert resumed.plan == whole.plan
    state = resumed.model.state_dict()
    assert all(torch.equal(t, state[name]) for name, t in whole.model.state_dict().items())


def test_ratios_are_of_the_full_width_in_every_round():
    model = small_network("cnn")
    network = mp.trace(model, EXAMPLE)
    group = next(g for g in network.space if g.role == "hidden")
    result = mp.prune(model, EXAMPLE, budget="macs=50%", rounds=3, ratios={group.name: 0.5}, progress=False)
    assert len(result.plan.keep[group.name]) == group.width // 2


@pytest.mark.parametrize("name", [*TOYS, "resnet20_B", "vit_micro"])
def test_plans_of_rounds_compose_on_every_form_of_network(name):
    model, args, kwargs = (toy(name).model, toy(name).args, toy(name).kwargs) if name in TOYS else build(name)
    result = mp.prune(model, args, kwargs, budget="params=75%", rounds=2, progress=False)
    assert result.pruned.error <= 1e-9
    assert result.record["cost"]["after"]["params"] <= 0.75 * result.record["cost"]["before"]["params"]


def test_what_rounds_are_not_for_is_said_at_once(tmp_path):
    with pytest.raises(PlanError, match="masks single weights"):
        pruned(method="weight_masks", budget="nonzero=50%")
    with pytest.raises(ConfigError, match="rounds"):
        pruned(rounds=0)
    with pytest.raises(ConfigError, match="of the full network"):
        pruned(method="pruningnet", method_options={"artifact": str(tmp_path)})


def test_a_replayed_record_does_the_same_rounds():
    result = pruned(recover="bn", rounds=2)
    again = mp.replay(result.record, small_network("cnn"), EXAMPLE, data=small_data(), progress=False)
    assert again.plan == result.plan and again.record["rounds"] == 2
