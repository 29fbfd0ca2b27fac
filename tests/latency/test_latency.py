"""Latency tables: exact on synthetic timers, whole in their files, and budgets that know milliseconds."""

import json
import re

import numpy as np
import pytest
import torch

from metaprune.core.errors import ConfigError, InfeasibleBudgetError, MissingDependencyError
from metaprune.core.rng import Rng
from metaprune.latency import LatencyTable, build_table
from metaprune.latency.build import Design, spearman
from metaprune.latency.grid import Axis, fit_grid
from metaprune.latency.segments import axis_values, segments_of
from metaprune.models import create
from metaprune.search.allocate import Allocator
from metaprune.search.units import units_of
from metaprune.testing import toy
from metaprune.tracing import trace
from metaprune.values import Budget, Constraints

BATCH = 4


class FakeTimer:
    """Segment times that are linear in every size; a whole network takes 0.25 ms more than 1.5 times their sum."""

    few_widths = False

    def __init__(self, network):
        self.segments_list, self.sizes = segments_of(network, BATCH)
        self.keys = list(dict.fromkeys(s.key for s in self.segments_list))

    def segments(self, widths):
        sizes = self.sizes.of(widths)
        found = np.zeros((len(widths), len(self.segments_list)))
        for s, segment in enumerate(self.segments_list):
            number = 1 + self.keys.index(segment.key)
            found[:, s] = 0.1 * number
            product = 1.0
            for k, axis in enumerate(segment.axes):
                values = axis_values(axis, sizes)
                found[:, s] += 0.003 * (k + number) * values
                product = product * values
            found[:, s] += 1e-4 * number * product
        return found

    def whole(self, widths):
        return 0.25 + 1.5 * self.segments(widths).sum(axis=1)


@pytest.fixture(scope="module")
def network():
    model = create("zoo:resnet20", num_classes=10).eval()
    return trace(model, torch.randn(2, *model.input_shape))


@pytest.fixture(scope="module")
def args(network):
    return (torch.randn(BATCH, *network.model.input_shape),)


@pytest.fixture(scope="module")
def table(network, args):
    return build_table(network, args, {}, samples=60, structures=30, timer=FakeTimer(network))


def _random_widths(network, count, seed=0):
    return np.random.default_rng(seed).integers(1, network.space.widths + 1, (count, len(network.space)))


def test_multilinear_times_are_reproduced_at_and_between_grid_points(network, table):
    widths = np.vstack([_random_widths(network, 300), network.space.widths, np.ones_like(network.space.widths)])
    np.testing.assert_allclose(table.predict_ms(widths), FakeTimer(network).whole(widths), rtol=1e-9)
    np.testing.assert_allclose(table.segments_ms(widths), FakeTimer(network).segments(widths), rtol=1e-8)


def test_error_of_an_exact_table_is_zero(table):
    error = table.info["error"]
    assert error["structures"] == len(error["pairs"]) == 30
    assert error["median_relative_error"] < 1e-9 and error["spearman"] == pytest.approx(1)
    assert table.info["interpolation"]["median_relative_error_of_segments"] < 1e-8


def test_info_says_how_it_was_measured(table):
    info = table.info
    assert (info["device"], info["runtime"], info["batch"]) == ("cpu", "eager", BATCH)
    assert info["versions"]["torch"] == torch.__version__
    assert {"warmup", "repeats", "statistic", "threads"} <= info["protocol"].keys()


def test_saved_and_loaded_tables_predict_the_same(network, table, tmp_path):
    table.save(tmp_path / "a" / "table.json")
    loaded = LatencyTable.load(tmp_path / "a" / "table.json")
    widths = _random_widths(network, 50)
    assert (loaded.predict_ms(widths) == table.predict_ms(widths)).all()
    assert loaded.info == json.loads(json.dumps(table.info))
    loaded.check(network)


def test_bulk_equals_one_by_one(network, table):
    widths = _random_widths(network, 40)
    bulk = table.predict_ms(widths)
    assert bulk.shape == (40,) and bulk.dtype == np.float64
    np.testing.assert_allclose([table.predict_ms(w[None])[0] for w in widths], bulk, rtol=1e-13)


def test_equal_layers_share_a_key_and_others_do_not(network):
    segments, sizes = segments_of(network, BATCH)
    keys = [s.key for s in segments]
    assert len(segments) == 29 and len(set(keys)) < 20
    stages = [k for k in keys if "stride" not in k and "a16x32x32, b16xa16x3x3" in k and k.startswith("conv2d")]
    assert len(stages) == 6 and len(set(stages)) == 2  # with and without the activation behind the norm
    assert all("batch_norm" in k for k in keys if k.startswith("conv2d"))
    full = sizes.of(network.space.widths[None])
    by_key = {}
    for s in segments:
        shape = [int(axis_values(a, full)[0]) for a in s.axes]
        assert by_key.setdefault(s.key, shape) == shape


