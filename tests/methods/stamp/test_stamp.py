"""STAMP: sets, meta-training, adaptation; the checks of the notes that a collapsed generator fails."""

import dataclasses
import json
import warnings

import numpy as np
import pytest
import torch

from metaprune.core.errors import (
    CollapseWarning,
    ConfigError,
    DataError,
    InfeasibleBudgetError,
    NotAvailableError,
    TrainingDivergedError,
)
from metaprune.core.rng import Rng
from metaprune.cost.soft import SoftCost
from metaprune.data import Data, TensorSplit
from metaprune.methods.gating.training import Price, Sample, gradient_step, sgd
from metaprune.methods.stamp.channels import Channels
from metaprune.methods.stamp.episodes import LOOKS, Pool, seen_as
from metaprune.methods.stamp.generator import SetEncoder, standardised
from metaprune.methods.stamp.meta import MetaConfig, MetaState, fill_bank, jaccard, meta_train
from metaprune.methods.stamp.method import Stamp
from metaprune.models import create
from metaprune.protocol.artifact import Artifact
from metaprune.protocol.method import PruneTask
from metaprune.surgery import cut
from metaprune.testing.method_suite import small_data, small_network
from metaprune.tracing import trace
from metaprune.values import Budget, Constraints

QUICK = Stamp(
    meta=MetaConfig(episodes=6, inner_steps=2, batch_size=24, ways=(2, 4), augment=False, save_every=2),
    adapt_steps=2,
    headroom=False,
    sets=2,
    set_dim=8,
    heads=2,
    hidden=8,
)
pytestmark = pytest.mark.filterwarnings("ignore:the mask generator gives every data set")


def network(kind="cnn"):
    return trace(small_network(kind), torch.zeros(2, 1, 28, 28))


def learner_of(method=QUICK, kind="cnn"):
    net = network(kind)
    learner = method._learner(PruneTask(net, small_data()), Rng(0), net.tensors)
    fill_bank(learner, [Pool(small_data(), "cpu")], method.meta, Rng(0))
    return learner


# ---------------------------------------------------------------------------------------------------- sets


@pytest.mark.parametrize("kind", ["attention", "mean", "classes"])
def test_the_order_of_a_set_changes_nothing(kind):
    with Rng(0).torch_global():
        encoder = SetEncoder(12, 8, 2, kind).double()
        features, labels = torch.randn(30, 12).double(), torch.randint(0, 4, (30,))
    order = torch.from_numpy(np.random.default_rng(0).permutation(30))
    with torch.no_grad():
        a, b = encoder(features, labels), encoder(features[order], labels[order])
    assert torch.allclose(a, b, atol=1e-12)


def test_permuting_samples_changes_no_probability():
    learner = learner_of()
    learner.generator.eval()
    sample = Pool(small_data(), "cpu").draw(range(10), 40, Rng(0), augment=False)
    order = torch.from_numpy(np.random.default_rng(1).permutation(40))
    mixed = dataclasses.replace(sample, args=(sample.args[0][order],), target=sample.target[order])
    for a, b in zip(learner.probabilities([sample], 0.3), learner.probabilities([mixed], 0.3), strict=True):
        assert np.allclose(a, b, atol=1e-5)


def test_what_all_sets_share_is_taken_out():
    bank = torch.randn(16, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.1, 2.0, 1.0]) + 5
    out = torch.stack([standardised(x, bank) for x in bank])
    assert torch.allclose(out.mean(dim=0), torch.zeros(3), atol=1e-5)
    assert torch.allclose(out.std(dim=0), torch.ones(3), rtol=0.1)
    assert torch.allclose(standardised(bank[0] + 7, bank + 7), out[0], atol=0.1)


def test_samples_are_balanced_and_relabelled():
    pool = Pool(small_data(), "cpu")
    sample = pool.draw([7, 2, 4], 20, Rng(3), augment=False)
    assert sorted(torch.bincount(sample.target).tolist()) == [6, 7, 7]
    same = pool.draw([7, 2, 4], 20, Rng(3), augment=False, relabel=False)
    assert torch.equal(torch.tensor([7, 2, 4])[sample.target], same.target)
    assert len(pool.choose((2, 4), Rng(0))) in (2, 3, 4)
    assert len(pool.choose((50, 90), Rng(0))) == 10


def test_few_images_per_class_are_drawn_with_replacement():
    sample = Pool(small_data(n=20), "cpu").draw(range(5), 60, Rng(0), augment=False)
    assert torch.bincount(sample.target).tolist() == [12] * 5


# ---------------------------------------------------------------------------------------------------- the generator


