"""STAMP's variant `filter`: gates per pair of an output and an input of a layer, frozen to masks of weights."""

import copy
import dataclasses
import io
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from report_pages import rendered, summarise
from rich.console import Console
from test_stamp import QUICK, gratings, network
from torch import nn

import metaprune as mp
from metaprune.cli.main import main
from metaprune.core.errors import ConfigError, InfeasibleBudgetError
from metaprune.core.rng import Rng
from metaprune.methods.gating.training import Price
from metaprune.methods.stamp import report_rows as stamp_rows
from metaprune.methods.stamp.episodes import Pool
from metaprune.methods.stamp.meta import fill_bank
from metaprune.methods.stamp.method import Stamp
from metaprune.methods.stamp.pairs import PairLayers, Pairs, most_probable
from metaprune.models import create
from metaprune.protocol.artifact import Artifact
from metaprune.protocol.method import PruneTask, require_feasible
from metaprune.recover.config import RecoverConfig
from metaprune.testing.method_suite import small_data, small_network
from metaprune.tracing import trace
from metaprune.train.config import TrainConfig
from metaprune.values import Budget, Constraints

PAIRS = dataclasses.replace(QUICK, variant="filter")
HALF = Budget.parse("nonzero=50%")
pytestmark = [
    pytest.mark.filterwarnings("ignore:the mask generator gives every data set"),
    pytest.mark.filterwarnings("ignore:the artifact was meta-trained for"),
]


def learner_of(method=PAIRS, kind="cnn", **limits):
    net = network(kind)
    learner = method._learner(PruneTask(net, small_data(), Constraints(**limits)), Rng(0), net.tensors)
    fill_bank(learner, [Pool(small_data(), "cpu")], method.meta, Rng(0))
    return learner


def sample_of(count=40):
    return Pool(small_data(), "cpu").draw(range(10), count, Rng(1), augment=False)


@pytest.fixture(scope="module")
def fitted():
    """(method with its artifact, task)."""
    torch.set_num_threads(1)
    task = PruneTask(network(), small_data())
    return PAIRS.restore(PAIRS.fit([task], Rng(0))), task


class Separable(nn.Module):
    """A depthwise and a grouped convolution between others."""

    def __init__(self):
        super().__init__()
        self.enter = nn.Conv2d(1, 8, 3, stride=4)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.grouped = nn.Conv2d(8, 6, 1, groups=2)
        self.head = nn.Linear(6, 10)

    def forward(self, x):
        return self.head(self.grouped(self.depthwise(self.enter(x)).relu()).relu().mean(dim=(2, 3)))


# ---------------------------------------------------------------------------------------------------- gates


@pytest.mark.parametrize("kind", ["cnn", "transformer"])
def test_gates_of_0_and_1_are_the_network_with_weights_of_zero(kind):
    learner, x = learner_of(kind=kind), torch.randn(4, 1, 28, 28)
    gates, model = [], copy.deepcopy(learner.network.model).train()
    for name in learner.layers.names:
        weight = model.get_parameter(name)
        gate = torch.rand(weight.shape[:2], generator=Rng(0).child(name).torch()) < 0.5
        gates.append(gate.flatten().float())
        with torch.no_grad():
            for o, i in zip(*torch.nonzero(~gate, as_tuple=True), strict=True):
                weight[o, i] = 0.0
    tensors = learner.weights(learner.network.tensors, 10).tensors()
    tensors |= {n: t for n, t in learner.network.tensors.items() if n in (learner.head.weight, learner.head.bias)}
    with torch.no_grad():
        torch.testing.assert_close(learner.run(tensors, gates, (x,), {}), model(x), rtol=0, atol=0)
    gone = sum(int((model.get_parameter(n) == 0).sum()) for n in learner.layers.names)
    left = learner.network.cost().params - gone
    assert float(learner.expected_share(gates)) == pytest.approx(left / learner.network.cost().params, rel=1e-6)
    assert learner.gates == sum(len(g) for g in gates)


