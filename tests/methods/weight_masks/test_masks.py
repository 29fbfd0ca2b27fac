"""Masks of single weights: the patterns, what they leave, how they are held, and what goes wrong."""

import dataclasses
import io

import numpy as np
import pytest
import torch
from controls import NoRewrite
from hypothesis import given, settings
from hypothesis import strategies as st
from report_pages import rendered, summarise
from report_records import full as full_record
from rich.console import Console
from torch import nn

import metaprune as mp
from metaprune.core.errors import ConfigError, InfeasibleBudgetError, PlanError, WeightsError
from metaprune.core.rng import Rng
from metaprune.cost.soft import SoftCost
from metaprune.methods.metagraph.method import MetaGraph
from metaprune.methods.weight_masks.method import WeightMasks, largest, layer_weights, n_of_m, parse_pattern, shares
from metaprune.protocol.method import PruneTask, require_feasible
from metaprune.protocol.registry import create_method
from metaprune.recover.config import RecoverConfig
from metaprune.testing import assert_untouched
from metaprune.testing.method_suite import small_data, small_network
from metaprune.testing.oracles import random_plan
from metaprune.tracing import trace
from metaprune.train.config import TrainConfig
from metaprune.train.loop import _Run
from metaprune.train.masks import held_at_zero
from metaprune.values import Budget, Constraints, Plan, Proposal

IMAGE = torch.zeros(2, 1, 28, 28)
TUNE = TrainConfig(epochs=2, batch_size=32, augment=False)


def mlp():
    with Rng(0).torch_global():
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 10)).eval()


def task_of(model, **limits):
    return PruneTask(trace(model, IMAGE), small_data(), Constraints(**limits), batch_size=32)


# ---------------------------------------------------------------------------------------------------- patterns


@settings(deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 4),
    st.sampled_from([(), (3,), (2, 3), (3, 3)]),
    st.sampled_from([(1, 2), (2, 4), (1, 4), (3, 8)]),
    st.integers(0, 99),
    st.booleans(),
)
def test_n_of_m_keeps_the_n_largest_of_every_m_inputs(outputs, groups, kernel, pattern, seed, ties):
    n, m = pattern
    weight = torch.randn(outputs, groups * m, *kernel, generator=Rng(seed).torch())
    weight = weight.sign() if ties else weight
    mask = n_of_m(weight, n, m)
    assert mask.shape == weight.shape
    for row, kept in zip(weight, mask, strict=True):  # input channels are the fastest index, kernel positions above
        values = row.flatten(1).T.reshape(-1, m) if kernel else row.reshape(-1, m)
        chosen = kept.flatten(1).T.reshape(-1, m) if kernel else kept.reshape(-1, m)
        assert (chosen.sum(1) == n).all()
        for value, choice in zip(values.abs(), chosen, strict=True):
            assert value[choice].min() >= value[~choice].max()


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=6), st.integers(0, 10**6), st.sampled_from(["global", "layer"])
)
def test_unstructured_masks_keep_exactly_so_many_and_the_largest(sizes, draw, scope):
    keep = len(sizes) + draw % (sum(sizes) - len(sizes) + 1)
    counts = shares(sizes, keep)
    assert sum(counts) == keep and all(1 <= c <= s for c, s in zip(counts, sizes, strict=True))
    weights = {str(i): torch.randn(1, s, generator=Rng(i).torch()) for i, s in enumerate(sizes)}
    masks = largest(weights, keep, scope)
    assert sum(int(m.sum()) for m in masks.values()) == keep
    for name, mask in masks.items():
        assert mask.any() and mask.shape == weights[name].shape
        gone = weights[name].abs()[~mask]
        assert not len(gone) or weights[name].abs()[mask].min() >= gone.max()


def test_patterns_are_read_strictly():
    assert parse_pattern("unstructured") is None
    assert parse_pattern("2:4") == (2, 4)
    for wrong in ("4:2", "2:2", "0:4", "2-4", "", "N:M", 2):
        with pytest.raises(ConfigError, match="is not known: unstructured, or N:M"):
            WeightMasks(pattern=wrong)
    with pytest.raises(ConfigError, match="is not known: channels, unstructured"):
        MetaGraph(objective="rewrite", pattern="channel")
    with pytest.raises(ConfigError, match="fixes every layer"):
        WeightMasks(pattern="2:4", scope="layer")
    with pytest.raises(ConfigError, match="Did you mean 'layer'"):
        create_method("weight_masks", {"scope": "layers"})


