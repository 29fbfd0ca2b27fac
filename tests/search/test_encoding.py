"""Genomes, budget-aware sampling and repair."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metaprune.core.errors import ConfigError, InfeasibleBudgetError, PlanError
from metaprune.models import create
from metaprune.search.encoding import PAPER_GRID, BudgetSampler, WidthEncoding
from metaprune.tracing import trace
from metaprune.values import Constraints


@pytest.fixture(scope="module")
def network():
    return trace(create("zoo:resnet20", num_classes=10), torch.zeros(2, 3, 32, 32))


@pytest.fixture(scope="module")
def codec(network):
    return WidthEncoding(network.space)


def test_the_papers_grid_is_31_ratios_floored(network):
    assert PAPER_GRID[0] == 0.10
    assert PAPER_GRID[-1] == 1.0
    assert len(PAPER_GRID) == 31
    for width, distinct in ((22, 21), (32, 30), (33, 31), (512, 31)):  # counted in research/pruningnet.md, 1.2
        found = {max(1, width * (10 + 3 * i) // 100) for i in range(31)}
        assert len(found) == distinct
        group = trace(create("zoo:mlp", in_channels=1, image_size=4, widths=[width]), torch.zeros(2, 1, 4, 4)).space
        codec = WidthEncoding(group)
        assert sorted(found) == [int(codec.widths(np.array([i]))[0]) for i in range(distinct)]


def test_ends_and_nearest(network, codec):
    assert (codec.widths(codec.full) == network.space.widths).all()
    assert (codec.widths(codec.smallest) == np.maximum(1, network.space.widths // 10)).all()
    genomes = codec.random(50, np.random.default_rng(0))
    for genome in genomes:
        assert (codec.nearest(codec.widths(genome)) == genome).all()


def test_a_plan_keeps_the_first_channels_of_the_order(network):
    order = [np.arange(g.width)[::-1] for g in network.space]
    codec = WidthEncoding(network.space, order=order)
    widths = codec.widths(codec.smallest)
    plan = codec.plan(widths)
    for group, width in zip(network.space, widths, strict=True):
        assert plan.keep[group.name] == tuple(range(group.width - width, group.width))
    alive, same = codec.survivors(network, widths), network.survivors(plan)
    assert (alive._alive == same._alive).all()


def test_constraints_fix_genes_and_tie_groups(network):
    tied = WidthEncoding(network.space, Constraints(ties=(("=layer1.0.conv1", "=layer1.1.conv1"),), ignore=("=conv1",)))
    assert len(tied.genes) == len(network.space) - 2
    widths = tied.widths(tied.random(100, np.random.default_rng(0)))
    a, b, stem = (network.space.index[n] for n in ("layer1.0.conv1", "layer1.1.conv1", "conv1"))
    assert (widths[:, a] == widths[:, b]).all()
    assert (widths[:, stem] == network.space.widths[stem]).all()


@settings(max_examples=30, deadline=None)
@given(share=st.floats(0.015, 1.2), seed=st.integers(0, 1000), params=st.floats(0.05, 1.0))
def test_samples_meet_all_bounds_at_any_feasible_budget(network, codec, share, seed, params):
    full = network.cost()
    bounds = {"macs": share * full.macs, "params": params * full.params}
    sampler = BudgetSampler(codec, network.cost_model(), bounds)
    genomes = sampler.sample(64, np.random.default_rng(seed))
    cost = network.cost(codec.widths(genomes))
    assert (cost.macs <= bounds["macs"]).all()
    assert (cost.params <= bounds["params"]).all()
    again = sampler.sample(64, np.random.default_rng(seed))
    assert (genomes == again).all()


@pytest.mark.parametrize("share", [0.75, 0.25, 0.05])
def test_samples_fill_the_band(network, codec, share):
    sampler = BudgetSampler(codec, network.cost_model(), {"macs": share * network.cost().macs}, tolerance=0.05)
    load = sampler.load(sampler.sample(2000, np.random.default_rng(0)))
    assert load.max() <= 1
    assert load.min() >= 0.95


@pytest.fixture(scope="module")
def vit():
    return trace(create("zoo:vit_micro", num_classes=10), torch.zeros(2, 1, 28, 28))


@settings(max_examples=25, deadline=None)
@given(share=st.floats(0.1, 0.9), low=st.sampled_from([0.1, 0.25]), seed=st.integers(0, 1000))
def test_a_coarse_grid_fills_the_band_where_it_has_anything_in_it(vit, share, low, seed):
    codec = WidthEncoding(vit.space, grid=tuple(np.linspace(low, 1, 4)))
    sampler = BudgetSampler(codec, vit.cost_model(), {"macs": share * vit.cost().macs})
    load = sampler.load(sampler.sample(500, np.random.default_rng(seed)))
    assert load.max() <= 1
    if sampler.within(sampler.load(codec.random(2000, np.random.default_rng(seed)))).sum() >= 20:
        assert sampler.within(load).mean() > 0.99


def test_only_rows_below_the_band_are_drawn_again(vit, monkeypatch):
    codec = WidthEncoding(vit.space, grid=(0.1, 0.4, 0.7, 1.0))
    sampler = BudgetSampler(codec, vit.cost_model(), {"macs": 0.5 * vit.cost().macs})
    found = sampler.sample(1000, np.random.default_rng(0))
    monkeypatch.setattr("metaprune.search.encoding._REDRAWS", 0)
    once = sampler.sample(1000, np.random.default_rng(0))
    inside = sampler.within(sampler.load(once))
    assert 0.5 < inside.mean() < 0.9
    assert (found[inside] == once[inside]).all()
    assert (sampler.load(found) >= sampler.load(once)).all()
    assert sampler.within(sampler.load(found)).mean() > 0.995


def test_the_best_filled_stays_where_nothing_is_in_the_band():
    network = trace(create("zoo:mlp", in_channels=1, image_size=4, widths=[8, 8]), torch.zeros(2, 1, 4, 4))
    codec = WidthEncoding(network.space, grid=(0.5, 1.0))
    every = np.array([[a, b] for a in (0, 1) for b in (0, 1)])
    macs = np.sort(network.cost(codec.widths(every)).macs)
    sampler = BudgetSampler(codec, network.cost_model(), {"macs": 0.9 * macs[2]}, tolerance=0.01)
    load = sampler.load(sampler.sample(50, np.random.default_rng(0)))
    assert (load == sampler.load(every)[sampler.load(every) <= 1].max()).all() and load.max() < 0.99


def test_repair_leaves_what_fits_and_scales_the_rest(network, codec):
    sampler = BudgetSampler(codec, network.cost_model(), {"macs": 0.3 * network.cost().macs})
    draw = np.random.default_rng(0)
    good = sampler.sample(100, draw)
    assert (sampler.repair(good, draw) == good).all()
    wild = codec.random(200, draw)
    fixed = sampler.repair(wild, draw)
    load = sampler.load(fixed)
    assert (load <= 1).all()
    assert sampler.within(load).mean() > 0.99
    ranks = [np.corrcoef(a, b)[0, 1] for a, b in zip(wild / codec.sizes, fixed / codec.sizes, strict=True)]
    assert np.median(ranks) > 0.8  # proportions survive


def test_the_tightest_feasible_budget_starts_at_once(network, codec):
    smallest = network.cost(codec.widths(codec.smallest)).macs
    sampler = BudgetSampler(codec, network.cost_model(), {"macs": smallest})
    assert (sampler.sample(10, np.random.default_rng(0)) == codec.smallest).all()
    with pytest.raises(InfeasibleBudgetError, match="smallest reachable") as caught:
        BudgetSampler(codec, network.cost_model(), {"macs": smallest - 1})
    assert caught.value.smallest["macs"] == smallest


class Uneven:
    """A cost model whose time is lowest at full width of the first gene's groups: every channel dropped there costs."""

    def __init__(self, network, codec):
        self.first = codec.gene_of == 0
        self.full = network.space.widths

    def metric(self, name, widths):
        dropped, kept = self.full[self.first] - widths[..., self.first], widths[..., ~self.first]
        return 2.0 * dropped.sum(axis=-1) + kept.sum(axis=-1)

    def elements(self, widths):
        return {}


