"""Criteria that read activations, against their definitions, least squares and known cases."""

import dataclasses
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sample_networks import SHARED, build
from torch import nn
from torch.utils.data import TensorDataset

import metaprune as mp
from metaprune.calibration.batches import calibration_batches
from metaprune.calibration.calibrate import Consumption, calibrate
from metaprune.calibration.compensate import compensate
from metaprune.calibration.products import find_products
from metaprune.methods.criteria.obs import elimination
from metaprune.methods.criteria.readers import Reader, readers_of
from metaprune.protocol.method import PruneTask
from metaprune.protocol.registry import create_method
from metaprune.testing.networks import TOYS, toy
from metaprune.train.evaluate import evaluate

CRITERIA = ("activation", "variance", "obs")


def mlp(width=6, bias=True, seed=0):
    with mp.Rng(seed).torch_global():
        return nn.Sequential(nn.Linear(5, width), nn.ReLU(), nn.Linear(width, 3, bias=bias))


def regression(inputs, targets=None):
    samples = TensorDataset(inputs, torch.zeros(len(inputs), 3) if targets is None else targets)
    return mp.as_data((samples, samples), objective="regression")


def task_of(model, inputs):
    return PruneTask(mp.trace(model, inputs[:2]), regression(inputs))


def scores_of(name, model, inputs, plan=None, **options):
    method = create_method(name, {"normalise": "none", "samples": len(inputs), **options})
    return method.scores(task_of(model, inputs), plan or mp.Plan(), mp.Rng(0))[0]


@pytest.fixture
def inputs():
    return torch.randn(256, 5, generator=torch.Generator().manual_seed(1))


# ------------------------------------------------------------------------------------------------ the algebra of OBS


def reader(x, weight, rows, takes_mean=False):
    """A layer of weights [O, K] on rows x [n, K]."""
    seen = Consumption(len(x), x.mean(0), x.square().mean(0), (x.mT @ x / len(x))[None], x.mean(0)[None])
    return Reader(torch.tensor(rows), weight[None, :, :, None], seen, takes_mean)


def unexplained(x, weight, inputs, with_constant):
    """Error of least squares on some inputs, by torch's own solver, as a share of the outputs' energy."""
    ones = torch.ones(len(x), 1, dtype=x.dtype)
    given = torch.cat([x[:, sorted(inputs)], *([ones] if with_constant else [])], dim=1)
    target = x @ weight.mT
    if not given.shape[1]:
        return 1.0
    fitted = given @ torch.linalg.lstsq(given, target, driver="gelsd").solution
    scale = (target - target.mean(0)).square().sum() if with_constant else target.square().sum()
    return float((target - fitted).square().sum() / scale)


@given(seed=st.integers(0, 10**6), takes_mean=st.booleans())
def test_each_channel_costs_what_least_squares_leaves_unexplained(seed, takes_mean):
    draw = np.random.default_rng(seed)
    x = torch.from_numpy(draw.normal(size=(40, 7)) @ draw.normal(size=(7, 7)) + draw.normal(size=7))
    weight = torch.from_numpy(draw.normal(size=(3, 7)))
    rows = [[0, 1], [2, -1], [3, 4], [5, -1]]  # input 6 is no channel's: it stays
    found = elimination([reader(x, weight, rows, takes_mean)], 1e-12)
    kept, before, highest = set(range(7)), 0.0, 0.0
    left = list(range(4))
    while left:
        after = {c: unexplained(x, weight, kept - set(rows[c]), takes_mean) for c in left}
        cheapest = min(after, key=after.__getitem__)
        highest = max(highest, after[cheapest] - before)
        assert found[cheapest] == pytest.approx(highest, rel=1e-5, abs=1e-8)
        kept, before = kept - set(rows[cheapest]), after[cheapest]
        left.remove(cheapest)


@pytest.mark.parametrize("outputs", [2, 9])
def test_many_outputs_cost_as_much_as_their_parts(outputs):
    draw = np.random.default_rng(1)
    x, weight = torch.from_numpy(draw.normal(size=(30, 5))), torch.from_numpy(draw.normal(size=(outputs, 5)))
    rows = [[c] for c in range(5)]
    halves = torch.cat([weight, weight]) / 2**0.5
    torch.testing.assert_close(
        elimination([reader(x, halves, rows)], 1e-3), elimination([reader(x, weight, rows)], 1e-3)
    )


def test_wide_layers_lose_one_of_every_pair_of_twins():
    """Several channels go per round: were they chosen by what each costs alone, twins would go together."""
    draw = np.random.default_rng(0)
    half = torch.from_numpy(draw.normal(size=(400, 100)))
    x, weight = torch.cat([half, half], dim=1), torch.from_numpy(draw.normal(size=(8, 200)))
    found = elimination([reader(x, weight, [[c] for c in range(200)])], 1e-6)
    dropped = found.argsort()[:100]
    assert len(set((dropped % 100).tolist())) == 100
    assert found[dropped].max() < 1e-4 < found.sort().values[100]


