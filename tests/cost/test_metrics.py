"""A cost metric of one's own: one entry of the registry, and budgets, costs, searches, records and reports know it."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch

import metaprune as mp
from metaprune.core.errors import ConfigError, NotAvailableError
from metaprune.core.strict import from_dict
from metaprune.cost.metrics import COST_METRICS, CostMetric, budget_metrics, cost_metrics, register_cost_metric
from metaprune.cost.soft import SoftCost
from metaprune.report.html import render_report
from metaprune.report.rows import budget_rows, headline, summary_rows
from metaprune.runs.config import RunConfig
from metaprune.search.allocate import Allocator
from metaprune.search.encoding import BudgetSampler, WidthEncoding
from metaprune.testing import toy
from metaprune.tracing import trace
from metaprune.values import Budget, Constraints, Cost

FLOPS = CostMetric(
    name="flops", noun="FLOPs", of=lambda at: 2 * at.macs, unit="", count=True, soft=True, smaller="fewer"
)
WIRE_MJ = CostMetric(  # reads the terms: only matrices and kernels, weighed by what they cost to fetch
    name="wire_mj",
    noun="energy of the weights",
    unit="mJ",
    of=lambda at: 0.5 * at.total([t for name, t in at.terms.parameters.items() if name.endswith("weight")]),
)
SPEED = CostMetric(
    name="joules",
    noun="energy",
    of=lambda at: None if at.latency_ms is None else 5 * at.latency_ms,
    unit="J",
    needs_table=True,
    monotone=False,
)


@pytest.fixture
def registered() -> Iterator[None]:
    for metric in (FLOPS, WIRE_MJ, SPEED):
        register_cost_metric(metric)
    yield
    for metric in (FLOPS, WIRE_MJ, SPEED):
        COST_METRICS.unregister(metric.name)


def test_what_ships_and_its_order():
    assert [m.name for m in cost_metrics()] == [
        "macs",
        "params",
        "active_params",
        "nonzero",
        "peak_bytes",
        "weight_bytes",
        "memory_mb",
        "latency_ms",
    ]
    assert budget_metrics() == ("macs", "params", "active_params", "nonzero", "memory_mb", "latency_ms")


def test_a_network_is_pruned_under_a_budget_on_a_metric_of_ones_own(registered):
    made = toy("residual")
    result = mp.prune(made.model, made.args, budget="flops=50%", method="magnitude", progress=False)
    same = mp.prune(made.model, made.args, budget="macs=50%", method="magnitude", progress=False)
    assert result.plan == same.plan and result.plan.keep
    before, after = result.record["cost"]["before"], result.record["cost"]["after"]
    assert (before["flops"], after["flops"]) == (2 * before["macs"], 2 * after["macs"])
    assert result.record["budget"] == {"flops": "50%"}
    assert result.record["bounds"] == {"flops": before["macs"]}
    (bound,) = budget_rows(result.record)
    assert bound.metric == "FLOPs" and bound.met is True
    row = next(r for r in summary_rows(result.record) if r.key == "flops")
    assert row.label == "FLOPs" and row.factor.endswith("x fewer")
    assert "of FLOPs" in headline(result.record)
    assert "FLOPs" in render_report(result.record)


def test_a_metric_that_reads_the_terms(registered):
    network = trace(toy("residual").model, toy("residual").args)
    cost = network.cost()
    weights = sum(t.numel() for n, t in network.model.named_parameters() if n.endswith("weight"))
    assert cost.wire_mj == cost["wire_mj"] == 0.5 * weights
    plan = Allocator(network.space, network.cost_model(), Budget(wire_mj="60%"), Constraints()).by_ratio(
        [np.arange(g.width) for g in network.space]
    )
    assert network.cost(plan).wire_mj <= 0.6 * cost.wire_mj
    assert Budget(wire_mj=0.5)["wire_mj"] == 0.5  # no count: less than one is no mistake
    with pytest.raises(ConfigError, match="less than one"):
        Budget(flops=0.5)


def test_searches_and_gates_know_it(registered):
    network = trace(toy("residual").model, toy("residual").args)
    costs = network.cost_model()
    codec = WidthEncoding(network.space)
    sampler = BudgetSampler(codec, costs, Budget(flops="50%").bounds(network.cost()))
    widths = codec.widths(sampler.sample(8, np.random.default_rng(0)))
    assert (costs.metric("flops", widths) <= network.cost().macs).all()
    half = torch.from_numpy(network.space.widths / 2)
    assert SoftCost(costs, "flops")(half).item() == pytest.approx(SoftCost(costs, "macs")(half).item(), rel=1e-12)
    gates = half.clone().requires_grad_()
    SoftCost(costs, "wire_mj")(gates).backward()  # not soft: differences of single channels
    assert (gates.grad > 0).all()


def test_what_needs_a_table_says_so(registered):
    network = trace(toy("residual").model, toy("residual").args)
    assert "joules" not in network.cost() and network.cost().joules is None
    with pytest.raises(NotAvailableError, match="an energy budget needs a table"):
        Allocator(network.space, network.cost_model(), Budget(joules="50%"), Constraints())
    with pytest.raises(NotAvailableError, match="a cost in joules needs a table"):
        SoftCost(network.cost_model(), "joules")
    timed = network.with_latency(lambda widths: widths.sum(axis=1) / 10)
    assert timed.cost().joules == 5 * timed.cost().latency_ms
    plan = Allocator(network.space, timed.cost_model(), Budget(joules="50%"), Constraints()).by_ratio(
        [np.arange(g.width) for g in network.space]
    )
    assert timed.cost(plan).joules <= 0.5 * timed.cost().joules


def test_recipes_and_texts_know_it(registered):
    config = from_dict(RunConfig, {"model": {"spec": "zoo:resnet8"}, "budget": {"flops": "50%", "macs": 5}})
    assert config.budget == Budget(macs=5.0, flops="50%")
    assert Budget.parse("flops=50%,macs=5") == {"macs": "5", "flops": "50%"}
    assert config.to_dict()["budget"] == {"macs": 5.0, "flops": "50%"}
    with pytest.raises(ConfigError, match=r"unknown key budget.flop.*flops"):
        from_dict(RunConfig, {"model": {"spec": "zoo:resnet8"}, "budget": {"flop": "50%"}})
    with pytest.raises(ConfigError, match=r"no budget metric 'flop'\..*'flops'.* Known: macs, .*flops"):
        Budget.parse("flop=50%")


def test_unknown_metrics_and_bad_entries():
    with pytest.raises(
        ConfigError, match=r"no budget metric 'flops'\..*Known: macs, params, active_params, nonzero, mem"
    ):
        Budget(flops="50%")
    with pytest.raises(ConfigError, match="no budget metric 'peak_bytes'"):
        Budget.parse({"peak_bytes": 5})
    with pytest.raises(ConfigError, match="registered already"):
        register_cost_metric(CostMetric(name="macs", noun="mine", of=lambda at: at.macs))
    with pytest.raises(ConfigError, match="identifier"):
        CostMetric(name="int8 bytes", noun="bytes", of=lambda at: at.params)


def test_budget_and_cost_are_values():
    budget, cost = Budget(params=1e6, macs="50%"), Cost({"macs": 5, "params": 3, "nonzero": 2})
    for copied in (copy.deepcopy(budget), pickle.loads(pickle.dumps(budget))):
        assert (
            copied == budget and hash(copied) == hash(budget) and repr(copied) == "Budget(macs='50%', params=1000000.0)"
        )
    for copied in (copy.deepcopy(cost), pickle.loads(pickle.dumps(cost))):
        assert copied == cost and copied.masked == 1 and repr(copied) == "Cost(macs=5, params=3, nonzero=2)"
    assert budget.latency_ms is None and cost.latency_ms is None
    for value in (budget, cost):
        with pytest.raises(AttributeError, match="has no 'flops'"):
            _ = value.flops


def test_metrics_do_not_import_torch():
    code = "import sys, metaprune.values, metaprune.cost.metrics; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
