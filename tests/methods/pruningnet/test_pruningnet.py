"""Generated weights, the supernet, honest scoring, and PruningNet as a method (research/pruningnet.md, section 7.5)."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from metaprune.core.errors import ConfigError, DataError, InfeasibleBudgetError
from metaprune.core.files import tensors_digest
from metaprune.core.imports import allow_torchvision_import
from metaprune.core.rng import Rng
from metaprune.data import Data, TensorSplit, as_data
from metaprune.methods.pruningnet.banks import Bank, GeneratedBank, Generator, take
from metaprune.methods.pruningnet.method import PruningNet
from metaprune.methods.pruningnet.supernet import Scorer, Supernet, SupernetLoss
from metaprune.models import create
from metaprune.objective import Classification
from metaprune.protocol.artifact import Artifact
from metaprune.protocol.method import LearnedMethod, PruneTask, recovery_after, require_feasible
from metaprune.protocol.registry import create_method
from metaprune.search.config import EvolutionConfig, SearchConfig
from metaprune.search.encoding import WidthEncoding
from metaprune.surgery import cut
from metaprune.testing.method_suite import small_data, small_network
from metaprune.testing.oracles import assert_untouched, perturb
from metaprune.tracing import trace
from metaprune.train.config import TrainConfig
from metaprune.train.evaluate import quality_on
from metaprune.values import Budget, Constraints

QUICK = TrainConfig(epochs=1, batch_size=16, lr=0.02, nesterov=False, augment=False)
FEW = SearchConfig(evolution=EvolutionConfig(population=4, generations=2, parents=2))


def quick(**options):
    """With generated weights, which have more that can go wrong than the default, unless told otherwise."""
    small = {"train": QUICK, "search": FEW, "sub_validation": 32, "calibration": 32, "batch_size": 16}
    return PruningNet(**small | {"weights": "generated"} | options)


@pytest.fixture(scope="module", params=["cnn", "transformer", "densenet"])
def network(request):
    if request.param != "densenet":
        return trace(small_network(request.param), torch.zeros(2, 1, 28, 28))
    allow_torchvision_import()
    from timm.models.densenet import DenseNet

    with Rng(5).torch_global():
        model = DenseNet(growth_rate=8, block_config=(2, 3), num_classes=10, in_chans=1)
    return trace(perturb(model, seed=3).eval(), torch.zeros(2, 1, 28, 28))


@pytest.fixture(scope="module")
def cnn():
    return trace(small_network("cnn"), torch.zeros(2, 1, 28, 28))


def bank_of(network, codec, kind="generated", **options):
    if kind == "shared":
        return Bank(network)
    defaults = {"hidden": 8, "hidden_of": {}, "rank": None, "blocks": (), "from_network": True, "norm_affine": True}
    with Rng(1).torch_global():
        return GeneratedBank(network, codec, **{**defaults, **options})


def supernet_of(network, kind="generated", **options):
    codec = WidthEncoding(network.space)
    return Supernet(network, codec, bank_of(network, codec, kind), **options)


# ---------------------------------------------------------------------------------------------------- generators


@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("rows", [(5, 4), (12, 4), (5, 7), ("odd", "odd")])
def test_generating_a_slice_is_generating_all_and_cropping(rank, rows):
    with Rng(0).torch_global():
        generator = Generator((12, 7, 3, 3), 2, 8, rank, torch.randn(12, 7, 3, 3)).double()
    kept = [np.arange(1, n, 2) if r == "odd" else np.arange(r) for r, n in zip(rows, (12, 7), strict=True)]
    encoding = torch.tensor([0.4, 0.7], dtype=torch.float64)
    weight = torch.randn([len(k) for k in kept] + [3, 3], dtype=torch.float64)
    grads = []
    for slice_first in (True, False):
        generator.zero_grad()
        if slice_first:
            out = generator(encoding, [*kept, None, None])
        else:
            out = take(generator(encoding, [None] * 4), kept)
        (out * weight).sum().backward()
        grads.append((out.detach(), {n: p.grad.clone() for n, p in generator.named_parameters()}))
    assert torch.allclose(grads[0][0], grads[1][0], rtol=0, atol=1e-14)
    for name, grad in grads[0][1].items():
        assert torch.allclose(grad, grads[1][1][name], rtol=0, atol=1e-13), name
        assert grad.abs().sum() > 0
    outside = torch.ones(12, 7, dtype=torch.bool)
    outside[np.ix_(*kept)] = False
    assert (grads[0][1]["bias"][outside] == 0).all()
    assert (grads[0][1]["basis"][outside] == 0).all()


def test_the_same_vector_gives_the_same_weights_and_another_gives_others(network):
    """On the crop that two structures share: this is what tells generated from shared weights."""
    codec = WidthEncoding(network.space)
    small, large = codec.widths(np.maximum(codec.sizes // 2, 1)), codec.widths(codec.full)
    for kind, differs in (("generated", True), ("shared", False)):
        supernet = Supernet(network, codec, bank_of(network, codec, kind))
        name = next(iter(supernet.bank._encodings)) if kind == "generated" else "fc.weight"
        if kind == "shared" and name not in network.tensors:
            name = next(n for n, t in network.tensors.items() if t.dim() == 2 and isinstance(t, nn.Parameter))
        first, again = (supernet.weights(small)[0][name] for _ in range(2))
        assert torch.equal(first, again)
        rows = supernet.bank.rows(name, supernet.weights(small)[1])
        other = take(supernet.weights(large, full_size=True)[0][name], rows)
        assert torch.equal(first, other) is not differs


def test_parameter_counts_of_the_papers_networks():
    """research/pruningnet.md, 7.4 (MLPs), 7.2 (genes, MACs, parameters), counted from the authors' definitions."""
    stages = enumerate((3, 4, 6, 3), 1)
    ties = tuple((f"=layer{s}.{b}.conv1", f"=layer{s}.{b}.conv2") for s, n in stages for b in range(n))
    v2 = {"widths": [44, 22, 33, 44, 88, 132, 224, 448, 1280], "expand_first": True}
    v2_hidden = {"features.0.*": 32, "features.18.*": 32}
    cases = (
        (
            "zoo:mobilenet_v1",
            {},
            {"ignore": ("=blocks.12.pointwise",)},
            ("blocks.*",),
            32,
            {},
            13,
            105_110_464,
            1_158_601,
        ),
        (
            "zoo:mobilenet_v2",
            v2,
            {"ignore": ("=features.18.0",)},
            ("features.[1-9]", "features.1[0-7]"),
            64,
            v2_hidden,
            25,
            240_704_558,
            1_385_299,
        ),
        (
            "zoo:resnet50",
            {},
            {"ignore": ("=layer4.0.conv3",), "ties": ties},
            ("layer?.?",),
            32,
            {},
            20,
            774_018_816,
            2_957_685,
        ),
    )
    for spec, options, limits, blocks, hidden, hidden_of, genes, parameters, smallest in cases:
        found = trace(create(spec, num_classes=1000, **options), torch.zeros(2, 3, 224, 224))
        codec = WidthEncoding(found.space, Constraints(**limits))
        bank = GeneratedBank(
            found,
            codec,
            hidden=hidden,
            hidden_of=hidden_of,
            rank=None,
            blocks=blocks,
            from_network=False,
            norm_affine=False,
            device="meta",
        )
        assert len(codec.genes) == genes
        assert sum(p.numel() for p in bank.generators.parameters()) == parameters
        assert found.cost(codec.widths(codec.smallest)).params == smallest


