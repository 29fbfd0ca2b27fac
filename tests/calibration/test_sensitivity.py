"""`allocate`: widths by measured curves meet every bound, and cost less than those of a ranking."""

import itertools

import numpy as np
import pytest
import torch
from sample_networks import SHARED, build
from torch.nn import functional

import metaprune as mp
from metaprune.calibration import sensitivity as curves
from metaprune.calibration.batches import calibration_batches
from metaprune.calibration.calibrate import calibrate, calibrate_on
from metaprune.calibration.closed_form import ClosedForm, OutputLoss
from metaprune.calibration.compensate import compensate
from metaprune.calibration.config import SHARES
from metaprune.calibration.sensitivity import Curve, sensitivities
from metaprune.core.errors import ConfigError
from metaprune.elastic.prefix import first_difference
from metaprune.methods.criteria import curves as widths
from metaprune.objective import Objective
from metaprune.protocol.method import PruneTask
from metaprune.protocol.registry import create_method
from metaprune.search.allocate import top
from metaprune.search.least_loss import least_loss
from metaprune.testing.method_suite import small_data, small_network
from metaprune.train.evaluate import evaluate

EXAMPLE = torch.zeros(2, 1, 28, 28)


def test_least_loss_is_that_of_all_structures():
    """Bounds on products of widths, against every structure there is."""
    draw = np.random.default_rng(0)
    for _ in range(20):
        losses = [np.sort(draw.random(5) * scale)[::-1] for scale in (1, 2, 4)]
        bound = draw.uniform(10, 60)

        def excess(levels, bound=bound):
            widths = levels + 1
            return np.maximum(0, (widths[:, 0] * widths[:, 1] + widths[:, 1] * widths[:, 2] * 2) / bound - 1)

        every = np.array(list(itertools.product(range(5), repeat=3)))
        total = sum(loss[every[:, u]] for u, loss in enumerate(losses))
        best = total[excess(every) <= 0].min()
        level = least_loss(losses, np.zeros(3, dtype=np.int64), excess)
        assert excess(level[None])[0] == 0
        assert sum(loss[i] for loss, i in zip(losses, level, strict=True)) <= best + 0.15 * (total.max() - best)


def test_curves_fall_to_nothing_at_full_width():
    curve = Curve(("a",), (0.75, 0.5, 0.25), (0.1, 0.4, 0.3))
    found = curve.at(np.array([1.0, 0.9, 0.75, 0.5, 0.25, 0.05]))
    assert found[0] < 1e-6 and (np.diff(found) >= 0).all()
    np.testing.assert_allclose(found[2:4], [0.1, 0.4])
    assert (Curve(("a",), (), ()).at(np.ones(1)) == 0).all()