def test_several_readers_count_alike_whatever_their_scale():
    draw = np.random.default_rng(0)
    xs = [torch.from_numpy(draw.normal(size=(30, 5))) for _ in range(2)]
    weights = [torch.from_numpy(draw.normal(size=(3, 5))) for _ in range(2)]
    rows = [[c] for c in range(5)]
    once = elimination([reader(x, w, rows) for x, w in zip(xs, weights, strict=True)], 1e-3)
    scaled = elimination([reader(xs[0], weights[0] * 64, rows), reader(xs[1], weights[1], rows)], 1e-3)
    torch.testing.assert_close(scaled, once)
    first = elimination([reader(xs[0], weights[0], rows)] * 2, 1e-3)
    torch.testing.assert_close(first, elimination([reader(xs[0], weights[0], rows)], 1e-3))


def test_without_gram_matrices_channels_count_as_uncorrelated():
    draw = np.random.default_rng(0)
    x, weight = torch.from_numpy(draw.normal(size=(30, 4))), torch.from_numpy(draw.normal(size=(3, 4)))
    with_gram = reader(x, weight, [[c] for c in range(4)])
    without = dataclasses.replace(with_gram, seen=dataclasses.replace(with_gram.seen, gram=None))
    energy = x.square().mean(0) * weight.square().sum(0)
    torch.testing.assert_close(elimination([without], 1e-3), energy / energy.sum())


# ------------------------------------------------------------------------------------------------ known cases


def test_what_others_make_up_for_costs_nothing_and_least_squares_restores_it(inputs):
    model = mlp()
    with torch.no_grad():  # unit 4 is unit 1 twice, before and after its ReLU
        model[0].weight[4], model[0].bias[4] = 2 * model[0].weight[1], 2 * model[0].bias[1]
        model[2].weight[:, 4] = 0.3
    scores = scores_of("obs", model, inputs)
    lowest, second = np.argsort(scores)[:2]
    assert lowest in (1, 4) and scores[lowest] < 0.1 * scores[second]
    task = task_of(model, inputs)
    plan = mp.Plan({"0": tuple(c for c in range(6) if c != lowest)})
    batches = calibration_batches(task.network, task.data.train, 256, mp.Rng(0))
    solved = compensate(task.network, plan, batches, kind="least-squares", rng=mp.Rng(0))
    cut = mp.cut(task.network, plan, weights=solved.weights).model
    expected = model(inputs)
    assert (cut(inputs) - expected).norm() < 0.01 * expected.norm()


def test_a_constant_channel_costs_variance_nothing_and_the_bias_restores_it(inputs):
    model = mlp()
    with torch.no_grad():
        model[0].weight[2], model[0].bias[2] = 0, 5
    scores = scores_of("variance", model, inputs)
    assert scores.argmin() == 2 and scores[2] < 1e-6
    assert scores_of("activation", model, inputs).argmax() == 2
    task = task_of(model, inputs)
    plan = mp.Plan({"0": (0, 1, 3, 4, 5)})
    batches = calibration_batches(task.network, task.data.train, 256, mp.Rng(0))
    weights = compensate(task.network, plan, batches, kind="bias", rng=mp.Rng(0)).weights
    torch.testing.assert_close(mp.cut(task.network, plan, weights=weights).model(inputs), model(inputs))


def test_obs_leaves_the_mean_out_only_where_something_takes_it(inputs):
    lowest = {}
    for bias in (True, False):
        model = mlp(bias=bias)
        with torch.no_grad():
            model[0].weight[2], model[0].bias[2] = 0, 5
        lowest[bias] = scores_of("obs", model, inputs)[2]
    assert lowest[True] < 1e-4 and lowest[False] > 0.01  # what is left of the first is the ridge