class Mixed(nn.Module):
    """Layers that N:M knows (packed projections too), and others."""

    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(1, 4, 2, stride=2)
        self.conv = nn.Conv2d(4, 8, 2, groups=2)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.place = nn.Parameter(torch.randn(1, 9, 8))
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.conv(self.up(x))[:, :, :3, :3].flatten(2).transpose(1, 2) + self.place + self.token
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


def test_which_weights_are_masked():
    network = trace(Mixed().eval(), torch.randn(2, 1, 8, 8))
    inside = {"conv.weight", "attention.in_proj_weight", "attention.out_proj.weight", "head.weight"}
    assert layer_weights(network) == inside
    found = WeightMasks(pattern="2:4").propose(PruneTask(network), Budget.parse("macs=100%"), Rng(0))
    assert set(found.masks) == inside  # two channels a group, at four positions: eight inputs
    assert found.details["masks"]["pattern"] == "2:4"
    assert set(found.details["masks"]["whole"]) == {"up.weight", "place"}
    free = WeightMasks().propose(PruneTask(network), Budget.parse("nonzero=40%"), Rng(0))
    assert set(free.masks) == inside | {"up.weight", "place"}  # no biases, no class token


# ---------------------------------------------------------------------------------------------------- holding


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_training_moves_what_is_left_and_nothing_else(optimiser):
    model = nn.ModuleList([nn.LSTM(4, 6, batch_first=True), nn.Linear(6, 3)])
    masks = {n: torch.rand(p.shape) < 0.5 for n, p in model.named_parameters() if p.dim() > 1}
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    x, labels = torch.randn(32, 5, 4), torch.randint(0, 3, (32,))
    kinds = {"sgd": lambda p: torch.optim.SGD(p, 0.1, 0.9, weight_decay=0.1, nesterov=True), "adamw": torch.optim.AdamW}
    steps = kinds[optimiser](model.parameters())
    with held_at_zero(model, masks):
        for _ in range(5):
            steps.zero_grad()
            nn.functional.cross_entropy(model[1](model[0](x)[0][:, -1]), labels).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            steps.step()
            assert all((p[~masks[n]] == 0).all() for n, p in model.named_parameters() if n in masks)
    for name, parameter in model.named_parameters():
        kept = masks.get(name, torch.ones_like(parameter, dtype=torch.bool))
        assert not parameter._backward_hooks
        assert (parameter[kept] != before[name][kept]).all()


def test_hooks_go_and_zeros_stay_when_training_fails():
    layer = nn.Linear(2, 1, bias=False)
    with pytest.raises(KeyboardInterrupt), held_at_zero(layer, {"weight": torch.tensor([[True, False]])}):
        (layer(torch.tensor([[1.0, torch.inf]])) * 2).sum().backward()
        assert layer.weight.grad.tolist() == [[2.0, 0.0]]  # an infinite gradient does not become NaN
        with torch.no_grad():
            layer.weight += 1
        raise KeyboardInterrupt
    assert not layer.weight._backward_hooks
    assert layer.weight[0, 1] == 0


@pytest.mark.parametrize("kind", ["none", "bn", "finetune", "distil", "scratch"])
@pytest.mark.parametrize("form", ["module", pytest.param("graph", marks=pytest.mark.thorough)])
def test_what_is_masked_is_zero_after_recovery_and_in_the_archive(kind, form, tmp_path):
    model = small_network("cnn") if form == "graph" else mlp()
    with assert_untouched(model):
        result = mp.prune(
            model,
            IMAGE,
            budget="nonzero=55%",
            method="weight_masks",
            method_options={"pattern": "2:4"},
            data=small_data(),
            recover=RecoverConfig(kind=kind, train=TUNE),
            form=form,
            progress=False,
        )
    assert result.pruned.error <= 1e-9
    masks = result.pruned.masks
    for network in (
        result.model,
        mp.load(tmp_path / "it", factory=lambda: model) if result.save(tmp_path / "it") else None,
    ):
        named = dict(network.named_parameters())
        assert all((named[n][~m] == 0).all() for n, m in masks.items())
    told, cost = result.record["masks"], result.record["cost"]
    left = sum(int((p != 0).sum()) for p in result.model.parameters())
    assert told["nonzero"] == cost["after"]["nonzero"] >= left
    assert told["share"] == told["nonzero"] / cost["before"]["params"]
    assert told["pattern"] == "2:4"
    assert {k: v for k, v in cost["after"].items() if k != "nonzero"} == {
        k: v for k, v in cost["before"].items() if k != "nonzero"
    }
    if kind == "none":  # the original with zeros, and nothing else
        state = model.state_dict()
        for name, parameter in result.model.named_parameters():
            assert torch.equal(parameter, state[name] * masks.get(name, torch.tensor(True)))