def test_consumers_in_closed_form_are_those_of_side_by_side_runs():
    network, data = mp.trace(small_network("cnn"), EXAMPLE), small_data()
    group = next(g for g in network.space if g.role == "hidden")
    plan = mp.Plan({group.name: tuple(range(group.width // 2))})
    tensors = ClosedForm(network, calibrate(network, data, samples=96)).tensors(plan)
    batches = calibration_batches(network, data.train, 96, mp.Rng(0))
    solved = compensate(network, plan, batches, kind="least-squares", rng=mp.Rng(0))
    (name,) = [n for n, layer in solved.layers.items() if layer["ridge"] and n.endswith("conv2.weight")][:1]
    expected = network.sliced(network.survivors(plan), tensors={name: solved.weights[name]})[name]
    before = network.at(plan).tensors[name]
    assert (tensors[name] - expected).norm() < 0.5 * (before - expected).norm()


@pytest.mark.parametrize("kind", ["cnn", "transformer"])
def test_every_unit_has_a_curve_and_no_cut_costs_nothing(kind):
    network, data = mp.trace(small_network(kind), EXAMPLE), small_data()
    task = PruneTask(network, data)
    allocator = task.allocator(mp.Budget(macs="50%"))
    scores = create_method("magnitude").scores(task, mp.Plan(), mp.Rng(0))
    batch = next(iter(data.train.batches(32)))
    loss = OutputLoss(ClosedForm(network, calibrate(network, data, samples=32)), batch, data.objective)
    assert abs(loss(mp.Plan())) < 1e-6
    found = sensitivities(network.space, loss, allocator.units, scores)
    assert [c.groups for c in found] == [tuple(network.space.groups[g].name for g in u.groups) for u in allocator.units]
    assert all(loss >= 0 for c in found for loss in c.losses)
    same = sensitivities(network.space, loss, allocator.units, scores)
    assert [c.losses for c in same] == [c.losses for c in found]


class _Noisy(torch.nn.Module):
    """Writes in place into what is read later, and draws random numbers whether it trains or not."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (torch.nn.Linear(a, b) for a, b in ((6, 8), (8, 8), (8, 7)))
        self.head, self.skip = torch.nn.Linear(7, 3), torch.nn.Linear(8, 3)

    def forward(self, x):
        x = functional.dropout(self.first(x), 0.2, training=True)
        x.add_(self.second(x).relu_())
        z = functional.dropout(self.third(x).relu_(), 0.2, training=True)
        return self.head(z) + self.skip(x.mul_(2))


@pytest.mark.parametrize("kind", ["cnn", "transformer", "noisy"])
def test_runs_that_share_their_start_give_what_whole_runs_give(kind):
    model, example = (_Noisy(), torch.zeros(2, 6)) if kind == "noisy" else (small_network(kind), EXAMPLE)
    network, inputs = mp.trace(model, example), torch.randn(16, *example.shape[1:])
    calibration = calibrate_on(network, [((inputs,), {})], mp.Rng(0))
    loss = OutputLoss(ClosedForm(network, calibration), (inputs, None), Objective())
    shared, steps = loss._prefix, []
    assert shared.stops
    for group in [*network.space, *network.space]:
        plan = mp.Plan({group.name: tuple(range(group.width // 2))})
        first = first_difference(network.at().program(), network.at(plan).program(), loss._closed_form.changed(plan))
        steps.append(first)
        found = loss(plan)
        shared.stops = False
        assert found == loss(plan)
        shared.stops = True
    assert max(steps) > 2
    assert abs(loss(mp.Plan())) < 1e-6


class _WritesItsInput(torch.nn.Module):
    def __init__(self, in_place: bool):
        super().__init__()
        torch.manual_seed(0)
        self.in_place, self.norm = in_place, torch.nn.BatchNorm1d(16)
        self.first, self.second, self.head = (torch.nn.Linear(a, b) for a, b in ((6, 16), (16, 16), (16, 3)))

    def forward(self, x):
        x = x.sub_(3.0).div_(2.0) if self.in_place else (x - 3.0) / 2.0
        x = self.first(x)
        for _ in range(2):
            x = x + self.norm(self.second(x)).relu()
        return self.head(x)


def test_inputs_that_are_written_in_place_are_the_same_in_every_run():
    inputs, losses = 2 * torch.randn(32, 6) + 3, []
    for in_place in (True, False):
        network = mp.trace(_WritesItsInput(in_place).eval(), torch.zeros(2, 6))
        batch = inputs.clone()
        calibration = calibrate_on(network, [((batch,), {})], mp.Rng(0))
        loss = OutputLoss(ClosedForm(network, calibration), (batch, None), Objective())
        losses.append([loss(mp.Plan({group.name: tuple(range(8))})) for group in network.space])
        assert abs(loss(mp.Plan())) < 1e-6  # with a BatchNorm that is called twice, too
        assert torch.equal(batch, inputs)
    assert losses[0] == losses[1]


def test_remembered_solutions_are_those_of_a_fresh_start():
    network, data = mp.trace(small_network("cnn"), EXAMPLE), small_data()
    calibration = calibrate(network, data, samples=64)
    first, second = (mp.Plan({g.name: tuple(range(g.width // k)) for g in network.space}) for k in (2, 4))
    used = ClosedForm(network, calibration)
    for plan in (first, second, first):
        fresh, again = ClosedForm(network, calibration).tensors(plan), used.tensors(plan)
        assert all(torch.equal(fresh[name], again[name]) for name in fresh)


@pytest.mark.parametrize("allocate", ["uniform", "sensitivity"])
def test_every_bound_is_met(allocate):
    chosen = {"method": "magnitude", "method_options": {"allocate": allocate}}
    budget = {"macs": "60%", "params": "40%"}
    result = mp.prune(small_network("cnn"), EXAMPLE, budget=budget, data=small_data(), round_to=2, **chosen)
    after, bounds = result.record["cost"]["after"], result.record["bounds"]
    assert all(after[m] <= bound for m, bound in bounds.items())
    measured = result.record["method_details"].get("sensitivity", {}).get("curves")
    assert (measured is not None) == (allocate != "uniform")


def test_sensitivity_needs_data_and_the_option_is_checked():
    with pytest.raises(ConfigError, match="looks at training data"):
        options = {"allocate": "sensitivity"}
        mp.prune(small_network("cnn"), EXAMPLE, budget="macs=50%", method="magnitude", method_options=options)
    with pytest.raises(ConfigError, match="allocate"):
        create_method("magnitude", {"allocate": "sensitive"})


@pytest.mark.slow
def test_measured_widths_keep_more_of_a_trained_network():
    model, *_ = build("shared_resnet20")
    data = mp.load_data(f"npz:{SHARED / 'cifar10_jpeg.npz'}", limit=1000)
    network, test = mp.trace(model, torch.zeros(2, 3, 32, 32)), data.test.take(500)
    accuracy = {}
    batches = calibration_batches(network, data.train, 320, mp.Rng(0))
    for allocate in ("criterion", "sensitivity"):
        method = create_method("magnitude", {"p": 1, "allocate": allocate})
        plan = method.propose(PruneTask(network, data), mp.Budget(macs="30%"), mp.Rng(0)).plan
        weights = compensate(network, plan, batches, kind="least-squares", rng=mp.Rng(0)).weights
        accuracy[allocate] = evaluate(mp.cut(network, plan, weights=weights).model, test)["accuracy"]
    assert accuracy["sensitivity"] > accuracy["criterion"] + 0.03


def test_curves_are_measured_on_fewer_samples_where_a_pass_is_dear(monkeypatch):
    network = mp.trace(small_network("cnn"), EXAMPLE)
    assert curves.curve_samples(network) == curves.SAMPLES
    passes = len(SHARES) * len(network.space)
    for samples in (100, 20):
        monkeypatch.setattr(curves, "MACS", (samples + 0.5) * passes * network.cost().macs)
        assert curves.curve_samples(network) == samples
    monkeypatch.setattr(curves, "MACS", 1)
    assert curves.curve_samples(network) == curves.LEAST_SAMPLES
    assert curves.curve_samples(network, items=50) == 6  # sequences of 50 tokens


def test_one_measurement_serves_several_budgets_and_constraints(monkeypatch):
    """What was measured is not measured again, and gives the plan that a fresh measurement gives."""
    network, data = mp.trace(small_network("cnn"), EXAMPLE), small_data()
    scores = [np.arange(g.width, dtype=float) for g in network.space]
    passes = []
    real = widths.sensitivities

    def counted(space, loss_of, units, scores):
        return real(space, lambda plan: passes.append(plan) or loss_of(plan), units, scores)

    monkeypatch.setattr(widths, "sensitivities", counted)
    task = PruneTask(network, data)
    fixed = PruneTask(network, data, mp.Constraints(ignore=(network.space.groups[0].name,)))
    measured = widths.MeasuredWidths(task, "magnitude", mp.Rng(0))
    measured.plan(task.allocator(mp.Budget(macs="60%")), scores)
    first = len(passes)
    again = measured.plan(fixed.allocator(mp.Budget(macs="80%")), scores)
    assert first >= 2 * len(network.space) and len(passes) == first
    fresh = widths.MeasuredWidths(fixed, "magnitude", mp.Rng(0)).plan(fixed.allocator(mp.Budget(macs="80%")), scores)
    assert again == fresh and network.space.groups[0].name not in again.keep


def test_a_layer_with_more_inputs_than_samples_is_not_free_to_cut():
    """Solved on the samples that judge it, it would be: they are fitted exactly."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(32, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10)).eval()
    samples = torch.utils.data.TensorDataset(torch.randn(320, 32), torch.zeros(320, dtype=torch.long))
    few, fresh = torch.utils.data.random_split(samples, [64, 256], torch.Generator().manual_seed(0))
    network, data = mp.trace(model, torch.zeros(2, 32)), mp.as_data((few, few), num_classes=10)
    method = create_method("magnitude", {"p": 1, "allocate": "sensitivity"})
    found = method.propose(PruneTask(network, data), mp.Budget(macs="50%"), mp.Rng(0)).details["sensitivity"]
    (curve,) = found["curves"]
    scores = method.scores(PruneTask(network, data), mp.Plan(), mp.Rng(0))
    closed_form = ClosedForm(network, calibrate(network, data, samples=64))
    loss = OutputLoss(closed_form, (fresh[:][0], None), data.objective)
    kept = np.flatnonzero(top(scores[0], int(curve["shares"][-1] * 256)))
    assert curve["losses"][-1] > 0.5 * loss(mp.Plan({network.space.groups[0].name: tuple(map(int, kept))}))