def test_every_computing_node_is_in_one_segment(network):
    segments, _ = segments_of(network, BATCH)
    names = [n for s in segments for n in s.nodes]
    assert len(names) == len(set(names))
    convolutions = [n.name for n in network.captured.graph.nodes if "conv2d" in str(n.target)]
    assert set(convolutions) <= set(names)


@pytest.mark.parametrize("name", ["concat", "grouped", "packed_qkv", "flatten", "squeeze_excite"])
def test_other_topologies_have_exact_axes(name):
    made = toy(name)
    network = trace(made.model, made.args)
    segments, _ = segments_of(network, 2)
    assert all(len(s.axes) <= 3 for s in segments)
    table = build_table(network, made.args, {}, samples=40, structures=5, timer=_TimerOf(network))
    widths = _random_widths(network, 50)
    np.testing.assert_allclose(table.predict_ms(widths), _TimerOf(network).whole(widths), rtol=1e-6)


class _TimerOf(FakeTimer):
    def __init__(self, network):
        self.segments_list, self.sizes = segments_of(network, 2)
        self.keys = list(dict.fromkeys(s.key for s in self.segments_list))


def test_table_of_another_network_is_refused(table):
    made = toy("concat")
    with pytest.raises(ConfigError, match=r"another network.*metaprune latency"):
        table.check(trace(made.model, made.args))


def _strided(kernel, stride, size=16):
    layers = (torch.nn.Conv2d(3, 8, kernel, stride, kernel // 2), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1))
    model = torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(8, 4))
    return trace(model, torch.zeros(2, 3, size, size)), (torch.zeros(2, 3, size, size),)


def test_table_of_the_same_groups_but_other_operators_or_resolution_is_refused(tmp_path):
    network, args = _strided(3, 1)
    build_table(network, args, {}, samples=20, structures=3, timer=_TimerOf(network)).save(tmp_path / "t.json")
    table = LatencyTable.load(tmp_path / "t.json")
    table.check(network)
    for other in (_strided(5, 1), _strided(3, 2), _strided(3, 1, size=32)):
        with pytest.raises(ConfigError, match=r"other operators or sizes of input.*--input-shape"):
            table.check(other[0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no latency table.*metaprune latency"),
        ("{", "is no latency table"),
        ("[]", "is no latency table of version"),
        ('{"format": "metaprune latency table", "version": 9}', "version 1"),
        ('{"format": "metaprune latency table", "version": 1}', "damaged"),
    ],
)
def test_files_that_are_no_table(tmp_path, text, message):
    path = tmp_path / "table.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        LatencyTable.load(path)


def test_truncated_grid_is_damaged(table, tmp_path):
    path = tmp_path / "table.json"
    table.save(path)
    data = json.loads(path.read_text())
    next(iter(data["tables"].values()))["ms"].pop()
    path.write_text(json.dumps(data))
    with pytest.raises(ConfigError, match="damaged"):
        LatencyTable.load(path)


def test_latency_is_a_budget(network, table):
    timed = network.with_latency(table.predict_ms)
    assert network.cost().latency_ms is None
    full = timed.cost().latency_ms
    scores = [np.random.default_rng(g).random(group.width) for g, group in enumerate(network.space)]
    allocator = Allocator(network.space, timed.cost_model(), Budget(latency_ms="60%"), Constraints())
    plan = allocator.by_scores(scores)
    cost = timed.cost(plan)
    assert 0.55 * full < cost.latency_ms <= 0.6 * full
    # a table's milliseconds are of its own batch, whatever batch the other figures are of
    assert timed.cost(plan, batch=8).latency_ms == timed.at(plan).cost(batch=3).latency_ms == cost.latency_ms
    assert timed.cost(batch=8).macs == 8 * timed.cost().macs
    assert timed.with_latency(None).cost(batch=8).latency_ms is None
    with pytest.raises(InfeasibleBudgetError, match="latency_ms"):
        Allocator(network.space, timed.cost_model(), Budget(latency_ms=1e-6), Constraints())


def test_bad_requests(network, args, monkeypatch):
    with pytest.raises(ConfigError, match=r"no runtime 'eagre'.*'eager'"):
        build_table(network, args, {}, runtime="eagre")
    with pytest.raises(ConfigError, match="repeats is 0"):
        build_table(network, args, {}, repeats=0)
    with pytest.raises(ConfigError, match="metaprune inspect"):
        build_table(network, args, {}, constraints=Constraints(ignore=("*",)))
    with pytest.raises(ConfigError, match="no clock 'sun'"):
        build_table(network, args, {}, clock="sun")
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    with pytest.raises(MissingDependencyError, match=r"metaprune\[onnx\]"):
        build_table(network, args, {}, runtime="onnxruntime")


def test_structures_obey_constraints(network):
    constraints = Constraints(round_to=4, min_keep=8)
    units = units_of(network.space, constraints)
    design = Design(network.space.widths, units, None, Rng(0))
    for widths in (design.training(40), design.random(40)):
        assert (widths % 4 == 0).all() and (widths >= 8).all() and (widths <= network.space.widths).all()
    few = Design(network.space.widths, units_of(network.space, Constraints()), 3, Rng(0)).training(30)
    assert all(len(np.unique(column)) <= 3 for column in few.T)


def test_staircases_are_followed():
    sizes = np.stack(np.meshgrid(np.arange(1, 65), np.arange(1, 65)), axis=-1).reshape(-1, 2)
    ms = 0.1 + np.ceil(sizes[:, 0] / 16) * np.ceil(sizes[:, 1] / 16) + 0.5 * (sizes[:, 1] % 16 != 0)
    seen = np.random.default_rng(0).permutation(len(ms))[:600]
    grid = fit_grid([64, 64], sizes[seen], ms[seen], points=5, blocks=(1, 8, 16))
    assert grid.axes[0].block == 16
    error = np.abs(grid.dense[grid.cell([sizes[:, 0], sizes[:, 1]])] / ms - 1)
    assert np.quantile(error, 0.95) < 0.01


def test_axis_weights_sum_to_one_and_long_axes_are_thinned():
    for axis in (Axis.of(64, 5), Axis.of(64, 5, 16), Axis.of(1000, 5, 8), Axis.of(1, 5), Axis.of(7, 5, 7)):
        sizes = np.arange(1, axis.full + 1)
        weights = axis.weights(sizes)
        assert weights.shape == (len(sizes), len(axis.points))
        np.testing.assert_allclose(weights.sum(axis=1), 1)
    draw = np.random.default_rng(0)
    sizes = draw.integers(1, 25001, (80, 2))
    grid = fit_grid([25000, 25000], sizes, 1 + sizes[:, 0] * 1e-3 + sizes[:, 1] * 1e-4, points=4, blocks=(1,))
    assert len(grid.dense) <= 1.1 * 2**20
    at = np.array([[12345], [777]])
    assert grid.dense[grid.cell(list(at))][0] == pytest.approx(1 + 12.345 + 0.0777, rel=2e-3)


def test_rank_correlation():
    assert spearman(np.array([1.0, 2, 3, 4]), np.array([1.0, 4, 9, 16])) == pytest.approx(1)
    assert spearman(np.array([1.0, 2, 3, 4]), np.array([4.0, 3, 2, 1])) == pytest.approx(-1)


@pytest.fixture(scope="module")
def small():
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4)).eval()
    return trace(model, torch.randn(2, 6))