def test_a_resumed_recovery_ends_as_an_uninterrupted_one(tmp_path, monkeypatch):
    options = {
        "budget": "nonzero=30%",
        "method": "weight_masks",
        "data": small_data(),
        "progress": False,
        "recover": RecoverConfig(kind="finetune", train=dataclasses.replace(TUNE, epochs=3, optimizer="adamw")),
    }
    whole = mp.prune(mlp(), IMAGE, checkpoint_dir=tmp_path / "a", **options)
    epoch = _Run.epoch

    def killed(self, number, *rest):
        if number == 2:
            raise KeyboardInterrupt
        return epoch(self, number, *rest)

    monkeypatch.setattr(_Run, "epoch", killed)
    with pytest.raises(KeyboardInterrupt):
        mp.prune(mlp(), IMAGE, checkpoint_dir=tmp_path / "b", **options)
    monkeypatch.setattr(_Run, "epoch", epoch)
    with pytest.raises(ConfigError, match=r"another run.*masks"):  # other masks are another run
        mp.prune(mlp(), IMAGE, checkpoint_dir=tmp_path / "b", **{**options, "budget": "nonzero=31%"})
    again = mp.prune(mlp(), IMAGE, checkpoint_dir=tmp_path / "b", **options)
    state = again.model.state_dict()
    assert all(torch.equal(t, state[n]) for n, t in whole.model.state_dict().items())


# ---------------------------------------------------------------------------------------------------- budgets


def test_nonzero_is_params_where_channels_are_dropped():
    task = task_of(small_network("cnn"))
    for share in ("70%", "35%"):
        plans = [
            create_method("magnitude").propose(task, Budget(**{m: share}), Rng(0)).plan for m in ("nonzero", "params")
        ]
        assert plans[0] == plans[1]
        assert task.network.cost(plans[0]).nonzero == task.network.cost(plans[0]).params
    costs = task.network.cost_model()
    widths = np.stack([random_plan(task.network.space, 0.5, s).widths(task.network.space) for s in range(3)])
    assert (costs.metric("nonzero", widths) == costs.metric("params", widths)).all()
    soft = [SoftCost(costs, m)(torch.from_numpy(widths[0] * 1.0)) for m in ("nonzero", "params")]
    assert soft[0] == soft[1]
    with pytest.raises(ConfigError, match="a share is written '50%'"):
        Budget(nonzero=0.5)


def test_the_cost_of_masks_counts_what_the_plan_keeps():
    network = trace(mlp(), IMAGE)
    plan = Plan({network.space.groups[0].name: (0, 3)})
    mask = torch.ones(8, 784, dtype=torch.bool)
    mask[:4, :10] = False  # rows 0..3; two of them stay
    cost = network.cost(plan, masks={"1.weight": mask})
    assert cost.params - cost.nonzero == cost.masked == 20
    assert network.cost(plan).masked == 0


def test_budgets_that_masks_cannot_meet():
    task = task_of(mlp())
    with pytest.raises(InfeasibleBudgetError, match=r"pattern 2:4 is .* nonzero parameters, 5\d\.\d+% of .* fixes the"):
        WeightMasks(pattern="2:4").propose(task, Budget(nonzero="40%"), Rng(0))
    for method in (WeightMasks(), NoRewrite(objective="rewrite", pattern="2:4")):
        with pytest.raises(InfeasibleBudgetError, match=r"leave dense costs as they are: macs .*Bound nonzero instead"):
            require_feasible(method, task, Budget(macs="50%"))  # before a dense network is trained
    everything = task_of(mlp(), only=("2",))
    with pytest.raises(InfeasibleBudgetError, match=r"without a mask: 1\.weight, 4\.weight"):
        WeightMasks().propose(everything, Budget(nonzero="50%"), Rng(0))
    with pytest.raises(PlanError, match="matches no group"):
        WeightMasks().propose(task_of(mlp(), ignore=("7",)), Budget(nonzero="50%"), Rng(0))
    broken = mlp()
    with torch.no_grad():
        broken[1].weight[0, 0] = torch.nan
    with pytest.raises(WeightsError, match=r"NaN or infinity in 1\.weight"):
        WeightMasks().propose(task_of(broken), Budget(nonzero="50%"), Rng(0))