@pytest.mark.parametrize("options", [{}, {"prior": "beta_bernoulli", "kl_weight": 0.1, "encoder": "mean"}])
def test_every_generator_parameter_has_a_gradient(options):
    method = dataclasses.replace(PAIRS, **options)
    learner = learner_of(method)
    weights = learner.weights(learner.network.tensors, 10)
    for head in weights.head.values():
        head.data.normal_(generator=torch.Generator().manual_seed(0))
    loss, result = learner.loss(weights, sample_of(), Price(1.0, 0.3, method.kl_weight))
    loss.backward()
    dead = [n for n, p in learner.generator.named_parameters() if p.grad is None or not (p.grad != 0).any()]
    assert not [n for n in dead if "in_proj" not in n and "self_attn" not in n], dead
    assert 0.9 < result.kept_cost < 1  # before training nearly all is kept
    assert all((weights.leaves[n].grad != 0).any() for n in learner.layers.names)


def test_gates_come_from_vectors_and_are_odd_in_what_is_known_of_the_set():
    learner = learner_of()
    generator, number = learner.generator, 3
    outputs, inputs = generator.shapes[number]
    values = torch.randn((outputs + inputs) * 5)
    rows, fixed = values.view(-1, 5), generator.vectors[str(number)][..., 0]
    found = generator.gates_from(number, values)
    assert found.shape == (outputs * inputs, 1)
    for o, i in ((0, 0), (3, 7), (outputs - 1, inputs - 1)):
        u, v, s, t = rows[o, :4], rows[outputs + i, :4], fixed[o], fixed[outputs + i]
        expected = rows[o, 4] + rows[outputs + i, 4] + (u @ t + s @ v) / 2
        assert torch.isclose(found[o * inputs + i, 0], expected, atol=1e-5)
    assert torch.allclose(generator.gates_from(number, -values), -found)
    assert not any(n.endswith(".bias") for n, _ in generator.bodies.named_parameters())


def test_permuting_samples_changes_no_probability():
    learner, sample = learner_of(), sample_of()
    order = torch.from_numpy(np.random.default_rng(1).permutation(40))
    mixed = dataclasses.replace(sample, args=(sample.args[0][order],), target=sample.target[order])
    for a, b in zip(learner.probabilities([sample], 0.3), learner.probabilities([mixed], 0.3), strict=True):
        assert np.allclose(a, b, atol=1e-5)


def test_constraints_leave_layers_without_gates():
    learner = learner_of(ignore=("conv1", "layer2.0.*"), only=("layer*",))
    assert learner.layers.names and not any(n.startswith(("conv1", "layer2.0", "linear")) for n in learner.layers.names)
    assert len(learner.gates_of(sample_of(), 0.3).probabilities()) == len(learner.layers.names)
    every = learner_of()
    assert learner.generator.state_dict().keys() == every.generator.state_dict().keys()  # one artifact for any
    with pytest.raises(ConfigError, match="nothing to mask"):
        learner_of(only=("linear",))


def test_masks_follow_the_data():
    """As for channels: a collapsed generator fails."""
    with Rng(1).torch_global():
        model = create("zoo:resnet8", num_classes=4, in_channels=1, width=0.5)
    net = trace(model.eval(), torch.zeros(2, 1, 28, 28))
    domains = [gratings(kind, kind) for kind in ("rows", "columns", "blobs")]
    meta = dataclasses.replace(PAIRS.meta, episodes=12, inner_steps=3, batch_size=32, ways=(3, 4))
    method = dataclasses.replace(PAIRS, meta=meta, set_dim=16, hidden=16, strength=1.0, shares=(0.3, 0.3))
    found = method.fit([PruneTask(net, d) for d in domains], Rng(0)).info["conditioning"]
    assert found["jaccard_same"] - found["jaccard_different"] >= 0.1, found