@pytest.mark.parametrize("p", [1, 2])
def test_activation_and_variance_are_their_formulas(inputs, p):
    model = mlp()
    x, weight = model[:2](inputs).double(), model[2].weight.double()
    expected = x.square().mean(0).sqrt() * weight.norm(p=p, dim=0)
    found = torch.from_numpy(scores_of("activation", model, inputs, p=p))
    torch.testing.assert_close(found, expected / expected.sum(), rtol=1e-5, atol=0)
    expected = x.var(0, correction=0) * weight.square().sum(0)
    found = torch.from_numpy(scores_of("variance", model, inputs))
    torch.testing.assert_close(found, expected / expected.sum(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", ["activation", "variance"])
def test_the_scale_of_a_channel_makes_no_difference(inputs, name):
    scaled = mlp()
    with torch.no_grad():  # powers of two, so that no bit is lost
        for c, factor in enumerate((0.25, 1, 4, 2, 8, 0.5)):
            scaled[0].weight[c] *= factor
            scaled[0].bias[c] *= factor
            scaled[2].weight[:, c] /= factor
    np.testing.assert_allclose(scores_of(name, scaled, inputs), scores_of(name, mlp(), inputs), rtol=1e-12)


# ------------------------------------------------------------------------------------------------ any network


@pytest.mark.parametrize("name", CRITERIA)
def test_labels_are_not_read(inputs, name):
    network = mp.trace(mlp(), inputs[:2])
    data = [regression(inputs), regression(inputs, torch.full((len(inputs), 3), torch.nan))]
    method = create_method(name, {"samples": 64})
    zeros, nothing = (method.scores(PruneTask(network, d), mp.Plan(), mp.Rng(0))[0] for d in data)
    assert (zeros == nothing).all()


@pytest.mark.parametrize("name", sorted({*TOYS} - {"keyword_inputs"}))  # a batch is a tuple or a dict
def test_rows_of_readers_are_where_dropping_a_channel_is_seen(name):
    """Against the plan that drops a channel alone: every reader's weight loses as many inputs as the channel has."""
    example = toy(name)
    network = mp.trace(example.model, example.args, example.kwargs)
    calibration = calibrate(network, _batches_of(example), samples=8, gram_mb=0)
    inputs_of = {(p.weight, 1 - p.out_dim) for p in find_products(network)[0].values()}
    for group, readers in zip(network.space, readers_of(network, calibration, mp.Plan()), strict=True):
        names = [(m.parameter, m.dim) for m in group.members if (m.parameter, m.dim) in inputs_of]
        assert len(names) == sum(r.is_layer for r in readers)
        for channel in range(group.width if group.width > 1 else 0):
            keep = tuple(c for c in range(group.width) if c != channel)
            at = network.at(mp.Plan({group.name: keep})).tensors
            for reader, (parameter, dim) in zip(readers, names, strict=False):  # stand-ins have no name
                lost = network.tensors[parameter].shape[dim] - at[parameter].shape[dim]
                assert lost == int((reader.rows[channel] >= 0).sum()) > 0


def _batches_of(example):
    class Batches:
        def __len__(self):
            return 8

        def batches(self, *_, **__):
            for _ in range(4):
                yield example.kwargs or example.args, None

    return Batches()


def test_a_group_that_no_weights_read_is_ranked_by_its_energy_and_named_once():
    model = build("vit_micro")[0]
    x = torch.randn(32, *model.input_shape)
    samples = TensorDataset(x, torch.zeros(32, dtype=torch.int64))
    network = mp.trace(model, x[:2])
    task = PruneTask(network, mp.as_data((samples, samples)))
    g = network.space.index["blocks.0.attn.qkv:head_dims"]
    calibration = calibrate(network, task.data, samples=32, gram_mb=0)
    for name in CRITERIA:
        method = create_method(name, {"samples": 32, "steps": 2})
        with pytest.warns(UserWarning, match=r"no layer with weights reads blocks\.0\.attn\.qkv:head_dims") as caught:
            method.propose(task, mp.Budget(macs="70%"), mp.Rng(0))
        assert len(caught) == 1
    (stand_in,) = readers_of(network, calibration, mp.Plan())[g]
    energy = stand_in.by_channel(stand_in.by_input(stand_in.seen.second))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = create_method("obs", {"normalise": "none", "samples": 32}).scores(task, mp.Plan(), mp.Rng(0))[g]
    np.testing.assert_allclose(found.argsort(), energy.argsort())


@pytest.mark.parametrize("name", CRITERIA)
def test_later_steps_see_the_cut_network(inputs, name):
    """Scores at a plan are those of the network that was cut by it."""
    model, plan = mlp(), mp.Plan({"0": (0, 2, 3, 5)})
    cut = mp.cut(mp.trace(model, inputs[:2]), plan).model
    there = scores_of(name, model, inputs, plan)
    np.testing.assert_allclose(there[[0, 2, 3, 5]], scores_of(name, cut, inputs), rtol=1e-5)
    assert (there[[1, 4]] == 0).all()


# ------------------------------------------------------------------------------------------------ a trained network


@pytest.mark.slow
def test_each_keeps_more_of_a_trained_network_than_random_channels_at_equal_widths():
    """Only biases and BatchNorm statistics follow the cut: weights solved anew make up for most of a bad choice."""
    model, *_ = build("shared_resnet20")
    data = mp.load_data(f"npz:{SHARED / 'cifar10_jpeg.npz'}", limit=1000)
    network, test = mp.trace(model, torch.zeros(2, 3, 32, 32)), data.test.take(500)
    batches = calibration_batches(network, data.train, 128, mp.Rng(0))
    choices = {name: {"allocate": "uniform", "samples": 256} for name in CRITERIA} | {"random": {"widths": "uniform"}}
    accuracy = {}
    for name, options in choices.items():
        plan = create_method(name, options).propose(PruneTask(network, data), mp.Budget(macs="60%"), mp.Rng(0)).plan
        weights = compensate(network, plan, batches, kind="bias", rng=mp.Rng(0)).weights
        accuracy[name] = evaluate(mp.cut(network, plan, weights=weights).model, test)["accuracy"]
    assert min(accuracy[name] for name in CRITERIA) > accuracy["random"] + 0.05, accuracy