def test_a_budget_in_time_may_be_out_of_reach_of_the_smallest_structure_only(network, codec):
    costs = Uneven(network, codec)
    best = codec.smallest
    best[0] = codec.sizes[0] - 1
    reach = float(costs.metric("latency_ms", codec.widths(best)))
    assert reach < costs.metric("latency_ms", codec.widths(codec.smallest))
    sampler = BudgetSampler(codec, costs, {"latency_ms": 1.2 * reach})
    draw = np.random.default_rng(0)
    drawn = sampler.sample(50, draw)
    assert (sampler.load(drawn) <= 1).all() and len(np.unique(drawn, axis=0)) > 5
    assert (sampler.load(sampler.repair(codec.random(50, draw), draw)) <= 1).all()
    with pytest.raises(InfeasibleBudgetError, match="Latency was minimised by changing one unit at a time") as caught:
        BudgetSampler(codec, costs, {"latency_ms": 0.99 * reach})
    assert caught.value.smallest["latency_ms"] == reach


def test_bad_grids_and_nothing_to_search(network):
    for grid in ((), (0.0, 1.0), (0.5, 1.5)):
        with pytest.raises(ConfigError, match="keep ratios"):
            WidthEncoding(network.space, grid=grid)
    with pytest.raises(ConfigError, match="finer than the network: its widest group has 64"):
        WidthEncoding(network.space, grid=tuple(np.linspace(0.01, 1, 100)))
    with pytest.raises(PlanError, match="nothing to search"):
        WidthEncoding(network.space, Constraints(ignore=("*",)))
    with pytest.raises(ConfigError, match="tolerance"):
        BudgetSampler(WidthEncoding(network.space), network.cost_model(), {"macs": 1e7}, tolerance=0)