# ---------------------------------------------------------------------------------------------------- freezing


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 30), st.sampled_from([1, 4, 9])), min_size=1, max_size=5),
    st.integers(0, 10**6),
    st.booleans(),
)
def test_no_further_pair_fits_and_the_most_probable_stay(layers, draw, ties):
    scores = [np.random.default_rng(draw + i).random(n).round(1 if ties else 9) for i, (n, _) in enumerate(layers)]
    positions = [size for _, size in layers]
    least, total = sum(positions), sum(n * size for n, size in layers)
    room = least + draw % (total - least + 1)
    kept = most_probable(scores, positions, room)
    left = room - sum(int(k.sum()) * size for k, size in zip(kept, positions, strict=True))
    assert all(k.any() and len(k) == len(s) for k, s in zip(kept, scores, strict=True))
    assert left >= 0
    assert all(size > left for k, size in zip(kept, positions, strict=True) if not k.all())
    for size in set(positions):  # of pairs of one size none stays before a better one (each layer's best aside)
        parts = [(s, k) for s, k, p in zip(scores, kept, positions, strict=True) if p == size]
        values = np.concatenate([np.delete(s, s.argmax()) for s, _ in parts])
        stays = np.concatenate([np.delete(k, s.argmax()) for s, k in parts])
        if stays.any() and not stays.all():
            assert values[stays].min() >= values[~stays].max()
        tied = stays[values == values[stays].min()] if stays.any() else stays
        assert (np.diff(tied.astype(int)) <= 0).all()  # the first of those that are equal


def test_masks_are_whole_pairs_within_the_budget(fitted):
    method, task = fitted
    found = [method.propose(task, HALF, Rng(3)) for _ in range(2)]
    cost, full = task.network.cost(found[0].plan, masks=found[0].masks), task.network.cost()
    assert cost.nonzero == full.params // 2 and cost.macs == full.macs and not found[0].plan.keep
    assert all(torch.equal(mask, found[1].masks[n]) for n, mask in found[0].masks.items())
    for name, mask in found[0].masks.items():
        assert mask.shape == task.network.tensors[name].shape and mask.any()
        pairs = mask.reshape(*mask.shape[:2], -1)
        assert torch.equal(pairs.any(dim=2), pairs.all(dim=2))
    told = found[0].details["stamp"]["pairs"]
    assert set(found[0].masks) == set(PairLayers(task).names) == {row["name"] for row in told["layers"]}
    zero = sum(row["zero"] for row in told["layers"])
    assert told["sparsity"] == pytest.approx(zero / sum(row["pairs"] for row in told["layers"]))
    assert found[0].details["masks"] == {"pattern": "filter", "whole": ["linear.weight"]}
    assert found[0].weights is not None


def test_groups_of_convolutions_are_counted_as_they_are():
    form = Pairs(PruneTask(trace(Separable().eval(), torch.zeros(2, 1, 28, 28))))
    names = ["enter.weight", "depthwise.weight", "grouped.weight"]
    assert form.layers.names == names
    assert [form.layers.shape(n) for n in names] == [(8, 1), (8, 1), (6, 4)]
    grouped = np.ones((6, 4), dtype=bool)
    grouped[:3, 1] = grouped[5] = False  # input 1 of the first group, output 5
    depthwise = np.array([1, 0, 0, 1, 1, 1, 1, 1])
    scores = [np.ones(8), depthwise.astype(float), grouped.astype(float).ravel()]
    rows = form.figures(form.above(0.5, scores), scores)["pairs"]["layers"]
    assert [(r["pairs"], r["zero"], r["empty_outputs"], r["empty_inputs"]) for r in rows] == [
        (8, 0, 0, 0),
        (8, 2, 2, 2),
        (24, 7, 1, 1),
    ]
    nothing = form.above(0.5, [np.zeros(8), np.zeros(8), np.zeros(24)])
    assert [int(m.sum()) for m in nothing.masks.values()] == [9, 9, 1]  # one pair of each