@pytest.mark.parametrize("options", [{}, {"encoder": "classes"}, {"prior": "beta_bernoulli", "kl_weight": 0.1}])
def test_every_generator_parameter_has_a_gradient(options):
    method = dataclasses.replace(QUICK, **options)
    learner = learner_of(method)
    pool = Pool(small_data(), "cpu")
    sample = pool.draw(range(10), 40, Rng(1), augment=False)
    weights = learner.weights(learner.network.tensors, 10)
    loss, _ = learner.loss(weights, sample, Price(1.0, 0.3, method.kl_weight))
    loss.backward()
    assert not [n for n, p in learner.generator.named_parameters() if p.grad is None or not (p.grad != 0).any()]


def test_a_new_head_starts_at_zero_and_the_network_is_left_alone():
    learner = learner_of()
    before = {n: t.clone() for n, t in learner.network.tensors.items()}
    weights = learner.weights(learner.network.tensors, 17)
    assert {t.shape[0] for t in weights.head.values()} == {17}
    sample = Pool(small_data(), "cpu").draw(range(10), 20, Rng(0), augment=False)
    loss, result = learner.loss(weights, sample, Price(0.0, 1.0))
    assert result.loss == pytest.approx(np.log(17), abs=1e-4)
    loss.backward()
    assert all(torch.equal(t, before[n]) for n, t in learner.network.tensors.items())


def test_a_network_without_a_linear_head_is_refused():
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 10, 26), torch.nn.Flatten()
    )
    task = PruneTask(trace(model, torch.zeros(2, 1, 28, 28)), small_data())
    with pytest.raises(NotAvailableError, match=r"ends in nn\.Linear"):
        QUICK.propose(task, Budget(params="50%"), Rng(0))


# ---------------------------------------------------------------------------------------------------- meta-training


def gratings(name, kinds, seed=0, n=60):
    """Images whose classes are frequencies of stripes of one orientation, or blobs: domains that are easy to tell."""
    draw = np.random.default_rng(seed)
    y, x = np.mgrid[0:28, 0:28] / 28
    images, labels = [], []
    for c in range(4):
        for _ in range(n):
            phase, angle = draw.uniform(0, 6.28), {"rows": 0.0, "columns": 1.57, "blobs": 0.78}[kinds]
            wave = np.sin(6.28 * (c + 1) * 1.7 * (x * np.cos(angle) + y * np.sin(angle)) + phase)
            if kinds == "blobs":
                wave = wave * np.sin(6.28 * (c + 1) * 1.7 * (x - y) + phase) ** 8 - 0.5
            images.append(np.clip(127 + 90 * wave + draw.normal(0, 15, wave.shape), 0, 255))
            labels.append(c)
    order = draw.permutation(len(labels))
    pixels = torch.from_numpy(np.array(images, dtype=np.uint8)[order])[:, None]
    split = TensorSplit(pixels, torch.from_numpy(np.array(labels)[order]), (0.5,), (0.3,))
    return Data(name, split, split.take(40), split.take(40), 4, (1, 28, 28), tuple("0123"), f"{name}{seed}")


@pytest.fixture(scope="module")
def conditioned():
    """Meta-trained on three domains that look unlike; (method with its artifact, network, domains)."""
    torch.set_num_threads(1)
    with Rng(1).torch_global():
        model = create("zoo:resnet8", num_classes=4, in_channels=1, width=0.5)
    net = trace(model.eval(), torch.zeros(2, 1, 28, 28))
    domains = [gratings(kind, kind) for kind in ("rows", "columns", "blobs")]
    method = dataclasses.replace(
        QUICK,
        meta=dataclasses.replace(QUICK.meta, episodes=40, inner_steps=3, batch_size=32, ways=(3, 4), looks=False),
        set_dim=16,
        hidden=16,
        strength=1.0,
        shares=(0.3, 0.3),
        adapt_steps=0,
        mask="generator",
    )
    artifact = method.fit([PruneTask(net, d) for d in domains], Rng(0))
    return method.restore(artifact), net, domains


def test_masks_follow_the_data(conditioned):
    """The check that a collapsed generator fails: one task's two samples are more alike than two tasks'."""
    method, _, _ = conditioned
    found = method.fitted.info["conditioning"]
    assert found["jaccard_same"] - found["jaccard_different"] >= 0.1, found