def test_branches_that_may_go_are_genes_and_most_random_structures_keep_them():
    network = trace(create("zoo:vit_micro"), torch.zeros(2, 1, 28, 28))
    space, plain = network.space, WidthEncoding(network.space)
    codec = WidthEncoding(space, Constraints(min_keep=0))
    assert codec.genes[: len(plain.genes)] == plain.genes
    assert set(codec.genes[len(plain.genes) :]) == {f"{b.name}:branch" for b in space.branches}
    genomes = codec.random(400, np.random.default_rng(0))
    widths = codec.widths(genomes)
    space.require_whole_branches(widths)
    empty = np.stack([(widths[:, groups] == 0).all(axis=1) for groups in space.branch_groups], axis=1)
    assert (empty == (genomes[:, len(plain.genes) :] == 0)).all()
    assert 0 < empty.mean() < 0.1
    for genome in genomes[empty.any(axis=1)][:3]:
        assert (codec.widths(codec.nearest(codec.widths(genome))) == codec.widths(genome)).all()
        macs = network.cost_model().metric("macs", codec.widths(genome)[None])
        assert network.at(codec.plan(codec.widths(genome))).cost().macs == macs[0]
    sampler = BudgetSampler(codec, network.cost_model(), {"macs": 0.25 * network.cost().macs})
    assert (sampler.load(sampler.sample(50, np.random.default_rng(1))) <= 1).all()


def test_min_keep_of_one_branch_makes_one_gene():
    network = trace(create("zoo:vit_micro"), torch.zeros(2, 1, 28, 28))
    codec = WidthEncoding(network.space, Constraints(min_keep={"blocks.1.mlp:branch": 0}))
    assert [gene for gene in codec.genes if gene.endswith(":branch")] == ["blocks.1.mlp:branch"]