def test_threshold_is_the_generators_own_size_or_an_error(fitted):
    method, task = fitted
    own = dataclasses.replace(method, freeze="threshold")
    with pytest.raises(InfeasibleBudgetError, match=r"the generator's own mask exceeds the budget .nonzero"):
        own.propose(task, HALF, Rng(0))


def test_budgets_that_masks_cannot_meet():
    task = PruneTask(network(), small_data())
    for budget in ("macs=50%", "params=50%", "nonzero=50%,memory_mb=50%"):
        with pytest.raises(InfeasibleBudgetError, match="Bound nonzero instead"):
            require_feasible(PAIRS, task, Budget.parse(budget))
    with pytest.raises(InfeasibleBudgetError, match=r"smallest reachable with pattern filter .*linear\.weight"):
        PAIRS.propose(task, Budget(nonzero="1%"), Rng(0))
    require_feasible(QUICK, task, Budget.parse("macs=50%"))


# ---------------------------------------------------------------------------------------------------- artifacts


def test_artifacts_come_back_and_are_of_one_form(fitted, tmp_path):
    method, task = fitted
    method.fitted.save(tmp_path)
    again = dataclasses.replace(PAIRS, artifact=str(tmp_path))
    a, b = (m.propose(task, HALF, Rng(4)) for m in (method, again))
    assert all(torch.equal(mask, b.masks[n]) for n, mask in a.masks.items())
    assert all(torch.equal(t, b.weights[n]) for n, t in a.weights.items())
    for variant in ("weights", "structure"):
        with pytest.raises(ConfigError, match=r"gates of filter pairs.*set it to 'filter', or run `metaprune fit`"):
            dataclasses.replace(again, variant=variant).propose(task, HALF, Rng(0))
    one = dataclasses.replace(QUICK, meta=dataclasses.replace(QUICK.meta, episodes=1))
    channels = one.fit([task], Rng(0))
    assert "variant" not in channels.info["options"]  # as before there was another form
    for variant in ("weights", "structure"):
        assert dataclasses.replace(one, variant=variant).restore(channels).propose(task, HALF, Rng(0)).plan.keep
    with pytest.raises(ConfigError, match=r"gates of channels.*'filter' needs others: set it to 'weights'"):
        PAIRS.restore(channels).propose(task, HALF, Rng(0))