def test_twice_the_samples_give_about_the_same_mask(conditioned):
    method, net, domains = conditioned
    task = PruneTask(net, domains[0])
    made = method._as_fitted(task, method.fitted)
    learner, _ = made._restored(task, method.fitted, 4)
    pool, masks = Pool(domains[0], "cpu"), []
    for count in (64, 128):
        flat = np.concatenate(learner.probabilities([pool.draw(range(4), count, Rng(count), augment=False)], 0.3))
        masks.append(np.argsort(np.argsort(-flat)) < len(flat) // 2)
    assert jaccard(*masks) >= 0.9
    other = learner.probabilities([Pool(domains[-1], "cpu").draw(range(4), 128, Rng(0), augment=False)], 0.3)
    ranks = np.argsort(np.argsort(-np.concatenate(other)))
    assert jaccard(masks[1], ranks < len(ranks) // 2) < 0.9  # a fixed mask would pass the line above


def test_one_generator_keeps_as_much_as_it_is_asked_for():
    net, data = network(), small_data()
    meta = dataclasses.replace(QUICK.meta, episodes=40, generator_lr=5e-2, ramp=0.01)
    method = dataclasses.replace(QUICK, meta=meta, shares=(0.1, 0.6), strength=5.0)
    task = PruneTask(net, data)
    learner, _ = method._restored(task, method.fit([task], Rng(0)), 10)
    sample, soft = Pool(data, "cpu").draw(range(10), 40, Rng(1), augment=False), SoftCost(net.cost_model(), "params")
    kept = []
    for share in (0.1, 0.25, 0.6):
        widths = [p.sum() for p in learner.probabilities([sample], share)]
        kept.append(float(soft(torch.tensor(np.array(widths), dtype=torch.float64))))
    assert kept[0] < kept[1] < kept[2], kept
    assert kept[2] > 1.2 * kept[0], kept


def test_a_look_is_of_the_whole_set():
    images = torch.randn(4, 3, 5, 5)
    sample = Sample((images,), {}, torch.zeros(4, dtype=torch.int64))
    grey = seen_as(sample, "grey").args[0]
    assert torch.allclose(grey, images.mean(dim=1, keepdim=True).expand_as(images))
    assert torch.equal(seen_as(sample, "inverted").args[0], -images)
    assert torch.equal(seen_as(sample, "grey and inverted").args[0], -grey)
    tokens = Sample((torch.zeros(4, 7, dtype=torch.int64),), {}, sample.target)
    assert seen_as(tokens, "inverted") is tokens
    assert seen_as(sample, LOOKS[0]) is sample
    found = [MetaConfig().look(Rng(i)) for i in range(60)]
    assert set(found) == set(LOOKS)
    assert 15 < found.count(LOOKS[0]) < 45
    assert {MetaConfig(looks=False).look(Rng(i)) for i in range(20)} == {LOOKS[0]}


def test_kept_cost_falls_with_strength():
    net, data = network(), small_data()
    kept = []
    for strength in (0.0, 0.01, 3.0):  # far above these the price alone steers, and more of it changes nothing
        meta = dataclasses.replace(QUICK.meta, episodes=12, generator_lr=2e-2, ramp=0.01)
        artifact = dataclasses.replace(QUICK, strength=strength, shares=(0.01, 0.01), meta=meta, logit_decay=0.0).fit(
            [PruneTask(net, data)], Rng(0)
        )
        kept.append(artifact.info["history"]["rows"][-1]["kept_cost"])
    assert kept[0] > kept[1] > kept[2]


@pytest.mark.parametrize("outer", ["reptile", pytest.param("fomaml", marks=pytest.mark.thorough)])
def test_a_killed_meta_training_goes_on_to_the_same_numbers(tmp_path, monkeypatch, outer):
    net, data = network(), small_data()
    method = dataclasses.replace(QUICK, meta=dataclasses.replace(QUICK.meta, outer=outer))
    whole = method.fit([PruneTask(net, data)], Rng(0))
    task = PruneTask(net, data, folder=tmp_path)
    drawn, draw = [], Pool.draw

    def killed(self, *args, **kwargs):
        drawn.append(1)
        if len(drawn) > 30:  # 16 of them fill the bank
            raise KeyboardInterrupt
        return draw(self, *args, **kwargs)

    monkeypatch.setattr(Pool, "draw", killed)
    with pytest.raises(KeyboardInterrupt):
        method.fit([task], Rng(0))
    monkeypatch.undo()
    assert list((tmp_path / "checkpoints" / "stamp").glob("epoch-*"))
    again = method.fit([task], Rng(0))
    assert all(torch.equal(t, whole.tensors[n]) for n, t in again.tensors.items())
    assert again.info["history"]["rows"] == whole.info["history"]["rows"]
    assert method.fit([task], Rng(0)).info["seconds"] == again.info["seconds"]  # nothing was left to do


@pytest.mark.parametrize("head", ["kept", "zero"])
def test_a_kept_head_goes_on_from_episode_to_episode(head):
    learner, pool = learner_of(), Pool(small_data(), "cpu")
    heads = [learner.weights(learner.network.tensors, len(pool.classes)).head]
    own = {n: t for n, t in learner.network.tensors.items() if n not in heads[0]}
    state = MetaState(learner.generator, own, sum(learner.gated.widths), heads)
    config = dataclasses.replace(QUICK.meta, episodes=1, head=head, ways=(4, 4))
    price = Price(3.0, 0.25)
    meta_train(learner, state, [pool], config, Rng(0), price=price, folder=None, identity={}, progress=False)
    moved = [int(tensor.flatten(1).any(dim=1).sum()) for tensor in state.head(0).values() if tensor.dim() > 1]
    assert moved == ([4] if head == "kept" else [0])


def test_a_generator_that_sees_nothing_is_a_fixed_mask_and_a_blind_one_is_reported():
    net, data = network(), small_data()
    static = dataclasses.replace(QUICK, use_set=False, use_activations=False).fit([PruneTask(net, data)], Rng(0))
    assert static.info["conditioning"]["margin"] == 0
    blind = dataclasses.replace(QUICK, use_activations=False)
    learned = blind.fit([PruneTask(net, data)], Rng(0))
    dead = {n: torch.zeros_like(t) if "bodies" in n else t for n, t in learned.tensors.items()}
    task = PruneTask(net, data)
    learner, _ = blind._restored(task, Artifact("stamp", dead, learned.info), 10)
    with pytest.warns(CollapseWarning, match="about the same mask"):
        blind._conditioning(learner, [Pool(data, "cpu")], Rng(0))


# ---------------------------------------------------------------------------------------------------- adaptation


def test_artifacts_come_back_and_the_proposal_is_the_same(conditioned, tmp_path):
    method, net, domains = conditioned
    method.fitted.save(tmp_path)
    again = method.restore(Artifact.load(tmp_path, "stamp"))
    plans = [m.propose(PruneTask(net, domains[1]), Budget(params="30%"), Rng(4)) for m in (method, again)]
    assert plans[0].plan == plans[1].plan
    assert all(torch.equal(t, plans[1].weights[n]) for n, t in plans[0].weights.items())


@pytest.mark.parametrize("blend", [0.0, 0.25, 1.0])
def test_adaptation_starts_between_the_pretrained_and_the_meta_trained_weights(conditioned, blend):
    method, net, domains = conditioned
    found = dataclasses.replace(method, blend=blend).propose(PruneTask(net, domains[0]), Budget(params="30%"), Rng(4))
    tensors = method.fitted.tensors  # and it ends there: the fixture adapts for no steps
    for name in (n.removeprefix("network.") for n in tensors if n.startswith("network.")):
        before, after = tensors[f"reference.{name}"], tensors[f"network.{name}"]
        if before.is_floating_point():
            assert torch.allclose(found.weights[name], (1 - blend) * before + blend * after, atol=1e-6), name
    assert not torch.allclose(tensors["network.conv1.weight"], tensors["reference.conv1.weight"], atol=1e-3)


def test_sets_are_read_as_they_are_trained_on(monkeypatch):
    """A generator that was trained on shifted images gives another mask for whole ones."""
    seen, draw = set(), Pool.draw
    monkeypatch.setattr(Pool, "draw", lambda pool, *a, **k: (seen.add(k["augment"]), draw(pool, *a, **k))[1])
    method = dataclasses.replace(QUICK, meta=dataclasses.replace(QUICK.meta, augment=True, episodes=1))
    method.propose(PruneTask(network(), small_data()), Budget(macs="50%"), Rng(0))
    assert seen == {True}


def test_a_proposal_knows_the_targets_before_it(tmp_path):
    task, made = PruneTask(network(), small_data(), folder=tmp_path / "targets" / "new"), Stamp(artifact=str(tmp_path))
    record = {"data": "birds", "budget": {"macs": "50%"}, "method_details": {"stamp": {"kept": [1, 2]}}, "seed": 0}
    for name, found in (("birds", record), ("new", record), ("other", {"data": "no stamp"})):
        (tmp_path / "targets" / name).mkdir(parents=True)
        (tmp_path / "targets" / name / "record.json").write_text(json.dumps(found))
    (known,) = made._targets(task)
    assert known["data"] == "birds" and known["kept"] == [1, 2] and "seed" not in known


def test_threshold_is_the_generators_own_size_or_an_error(conditioned):
    method, net, domains = conditioned
    task, own = PruneTask(net, domains[0]), dataclasses.replace(method, freeze="threshold")
    plan = own.propose(task, Budget(params="99%"), Rng(0)).plan
    assert net.cost(plan).params < net.cost().params
    with pytest.raises(InfeasibleBudgetError, match="the generator's own mask exceeds"):
        own.propose(task, Budget(params="3%"), Rng(0))


def test_a_branch_without_a_probable_channel_goes_where_it_may():
    network = trace(small_network("transformer"), torch.zeros(2, 1, 28, 28))
    space, branch = network.space, network.space.branch_groups[0]
    probabilities = [np.full(g.width, 0.2 if i in branch else 0.7) for i, g in enumerate(space)]
    for least in (0, 1):
        task = PruneTask(network, constraints=Constraints(min_keep=least))
        plan = Channels(task).above(0.5, probabilities).plan
        assert plan.keep == {space[i].name: () if least == 0 else (0,) for i in branch}
        assert network.cost(plan).macs < network.cost().macs and cut(network, plan, form="graph").error is not None


def test_structure_hands_over_no_weights(conditioned):
    method, net, domains = conditioned
    found = dataclasses.replace(method, variant="structure").propose(
        PruneTask(net, domains[0]), Budget(params="30%"), Rng(0)
    )
    assert found.weights is None
    assert found.plan.keep


def test_a_diverging_step_says_so():
    learner = learner_of()
    weights = learner.weights(learner.network.tensors, 10)
    sample = Pool(small_data(), "cpu").draw(range(10), 20, Rng(0), augment=False)
    broken = dataclasses.replace(sample, args=(sample.args[0] * float("nan"),))
    before = {n: t.clone() for n, t in weights.leaves.items()}
    with pytest.raises(TrainingDivergedError, match="Lower lr"):
        gradient_step(learner, weights, (sgd(weights, 0.1, 0.1),), broken, Rng(0), Price(1.0, 1.0))
    assert all(torch.equal(t, before[n]) for n, t in weights.leaves.items())


def test_bad_targets(conditioned):
    method, net, domains = conditioned
    one = dataclasses.replace(domains[0], train=domains[0].train.subset(np.flatnonzero(domains[0].train.labels == 1)))
    for data, error, text in (
        (one, DataError, "at least 2"),
        (dataclasses.replace(domains[0], input_shape=(3, 28, 28)), DataError, "data.channels=1"),
    ):
        with pytest.raises(error, match=text):
            method.propose(PruneTask(net, data), Budget(params="30%"), Rng(0))
    with pytest.raises(ConfigError, match="another space"):
        method.propose(PruneTask(network(), domains[0]), Budget(params="30%"), Rng(0))


def test_a_budget_that_meta_training_did_not_see_is_said(conditioned):
    method, net, domains = conditioned
    task, (low, high) = PruneTask(net, domains[0]), method.shares
    for budget, text in (
        (Budget(params=f"{100 * min(1.0, 1.5 * high):.4f}%"), "meta-trained for"),
        (Budget(macs="50%"), "does not bound params"),
    ):
        with pytest.warns(UserWarning, match=text):
            method._price(task, budget)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method._price(task, Budget(params=f"{100 * (low * high) ** 0.5:.4f}%"))


def test_references_are_looked_at_before_anything_is_trained():
    task = PruneTask(network(), small_data())
    with pytest.raises(ConfigError, match="no-such"):
        Stamp(references=("builtin:no-such",)).require_feasible(task, Budget(params="50%"))
    with pytest.raises(NotAvailableError, match="metaprune latency"):
        Stamp(metric="latency_ms").require_feasible(task, Budget(params="50%"))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"set_dim": 32, "heads": 5}, "does not divide"),
        ({"kl_weight": 1.0}, "beta_bernoulli"),
        ({"encoder": "atention"}, "Did you mean 'attention'"),
        ({"keep": 1.5}, "stamp.keep"),
        ({"blend": -0.1}, "stamp.blend"),
        ({"shares": (0.5,)}, "least and most"),
        ({"shares": (0.5, 0.2)}, "least and most"),
        ({"adapt_steps": -1}, "stamp.adapt_steps"),
    ],
)
def test_wrong_options(options, text):
    with pytest.raises(ConfigError, match=text):
        Stamp(**options)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"ways": (1, 3)}, "at least 2"),
        ({"ways": (2,)}, "at least 2"),
        ({"lr": -1}, r"stamp\.meta\.lr"),
        ({"outer": "reptil"}, "Did you mean 'reptile'"),
        ({"head": "kep"}, "Did you mean 'kept'"),
    ],
)
def test_wrong_options_of_meta_training(options, text):
    with pytest.raises(ConfigError, match=text):
        MetaConfig(**options)