class Given:
    """A method that proposes what it was made with."""

    name, needs_data = "given", False

    def __init__(self, *masks, plan=None):
        self.masks, self.plan = dict(masks), plan or Plan()

    def propose(self, task, budget, rng):
        return Proposal(self.plan, masks=self.masks)


def test_masks_of_any_method_are_checked_and_judged():
    half = torch.arange(8 * 784).view(8, 784) % 2 == 0
    result = mp.prune(mlp(), IMAGE, budget="nonzero=51%", method=Given(("1.weight", half)))
    assert result.record["masks"] == {"nonzero": 3250, "share": 3250 / 6386, "pattern": None, "whole": []}
    with pytest.raises(PlanError, match="over the budget"):
        mp.prune(mlp(), IMAGE, budget="nonzero=40%", method=Given(("1.weight", half)))
    for wrong in (("1.weight", half.float()), ("1.weight", half[:2]), ("2.running_mean", half), ("none", half)):
        with pytest.raises(PlanError, match="bool tensor of the full shape"):
            mp.prune(mlp(), IMAGE, budget="nonzero=51%", method=Given(wrong))


def test_masks_and_channels_together():
    """What is masked at full size is zero in its place among the survivors."""
    model = small_network("cnn")
    network = trace(model, IMAGE)
    plan = random_plan(network.space, 0.5, 0)
    masks = {n: torch.rand(t.shape, generator=Rng(1).torch()) < 0.5 for n, t in model.named_parameters() if t.dim() > 1}
    result = mp.prune(
        model,
        IMAGE,
        budget="nonzero=60%",
        method=Given(*masks.items(), plan=plan),
        data=small_data(),
        recover=RecoverConfig(kind="finetune", train=TUNE),
        progress=False,
    )
    assert result.pruned.error <= 1e-9
    held, named = network.at(plan).masks(masks), dict(result.model.named_parameters())
    assert sum(int((~m).sum()) for m in held.values()) == network.cost(plan, masks=masks).masked > 0
    assert all(m.shape == named[n].shape and (named[n][~m] == 0).all() for n, m in held.items())


# ---------------------------------------------------------------------------------------------------- metagraph


def test_the_flow_ends_in_masks_of_the_network_that_an_initial_pruning_left():
    method = NoRewrite(objective="rewrite", initial=0.8, pattern="1:2", finetune=dataclasses.replace(TUNE, epochs=1))
    budget = "macs=85%,nonzero=60%"
    result = mp.prune(
        small_network("cnn"),
        IMAGE,
        budget=budget,
        method=method,
        data=small_data(),
        recover=RecoverConfig(kind="bn", bn_batches=1),
        progress=False,
    )
    assert result.plan.keep
    assert result.record["cost"]["after"]["macs"] <= 0.85 * result.record["cost"]["before"]["macs"]
    steps = [s["step"] for s in result.record["method_details"]["metagraph"]["steps"]]
    assert steps[-1] == "masking"
    named, whole = dict(result.model.named_parameters()), result.record["masks"]["whole"]
    held = result.pruned.network.at(result.plan).masks(result.pruned.masks)
    assert held
    for name, mask in held.items():  # of the inputs that are left
        assert name not in whole
        assert (mask.movedim(1, -1).reshape(-1, 2).sum(1) == 1).all()
        assert (named[name][~mask] == 0).all()
    with pytest.raises(InfeasibleBudgetError, match="Bound nonzero instead"):
        method.propose(task_of(small_network("cnn")), Budget.parse("macs=50%,nonzero=50%"), Rng(0))


# ---------------------------------------------------------------------------------------------------- report


def test_the_report_says_what_masks_are_not():
    record = full_record()
    assert "dense hardware" not in rendered(record)
    record |= {"budget": {"nonzero": "51%"}, "bounds": {"nonzero": 137_000}}
    record["masks"] = {"nonzero": 136_000, "share": 0.499, "pattern": "2:4", "whole": ["conv1.weight"]}
    record["cost"]["before"]["nonzero"], record["cost"]["after"]["nonzero"] = 272_474, 136_000
    page, out = rendered(record), io.StringIO()
    summarise(record, Console(file=out, width=400))
    for text in (page, out.getvalue()):
        assert "(pattern 2:4): 136,000 parameters (49.9%) are left; without a mask: conv1.weight." in text
        assert "no speed-up on dense hardware" in text
        assert "Nonzero parameters" in text
    assert "nonzero parameters at most 137.00 k: reached 136.00 k, met" in out.getvalue()