def test_a_factorised_second_layer_is_smaller(cnn):
    codec = WidthEncoding(cnn.space)
    sizes = [sum(p.numel() for p in bank_of(cnn, codec, rank=r, hidden=32).parameters()) for r in (None, 8, 2)]
    assert sizes[0] > 3 * sizes[1] > 6 * sizes[2] / 2


def test_norm_affine_off_trains_no_scale(cnn):
    codec = WidthEncoding(cnn.space)
    frozen = [n for n, p in bank_of(cnn, codec, norm_affine=False).shared.items() if not p.requires_grad]
    assert frozen
    assert all("bn" in n or "downsample" in n or "shortcut" in n for n in frozen)


# ---------------------------------------------------------------------------------------------------- supernet


@pytest.mark.parametrize("kind", ["generated", "shared"])
def test_a_plain_network_with_the_banks_weights_is_the_supernet(network, kind):
    """Cut with the full-size tensors of a structure: the same logits as the supernet, statistics calibrated."""
    supernet = supernet_of(network, kind)
    codec = supernet.codec
    x = torch.randn(32, 1, 28, 28)
    scorer = Scorer(supernet, [(x, None)], [], Classification())
    for genome in (codec.full, codec.random(1, np.random.default_rng(0))[0]):
        widths = codec.widths(genome)
        at, tensors = scorer.calibrated(widths)
        expected = at.run(x, tensors=tensors)
        pruned = cut(network, codec.plan(widths), weights=scorer.full_size(widths))
        assert pruned.error <= 1e-9
        assert torch.allclose(pruned.model(x), expected, atol=1e-5)