def test_eager_measurement():
    model = create("zoo:resnet8").eval()
    network = trace(model, torch.randn(2, *model.input_shape))
    state = {n: t.clone() for n, t in model.state_dict().items()}
    table = build_table(
        network, (torch.randn(2, *model.input_shape),), {}, points=2, samples=6, repeats=2, structures=3, warmup=1
    )
    _check_measured(table, network)
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnxruntime"])
def test_standalone_measurement(small, runtime):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    inputs = (torch.randn(2, 6),)
    table = build_table(small, inputs, {}, runtime=runtime, points=2, samples=2, repeats=2, structures=2, warmup=1)
    _check_measured(table, small)
    assert table.info["versions"]["onnxruntime"]


def _check_measured(table, network):
    milliseconds = table.predict_ms(_random_widths(network, 20))
    assert np.isfinite(milliseconds).all() and (milliseconds >= 0).all()
    assert table.predict_ms(network.space.widths[None])[0] > 0
    assert table.info["full_ms"] > 0
    assert all(p >= 0 and m > 0 for p, m in table.info["error"]["pairs"])


def test_the_command_never_overwrites_another_table(table, tmp_path, capsys):
    from metaprune.cli.main import main

    out = tmp_path / "latency.json"
    table.save(out)  # of ResNet-20, batch BATCH
    before = out.read_bytes()
    for arguments in (["zoo:resnet8", "--option", "num_classes=10"], ["zoo:resnet20", "--batch", "1"]):
        assert main(["latency", *arguments, "--out", str(out)]) == 2
        assert "holds something else" in capsys.readouterr().err
    assert out.read_bytes() == before


def test_a_poor_table_says_so(table):
    assert table.warning is None
    other = LatencyTable(table.digest, table.sizes, table.segments, table.grids)
    other.info = {"error": {"median_relative_error": 0.1, "spearman": 0.7}}
    assert other.warning is not None and "rank correlation 0.70" in other.warning


def test_a_measurement_says_how_far_it_is():
    network, said = trace(create("zoo:resnet8"), torch.zeros(2, 1, 28, 28)), []
    build_table(
        network, (torch.zeros(1, 1, 28, 28),), points=2, samples=30, repeats=1, structures=2, progress=said.append
    )
    assert any(re.fullmatch(r"\d+ of 40 structures; about \d+ s left", line) for line in said)
    assert "40 of 40 structures" in said and "4 of 4 structures" in said