def test_a_killed_meta_training_goes_on_to_the_same_numbers(fitted, tmp_path, monkeypatch):
    whole, task = fitted
    drawn, draw = [], Pool.draw

    def killed(self, *args, **kwargs):
        drawn.append(1)
        if len(drawn) > 30:  # 16 of them fill the bank
            raise KeyboardInterrupt
        return draw(self, *args, **kwargs)

    monkeypatch.setattr(Pool, "draw", killed)
    there = dataclasses.replace(task, folder=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        PAIRS.fit([there], Rng(0))
    monkeypatch.undo()
    assert list((tmp_path / "checkpoints" / "stamp").glob("epoch-*"))
    again = PAIRS.fit([there], Rng(0))
    assert again.tensors.keys() == whole.fitted.tensors.keys()
    assert all(torch.equal(t, whole.fitted.tensors[n]) for n, t in again.tensors.items())
    assert again.info["history"]["rows"] == whole.fitted.info["history"]["rows"]
    with pytest.raises(ConfigError, match=r"another run.*variant"):
        QUICK.fit([there], Rng(0))


def test_the_price_is_of_nonzero_weights():
    assert PAIRS.metric == dataclasses.replace(PAIRS, metric="nonzero").metric == "nonzero"
    assert Stamp(**vars(PAIRS)) == PAIRS
    assert QUICK.metric == "params"
    for metric in ("macs", "memory_mb", "latency_ms"):
        with pytest.raises(ConfigError, match="is a dense cost"):
            dataclasses.replace(QUICK, variant="filter", metric=metric)
    with pytest.raises(ConfigError, match="Did you mean 'filter'"):
        Stamp(variant="filters")


# ---------------------------------------------------------------------------------------------------- the whole way


def test_recovery_leaves_pairs_at_zero_and_the_record_says_what_they_are_not(fitted, tmp_path):
    method, task = fitted
    result = mp.prune(
        small_network("cnn"),
        torch.zeros(2, 1, 28, 28),
        budget="nonzero=40%",
        method=method,
        data=task.data,
        recover=RecoverConfig(kind="finetune", train=TrainConfig(epochs=1, batch_size=32, augment=False)),
        progress=False,
    )
    result.save(tmp_path)
    assert result.pruned.error <= 1e-9
    for model in (result.model, mp.load(tmp_path, factory=lambda: small_network("cnn"))):
        named = dict(model.named_parameters())
        assert all((named[n][~mask] == 0).all() for n, mask in result.pruned.masks.items())
    told = result.record["method_details"]["stamp"]["pairs"]
    assert 0.5 < told["sparsity"] < 0.7
    out = io.StringIO()
    summarise(result.record, Console(file=out, width=400))
    for text in (rendered(result.record), out.getvalue()):
        assert f"group sparsity {100 * told['sparsity']:.1f}%" in text
        assert "(pattern filter)" in text and "no speed-up on dense hardware" in text
    assert "Empty inputs" in rendered(result.record)
    strips, layers = stamp_rows.mask_rows(result.record), {row["name"]: row for row in told["layers"]}
    assert [s.name for s in strips] == list(layers)  # the marks of the figure are at the pairs that were kept
    assert all(s.group.before - s.group.after == layers[s.name]["zero"] for s in strips)
    target = stamp_rows.target_rows(result.record)[-1]
    assert target.share == pytest.approx(0.4, abs=1e-4) and len(target.kept) == sum(s.group.after for s in strips)
    json.dumps(result.record)


def test_fit_and_adapt_by_command_line(tmp_path, capsys):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("""
        device = "cpu"
        model = { spec = "zoo:resnet8", options = { width = 0.25 } }
        data = { spec = "builtin:digits", limit = 120 }
        budget = { nonzero = "40%" }
        latency = { repeats = 0 }
        [method]
        name = "stamp"
        [method.options]
        variant = "filter"
        meta = { episodes = 2, inner_steps = 1, batch_size = 20, ways = [2, 4], augment = false }
        adapt_steps = 1
        sets = 1
        set_dim = 8
        heads = 2
        hidden = 8
        [recover]
        kind = "finetune"
        train = { epochs = 1, batch_size = 60, augment = false }
    """)
    run = str(tmp_path / "run")
    assert main(["fit", "stamp", str(recipe), "--run", run, "--quiet"]) == 0
    assert "--budget nonzero=25%" in capsys.readouterr().out
    assert Artifact.load(run, "stamp").info["options"]["variant"] == "filter"
    target = ["adapt", run, "--data", "builtin:digits", "--set", "data.limit=60", "--quiet"]
    assert main([*target, "--budget", "nonzero=25%"]) == 0
    assert "group sparsity" in capsys.readouterr().out
    (place,) = (tmp_path / "run" / "targets").iterdir()
    record = json.loads((place / "record.json").read_text())
    assert record["cost"]["after"]["nonzero"] <= 0.25 * record["cost"]["before"]["params"]
    assert record["cost"]["after"]["macs"] == record["cost"]["before"]["macs"]
    assert record["masks"]["pattern"] == "filter" and record["quality"]["recovered"]["samples"]
    for budget, more, text in (
        ("macs=50%", [], "Bound nonzero instead"),
        ("params=50%", ["--set", "method.options.variant=weights"], "gates of filter pairs"),
    ):
        assert main([*target, "--budget", budget, *more]) == 2
        assert text in capsys.readouterr().err