def test_training_reaches_every_parameter(network):
    supernet = supernet_of(network).train()
    loss = SupernetLoss(Classification(), 0.1, False)
    for _ in range(4):
        with Rng(_).torch_global():
            x, y = torch.randn(8, 1, 28, 28), torch.randint(0, 10, (8,))
            loss(supernet(x), x, y).backward()
    missing = [n for n, p in supernet.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert missing == []


def test_one_structure_or_the_sandwich(cnn):
    x = torch.randn(4, 1, 28, 28)
    with Rng(0).torch_global():
        assert len(supernet_of(cnn).train()(x)) == 1
    sandwich = supernet_of(cnn, sampling="sandwich", structures=4).train()
    with Rng(0).torch_global():
        drawn = sandwich._draw()
        outputs = sandwich(x)
    assert (drawn[0] == sandwich.codec.full).all()
    assert (drawn[1] == sandwich.codec.smallest).all()
    assert len(drawn) == len(outputs) == 4
    y = torch.tensor([0, 1, 2, 3])
    with_labels, with_teacher = (SupernetLoss(Classification(), 0.0, distil)(outputs, x, y) for distil in (False, True))
    hard = torch.stack([nn.functional.cross_entropy(o, y) for o in outputs]).mean()
    assert with_labels == hard
    soft = [nn.functional.cross_entropy(outputs[0], y)]
    teacher = outputs[0].log_softmax(-1)
    soft += [(teacher.exp() * (teacher - o.log_softmax(-1))).sum(-1).mean() for o in outputs[1:]]
    assert torch.allclose(with_teacher, torch.stack(soft).mean())
    grad = torch.autograd.grad(with_teacher - soft[0] / 4, outputs[0], allow_unused=True, retain_graph=True)[0]
    assert grad is None or grad.abs().max() < 1e-7  # the teacher is detached


def test_stratified_structures_are_of_every_budget_alike(cnn):
    supernet = supernet_of(cnn, sampling="stratified")
    costs, codec = cnn.cost_model(), supernet.codec
    least, most = costs.metric("macs", codec.widths(np.stack([codec.smallest, codec.full])))
    with Rng(0).torch_global():
        drawn = np.concatenate([supernet._draw() for _ in range(4000)])
    depth = np.log(costs.metric("macs", codec.widths(drawn)) / least) / np.log(most / least)
    counts, _ = np.histogram(depth, bins=4, range=(0, 1))
    assert (np.abs(counts / len(drawn) - 1 / 4) < 0.1).all()  # a coarse grid leaves some below their stratum
    with Rng(0).torch_global():
        assert np.array_equal(supernet_of(cnn, sampling="stratified")._draw(), drawn[:1])


def test_structures_are_uniform_over_the_candidates(cnn):
    supernet = supernet_of(cnn)
    with Rng(0).torch_global():
        drawn = np.concatenate([supernet._draw() for _ in range(6000)])
    for gene, size in enumerate(supernet.codec.sizes):
        share = np.bincount(drawn[:, gene], minlength=size) / len(drawn)
        assert abs(share - 1 / size).max() < 0.02


# ---------------------------------------------------------------------------------------------------- scoring


def test_calibration_is_the_mean_of_the_batches_in_any_order(cnn):
    codec = WidthEncoding(cnn.space)
    supernet = Supernet(cnn, codec, bank_of(cnn, codec))
    widths = codec.widths(codec.sizes // 2)
    batches = [torch.randn(16, 1, 28, 28) * (i + 1) for i in range(3)]
    at, tensors = Scorer(supernet, [], [], Classification()).calibrated(widths)

    def statistics(order):
        return at.calibrated(tensors, [((batches[i],), {}) for i in order])

    forward, backward = statistics([0, 1, 2]), statistics([2, 1, 0])
    alone = [statistics([i]) for i in range(3)]
    first = next(n for n in forward if n.endswith("running_mean"))  # of the first norm: its input knows no statistics
    assert torch.allclose(forward[first], torch.stack([a[first] for a in alone]).mean(0), atol=1e-6)
    for name in forward:
        if name.endswith(("running_mean", "running_var")):
            assert torch.allclose(forward[name], backward[name], atol=1e-5), name
            assert not torch.equal(forward[name], tensors[name])
        else:
            assert forward[name] is tensors[name]


def test_scoring_is_deterministic_and_leaves_everything_alone(network):
    supernet = supernet_of(network)
    x, y = torch.randn(40, 1, 28, 28), torch.randint(0, 10, (40,))
    batches = [(x, y)], [(x[:30], y[:30]), (x[30:], y[30:])]
    scorer = Scorer(supernet, *batches, Classification())
    widths = supernet.codec.widths(supernet.codec.sizes // 2)
    before = {n: t.clone() for n, t in supernet.state_dict().items()}
    state = torch.get_rng_state()
    with assert_untouched(network.model):
        first, second = scorer(widths), scorer(widths)
    assert first == second
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(t, supernet.state_dict()[n]) for n, t in before.items())
    assert first["score"] == math.exp(-first["loss"])
    assert first["metric"] == round(first["metric"] * 40) / 40
    assert Scorer(supernet, *batches, Classification(), "metric")(widths) == {**first, "score": first["metric"]}


def test_a_structure_whose_loss_is_not_finite_scores_nothing(network):
    supernet = supernet_of(network)
    bad = torch.full((4, 1, 28, 28), torch.nan)
    judged = [(bad, torch.zeros(4, dtype=torch.int64))]
    scorer = Scorer(supernet, [(torch.randn(8, 1, 28, 28), None)], judged, Classification())
    assert scorer(supernet.codec.widths(supernet.codec.full))["score"] == 0


# ---------------------------------------------------------------------------------------------------- the method


@pytest.fixture(scope="module")
def fitted(cnn):
    task = PruneTask(cnn, small_data())
    return task, quick().fit([task], Rng(0))


def test_the_split_is_of_the_training_images_and_kept(fitted):
    task, artifact = fitted
    held = artifact.tensors["split.validation"]
    assert len(held) == artifact.info["split"]["sub_validation"]
    assert artifact.info["split"]["sub_training"] + len(held) == len(task.data.train)
    session = quick().session(task, artifact)
    images = torch.cat([x for x, _ in session.scorer.validation])
    training, _ = next(task.data.train.subset(held.tolist()).batches(len(held)))
    assert torch.equal(images, training)


def test_save_and_load_give_the_same_scores(fitted, tmp_path):
    task, artifact = fitted
    artifact.save(tmp_path / "a")
    again = Artifact.load(tmp_path / "a", "pruningnet")
    assert json.loads(json.dumps(again.info)) == json.loads(json.dumps(artifact.info))
    sessions = [quick().session(task, a) for a in (artifact, again)]
    widths = sessions[0].codec.widths(sessions[0].codec.sizes // 2)
    assert sessions[0].scorer(widths) == sessions[1].scorer(widths)
    kept = quick(artifact=str(tmp_path / "a")).propose(task, Budget(macs="50%"), Rng(0))
    assert kept.plan == quick().restore(artifact).propose(task, Budget(macs="50%"), Rng(0)).plan


def test_one_fit_serves_many_budgets(fitted):
    task, artifact = fitted
    method = quick().restore(artifact)
    assert isinstance(method, LearnedMethod)
    full = task.network.cost().macs
    for share in (75, 50, 25):
        found = method.propose(task, Budget(macs=f"{share}%"), Rng(0))
        assert 0.95 * share / 100 <= task.network.cost(found.plan).macs / full <= share / 100
        assert len(found.trials) == 8
        assert max(t.score for t in found.trials) == found.details["search"]["scores"][found.details["search"]["best"]]


def test_closed_form_needs_no_training_and_hands_over_what_it_scored(tmp_path):
    """The winner's cut network scores as the search said, and the artifact holds no weights."""
    network = trace(small_network("cnn"), torch.zeros(2, 1, 28, 28))
    task = PruneTask(network, small_data(), batch_size=32, folder=tmp_path)
    method = PruningNet(weights="closed-form", search=FEW, sub_validation=32, calibration=64, batch_size=16)
    before = tensors_digest(network.tensors)
    artifact = method.fit([task], Rng(0))
    assert {name.split(".")[0] for name in artifact.tensors} == {"order", "split"}
    found = method.propose(task, Budget(macs="50%"), Rng(0))
    assert network.cost(found.plan).macs <= 0.5 * network.cost().macs
    pruned = cut(network, found.plan, weights=found.weights)
    assert pruned.error <= 1e-9
    session = method.session(task, artifact)
    widths = found.plan.widths(network.space)
    quality = quality_on(pruned.model.eval(), session.scorer.validation, Classification())
    assert math.exp(-quality["loss"]) == pytest.approx(max(t.score for t in found.trials), rel=1e-4)
    assert session.scorer(widths)["score"] == pytest.approx(max(t.score for t in found.trials), rel=1e-6)
    assert tensors_digest(network.tensors) == before
    dense = session.scorer(network.space.widths)  # uncut, the network is itself
    exact = quality_on(network.model.eval(), session.scorer.validation, Classification())
    assert dense["loss"] == pytest.approx(exact["loss"], rel=1e-4)


def test_closed_form_options_that_train_are_refused():
    with pytest.raises(ConfigError, match="sampling, structures: of training"):
        PruningNet(weights="closed-form", sampling="sandwich", structures=5)
    assert PruningNet(weights="closed-form").recovery("auto") == "none"
    with pytest.raises(ConfigError, match="throws away"):
        PruningNet(weights="closed-form").recovery("scratch")


def test_inherit_hands_over_the_generated_weights(fitted):
    task, artifact = fitted
    found = quick(inherit=True).restore(artifact).propose(task, Budget(macs="50%"), Rng(0))
    pruned = cut(task.network, found.plan, weights=found.weights)
    assert pruned.error <= 1e-9
    session = quick().session(task, artifact)
    widths = found.plan.widths(task.network.space)
    hits, count = 0, 0
    for x, y in session.scorer.validation:
        hits, count = hits + int((pruned.model(x).argmax(-1) == y).sum()), count + len(y)
    assert hits / count == session.scorer(widths)["metric"]


def test_a_killed_fit_ends_as_an_uninterrupted_one(cnn, tmp_path, monkeypatch):
    import metaprune.train.loop as loop

    method = quick(train=TrainConfig(epochs=3, batch_size=16, lr=0.02, nesterov=False))
    whole = method.fit([PruneTask(cnn, small_data())], Rng(0))
    saved, count = loop.save_checkpoint, 0

    def killed(*args, **kwargs):
        nonlocal count
        saved(*args, **kwargs)
        count += 1
        if count == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save_checkpoint", killed)
    task = PruneTask(cnn, small_data(), folder=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        method.fit([task], Rng(0))
    again = method.fit([task], Rng(0))
    assert all(torch.equal(t, again.tensors[n]) for n, t in whole.tensors.items())
    assert method.fit([task], Rng(0)).info["seconds"] == again.info["seconds"] > 0  # nothing was left to do


def test_constraints_hold_in_the_search(cnn):
    group = cnn.space.groups[1].name
    task = PruneTask(cnn, small_data(), Constraints(ignore=(f"={group}",), round_to=4))
    found = quick().propose(task, Budget(macs="50%"), Rng(0))
    assert group not in found.plan.keep
    assert all(len(k) % 4 == 0 for k in found.plan.keep.values())


def test_learning_on_real_digits_separates_wide_from_narrow():
    """A short fit on MNIST-like digits: the widest structure scores better than the narrowest, and above chance."""
    from metaprune.data import load_data

    data = load_data("builtin:digits", limit=2000)
    with Rng(0).torch_global():
        model = create("zoo:resnet8", num_classes=10, widths=[8, 16, 32])
    task = PruneTask(trace(model, torch.zeros(2, *data.input_shape)), data)
    method = quick(
        weights="shared",
        grid=(0.25, 0.5, 0.75, 1.0),
        sub_validation=200,
        calibration=256,
        batch_size=256,
        train=TrainConfig(epochs=6, batch_size=32, lr=0.1, nesterov=False),
    )
    session = method.session(task, method.fit([task], Rng(0)))
    wide, narrow = (
        session.scorer(session.codec.widths(g))["metric"] for g in (session.codec.full, session.codec.smallest)
    )
    assert wide > 0.5
    assert wide > narrow + 0.05


# ---------------------------------------------------------------------------------------------------- bad input


def test_a_budget_below_the_smallest_structure_fails_before_training(cnn):
    with pytest.raises(InfeasibleBudgetError, match="smallest reachable"):
        quick(train=TrainConfig(epochs=1e6)).propose(PruneTask(cnn, small_data()), Budget(macs="0.5%"), Rng(0))


def test_a_budget_that_the_grid_cannot_meet_is_known_before_training(cnn):
    coarse, task = quick(grid=(0.5, 1.0)), PruneTask(cnn, small_data())
    with pytest.raises(InfeasibleBudgetError, match="of the grid"):
        require_feasible(coarse, task, Budget(macs="10%"))
    require_feasible(coarse, task, Budget(macs="60%"))


def test_what_follows_the_cut():
    """The paper's training from scratch, unless weights are handed over, which it would throw away."""
    assert recovery_after(quick(), "auto") == "scratch"
    with pytest.warns(UserWarning, match="never scored"):
        assert recovery_after(quick(), "finetune") == "finetune"
    assert recovery_after(quick(inherit=True), "auto") == "none"
    with pytest.raises(ConfigError, match="finetune or distil"):
        recovery_after(quick(inherit=True), "scratch")
    assert recovery_after(create_method("magnitude"), "auto") == "none"


def test_more_held_out_than_half_and_fewer_than_classes(cnn):
    task = PruneTask(cnn, small_data())
    for count in (len(task.data.train), task.data.num_classes - 1):
        with pytest.raises(DataError, match=f"too few to hold out {count}"):
            quick(sub_validation=count).fit([task], Rng(0))
    held = quick(sub_validation=None)._split(task.data)[2]  # whole images of every class: about half
    assert abs(len(held) - len(task.data.train) // 2) <= task.data.num_classes


def test_globs_that_match_nothing_are_refused(cnn):
    for options in ({"blocks": ("nosuch*",)}, {"hidden_of": {"nosuch*": 4}}):
        with pytest.raises(ConfigError, match=r"'nosuch\*' matches nothing"):
            quick(**options).fit([PruneTask(cnn, small_data())], Rng(0))


def test_too_few_images_for_the_split(cnn):
    tiny = small_data(n=96)
    split = TensorSplit(torch.zeros(2, 1, 28, 28, dtype=torch.uint8), torch.tensor([0, 1]), (0.5,), (0.3,))
    data = Data("tiny", split, tiny.val, None, 10, (1, 28, 28), tiny.classes, "x")
    with pytest.raises(DataError, match=r"2 training images: too few"):
        quick().fit([PruneTask(cnn, data)], Rng(0))


def test_another_networks_artifact_is_refused(fitted, network):
    task, artifact = fitted
    other = trace(create("zoo:lenet", num_classes=10, in_channels=1), torch.zeros(2, 1, 28, 28))
    with pytest.raises(ConfigError, match="another space"):
        quick().session(PruneTask(other, small_data()), artifact)
    with pytest.raises(ConfigError, match="another constraints"):
        quick().session(PruneTask(task.network, task.data, Constraints(min_keep=4)), artifact)


def test_folders_without_an_artifact_and_bad_options(tmp_path):
    with pytest.raises(ConfigError, match=r"holds no artifact.*metaprune fit"):
        Artifact.load(tmp_path, "pruningnet")
    (tmp_path / "artifact.json").write_text('{"method": "stamp"}')
    with pytest.raises(ConfigError, match="cannot be read"):
        Artifact.load(tmp_path, "pruningnet")
    with pytest.raises(ConfigError, match="needs sampling='sandwich'"):
        PruningNet(distil=True)
    with pytest.raises(ConfigError, match="Did you mean 'generated'"):
        PruningNet(weights="generate")
    with pytest.raises(ConfigError, match=r"rank, blocks: of generators.*add weights='generated'"):
        PruningNet(rank=8, blocks=("layer?.?",))
    with pytest.raises(ConfigError, match="one network"):
        quick().fit([], Rng(0))


def test_another_models_or_datas_artifact_is_never_taken(fitted, tmp_path):
    """A folder that holds an artifact of other weights, other data or another seed is refused, not reused."""
    task, artifact = fitted
    other_data = PruneTask(task.network, small_data(seed=9))
    object.__setattr__(other_data.data, "digest", "other")
    with pytest.raises(ConfigError, match="another data digest"):
        quick().session(other_data, artifact)
    with Rng(3).torch_global():
        model = create("zoo:resnet8", num_classes=10, in_channels=1)
    with pytest.raises(ConfigError, match="another network weights"):
        quick().session(PruneTask(trace(model, torch.zeros(2, 1, 28, 28)), task.data), artifact)
    artifact.save(tmp_path)
    there = PruneTask(task.network, task.data, folder=tmp_path)
    with pytest.raises(ConfigError, match="another seed"):
        quick().propose(there, Budget(macs="50%"), Rng(1))


def test_calibration_is_of_all_classes_and_never_of_a_single_sample():
    from metaprune.methods.pruningnet.method import _calibration

    labels = torch.arange(10).repeat_interleave(33)  # sorted by class, as folders of images are
    split = TensorSplit(torch.zeros(330, 1, 8, 8, dtype=torch.uint8), labels, (0.5,), (0.3,))
    batches = _calibration(split, 64, 32, torch.device("cpu"))
    assert [len(y) for _, y in batches] == [32, 32]
    assert len(torch.cat([y for _, y in batches]).unique()) == 10
    again = _calibration(split, 64, 32, torch.device("cpu"))
    assert all(torch.equal(a[1], b[1]) for a, b in zip(batches, again, strict=True))
    assert [len(y) for _, y in _calibration(split.take(33), 64, 32, torch.device("cpu"))] == [32]


@pytest.mark.parametrize("own", [True, False], ids=["own generator", "global generator"])
def test_a_shuffling_loader_calibrates_on_the_same_images_wherever_it_stands(cnn, own):
    """A search that goes on in another process has drawn other numbers before; its scores must not change by that."""
    images = torch.rand(96, 1, 28, 28, generator=Rng(0).torch())
    set_ = TensorDataset(images, torch.arange(96) % 10)
    generator = torch.Generator().manual_seed(1) if own else None
    loaders = [DataLoader(set_, batch_size=16, shuffle=True, drop_last=True, generator=generator) for _ in range(2)]
    task = PruneTask(cnn, as_data((loaders[0], loaders[1])))
    artifact = quick().fit([task], Rng(0))
    before = torch.get_rng_state() if generator is None else generator.get_state()
    first = quick(calibration=32).session(task, artifact)
    assert torch.equal(before, torch.get_rng_state() if generator is None else generator.get_state())
    list(loaders[0])
    later = quick(calibration=32).session(task, artifact)
    for a, b in zip(first.scorer._calibration, later.scorer._calibration, strict=True):
        assert torch.equal(a[0][0], b[0][0])
    widths = first.codec.widths(first.codec.sizes // 2)
    assert first.scorer(widths) == later.scorer(widths)


@pytest.mark.parametrize("weights", ["generated", "shared", "closed-form"])
@pytest.mark.parametrize("kind", ["cnn", "transformer"])
def test_branches_may_be_dropped_where_that_is_asked_for(kind, weights):
    """At a bound that widths alone cannot meet: structures are trained, scored, cut and proved without branches."""
    model = create("zoo:resnet20", num_classes=10, in_channels=1) if kind == "cnn" else small_network(kind)
    network, data = trace(model, torch.zeros(2, 1, 28, 28)), small_data()
    task = PruneTask(network, data, constraints=Constraints(min_keep={"*:branch": 0}))
    narrowest = WidthEncoding(network.space)
    (smallest,) = network.cost_model().metric("macs", narrowest.widths(narrowest.smallest[None]))
    untrained = {"weights": weights, "search": FEW, "sub_validation": 32, "calibration": 64, "batch_size": 16}
    method = PruningNet(**untrained) if weights == "closed-form" else quick(weights=weights)
    proposal = method.restore(method.fit([task], Rng(0))).propose(task, Budget(macs=int(0.8 * smallest)), Rng(0))
    assert (proposal.plan.widths(network.space) == 0).any()
    assert network.at(proposal.plan).cost().macs <= 0.8 * smallest
    pruned = cut(network, proposal.plan, weights=proposal.weights)
    assert pruned.error is not None and pruned.error < 1e-9
