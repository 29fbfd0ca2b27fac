"""Graph metanetwork: the objective, meta-training, the flow and its controls, and what goes wrong."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
import torch_pruning as tp
from controls import Noise, NoRewrite, ShrinkageOnly, Shuffled, Sparse, control, noise_like, shrunk_like, shuffled
from torch import nn

from metaprune.core.errors import CollapseWarning, ConfigError, InfeasibleBudgetError, NoEffectWarning, WeightsError
from metaprune.core.rng import Rng
from metaprune.data import Data, TensorSplit
from metaprune.methods.metagraph.build_graph import build_network_graph
from metaprune.methods.metagraph.data_models import DataModelConfig, dropped_are_zero
from metaprune.methods.metagraph.losses import gated_loss, tuned_loss
from metaprune.methods.metagraph.meta import DataModel, MetaConfig, Trainer, rewritten
from metaprune.methods.metagraph.metanet import Metanet, MetanetConfig
from metaprune.methods.metagraph.method import MetaGraph
from metaprune.methods.metagraph.pruner import Pruner, area, metric_of, ranking, some_batches
from metaprune.methods.metagraph.rewrite import by_metanet
from metaprune.methods.metagraph.shrinkage import Shrinkage
from metaprune.models import create
from metaprune.objective import Classification
from metaprune.protocol.artifact import Artifact
from metaprune.protocol.method import PruneTask
from metaprune.testing.method_suite import small_data, small_network
from metaprune.testing.networks import toy
from metaprune.testing.oracles import perturb, random_plan
from metaprune.tracing import trace
from metaprune.train.config import TrainConfig
from metaprune.train.traced_module import TracedModule
from metaprune.values import Budget, Plan

TUNE = TrainConfig(epochs=1, batch_size=32, lr=0.02, augment=False)
QUICK = MetaGraph(
    objective="rewrite",
    metanet=MetanetConfig(hidden=8, layers=2),
    data_models=DataModelConfig(count=2, train=TUNE),
    meta=MetaConfig(steps=4, batches=1, batch_size=32, evaluate_every=2, save_every=1, judged=64),
)
pytestmark = pytest.mark.filterwarnings("ignore:no state of the metanetwork did better")


def task_of(kind="cnn", folder=None, model=None):
    model = small_network(kind) if model is None else model
    return PruneTask(trace(model, torch.zeros(2, 1, 28, 28)), small_data(), batch_size=32, folder=folder)


def stirred(metanet):
    """Decoders that do something, as after meta-training."""
    torch.manual_seed(0)
    for parameter in (metanet.kernel_add, metanet.vector_add, metanet.kernel_scale.weight):
        nn.init.normal_(parameter, std=0.3)
    return metanet


def data_model(task):
    tensors = {n: t.detach() for n, t in task.network.tensors.items()}
    return DataModel(task, build_network_graph(task.network), tensors)


# ---------------------------------------------------------------------------------------------------- objective


def test_the_gradient_is_gamma_times_the_weights():
    """Written out for two coupled layers: the slices of channel k get gamma_k w, biases nothing."""
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    network = trace(model, torch.zeros(1, 5))
    shrinkage = Shrinkage(network, alpha=16)
    first, second = model[0].weight, model[2].weight
    gammas = shrinkage.weights(network.tensors)
    (hidden,) = [i for i, g in enumerate(network.space) if g.width == 4]
    size = ((first**2).sum(1) / 2 + (second**2).sum(0) / 2).sqrt().detach()
    expected = 16 ** ((size.max() - size) / (size.max() - size.min()))
    assert torch.allclose(gammas[hidden], expected)
    shrinkage.loss(network.tensors, gammas).backward()
    assert torch.allclose(first.grad, expected[:, None] * first)
    assert torch.allclose(second.grad, expected[None] * second)
    assert model[0].bias.grad is None or not model[0].bias.grad.any()


def test_equal_channels_are_shrunk_alike():
    model = nn.Sequential(nn.Linear(5, 4, bias=False), nn.Linear(4, 3))
    nn.init.ones_(model[0].weight)
    nn.init.ones_(model[1].weight)
    network = trace(model, torch.zeros(1, 5))
    assert all(torch.equal(g, torch.ones_like(g)) for g in Shrinkage(network).weights(network.tensors))


def test_dropped_channels_weigh_nothing():
    network = trace(perturb(toy("residual").model), toy("residual").args)
    plan = random_plan(network.space, 0.5, seed=0)
    gammas = Shrinkage(network).weights(network.tensors, plan)
    for gamma, mask in zip(gammas, plan.masks(network.space), strict=True):
        assert ((gamma > 0).numpy() == mask).all()


def test_a_steps_gradient_is_that_of_the_whole_loss():
    """One update (gradients at the rewritten weights, then once through) against all of it at once."""
    task = task_of()
    config = MetaConfig(steps=4, batches=2, batch_size=16, lr=1e-9, max_grad_norm=1e9, shrinkage=0.5)
    metanet = stirred(Metanet(MetanetConfig(hidden=6, layers=2)))
    trainer = Trainer(metanet, [data_model(task)] * 2, config, ranking("magnitude", {}), held=1)
    adam = torch.optim.AdamW(metanet.parameters(), lr=config.lr)
    before = copy.deepcopy(metanet)
    row = trainer._step(adam, Rng(3), 0)

    new = rewritten(before.train(), trainer.models[0], trainer.graphs[0], row["strength"])
    plan = trainer.pruners[0].at_share(new, config.share(row["strength"]), Rng(3).child("rank"))
    network = task.network
    small = dict(network.sliced(network.survivors(plan), tensors=new))
    losses = []
    for inputs, labels in some_batches(task.data.train, 16, 2, torch.device("cpu"), Rng(3)):
        used = {n: t if isinstance(network.tensors[n], nn.Parameter) else t.clone() for n, t in small.items()}
        logits = network.at(plan).run(inputs, tensors=used, training=True)
        losses.append(nn.functional.cross_entropy(logits, labels))
    shrinkage = trainer.shrinkages[0]
    shrunk = shrinkage.loss(new, shrinkage.weights(new, Plan())) / trainer.norms[0]
    (sum(losses) / 2 + 0.5 * row["strength"] * shrunk).backward()
    assert row["loss"] == pytest.approx((sum(losses) / 2 + 0.5 * row["strength"] * shrunk).item(), rel=1e-5)
    found, expected = (
        torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]) for net in (metanet, before)
    )
    assert float(expected.norm()) > 1e-2
    assert float((found - expected).norm() / expected.norm()) < 0.02  # of float32 through BatchNorm of 16 samples


@pytest.mark.parametrize("kind", ["cnn", "transformer"])
def test_straight_through_gates_give_the_loss_of_the_cut(kind):
    """The value is the cut network's, BatchNorm and all; a dropped channel's gate has a gradient, the hard cut none."""
    task = task_of(kind)
    network, shrinkage = task.network, Shrinkage(task.network)
    tensors = {
        n: t.detach().double().requires_grad_(t.requires_grad) if t.is_floating_point() else t
        for n, t in network.tensors.items()
    }
    plan = random_plan(network.space, 0.5, seed=0)
    (inputs, labels), *_ = some_batches(task.data.train, 16, 1, torch.device("cpu"), Rng(0))
    batches = [(inputs.double(), labels)]
    gates = shrinkage.gates(tensors, plan)
    for gate, mask in zip(gates, plan.masks(network.space), strict=True):
        gate.retain_grad()
        assert torch.equal(gate.detach().round(decimals=12), torch.from_numpy(mask).double())
    loss, _ = gated_loss(network, tensors, gates, batches, Classification())
    assert (
        gated_loss(network, tensors, [g.detach() for g in gates], batches, Classification())[0] == loss
    )  # of fixed weights
    alive = network.survivors(plan)
    trained = {n for n, t in network.tensors.items() if isinstance(t, nn.Parameter)}
    small = {n: t.detach().requires_grad_(n in trained) for n, t in network.sliced(alive, tensors=tensors).items()}
    assert loss == pytest.approx(tuned_loss(network.at(alive), small, batches, Classification(), 0, 0.1)[0], rel=1e-9)
    dropped = [~torch.from_numpy(mask) for mask in plan.masks(network.space)]
    assert any(gate.grad[d].abs().max() > 0 for gate, d in zip(gates, dropped, strict=True) if d.any())
    assert all(tensors[n].grad is not None for n in trained)


@pytest.mark.parametrize("steps", [0, 2])
def test_the_gradient_after_tuning_is_first_order_maml(steps):
    network = trace(nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), torch.zeros(2, 6))
    network = network.with_tensors({n: t.detach().double() for n, t in network.tensors.items()})
    draw = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(8, 6, generator=draw, dtype=torch.float64), torch.randint(3, (8,), generator=draw))
        for _ in range(steps + 2)
    ]
    start = {n: t.detach().clone().requires_grad_() for n, t in network.tensors.items()}
    loss, _ = tuned_loss(network.at(), start, batches, Classification(), steps, 0.1)

    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    model.load_state_dict(network.tensors)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for inputs, labels in batches[:steps]:
        sgd.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        sgd.step()
    module = TracedModule(network, network.tensors)
    module.tune(batches[:steps], 0.1, Classification())
    assert all(torch.allclose(module.tensors()[n], p, rtol=1e-12) for n, p in model.named_parameters())
    expected = sum(nn.functional.cross_entropy(model(x), y) for x, y in batches[steps:]) / 2
    gradients = torch.autograd.grad(expected, list(model.parameters()))
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    for (name, _), gradient in zip(model.named_parameters(), gradients, strict=True):
        assert torch.allclose(start[name].grad, gradient, rtol=1e-10)


# ---------------------------------------------------------------------------------------------------- structures


def test_a_structure_is_the_cut_network_and_its_training_comes_back():
    network = trace(perturb(toy("residual").model).double(), tuple(a.double() for a in toy("residual").args))
    plan = random_plan(network.space, 0.5, seed=0)
    tensors = {n: t.detach() for n, t in network.tensors.items()}
    module, (x,) = TracedModule(network, tensors, plan).eval(), network.captured.example[0]
    assert torch.equal(module(x), network.run(x, plan=plan))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1)
    full = module.full_size(tensors)
    for name, rows in network.sliced(network.survivors(plan), tensors=full).items():
        assert torch.equal(rows, module.tensors()[name])
    other = random_plan(network.space, 0.5, seed=3)
    assert TracedModule(network, tensors, other)(x).shape == module(x).shape  # no structure of another plan is reused


def test_a_curve_is_judged_after_tuning():
    task = task_of()
    pruner, tensors = Pruner(task, ranking("magnitude", {})), {n: t.detach() for n, t in task.network.tensors.items()}
    train = some_batches(task.data.train, 16, 6, torch.device("cpu"), Rng(0))
    assert some_batches(task.data.train, 16, 0, torch.device("cpu"), Rng(0)) == []
    before = {n: t.clone() for n, t in tensors.items()}
    plain, tuned = (
        pruner.curve(tensors, [0.5], train, train, Rng(0), tuning, 0.05)[0] for tuning in ((), train * 5)
    )  # on the images it is judged by
    assert tuned["score"] > plain["score"] and tuned["macs"] == plain["macs"]
    assert all(torch.equal(t, before[n]) for n, t in tensors.items())


def test_area_is_the_mean_score():
    assert area([{"macs": 1.0, "score": 0.8}, {"macs": 0.5, "score": 0.6}]) == pytest.approx(0.7)
    assert area([{"macs": 0.5, "score": 0.6}]) == 0.6


def test_dropped_channels_become_zero_and_stay_last():
    task = task_of()
    plan = random_plan(task.network.space, 0.6, seed=1)
    tensors = dropped_are_zero(task.network, {n: t.detach() for n, t in task.network.tensors.items()}, plan)
    pruner = Pruner(task, ranking("magnitude", {}), plan)
    share = pruner.share(plan)
    for looser in (0.8, 0.99, 1.2, 3.0):  # a budget with room does not bring them back
        found = pruner.plan(tensors, Budget(macs=looser * share * task.network.cost().macs), Rng(0))
        masks = [p.masks(task.network.space) for p in (plan, found)]
        assert not any((kept & ~alive).any() for alive, kept in zip(*masks, strict=True))
        assert looser < 1 or found == plan


# ---------------------------------------------------------------------------------------------------- meta-training


def test_meta_training_is_finite_and_shrinks(tmp_path):
    free = dataclasses.replace(QUICK.metanet, keep_norms=False)  # kept, there is less to shrink
    meta = dataclasses.replace(QUICK.meta, steps=6, objective="sparsity", lr=0.02, shrinkage=1.0)
    method = dataclasses.replace(QUICK, metanet=free, meta=meta)
    rows = method.fit([task_of(folder=tmp_path)], Rng(0)).info["history"]["rows"]
    assert len(rows) == 6
    assert all(np.isfinite(r["loss"]) for r in rows)
    assert rows[-1]["shrinkage"] / rows[0]["shrinkage"] < 1


@pytest.mark.parametrize(
    "objective", ["straight-through", *(pytest.param(o, marks=pytest.mark.thorough) for o in ("cut", "sparsity"))]
)
def test_a_killed_meta_training_goes_on_to_the_same_artifact(tmp_path, objective, monkeypatch):
    method = dataclasses.replace(QUICK, meta=dataclasses.replace(QUICK.meta, objective=objective))
    whole = method.fit([task_of(folder=tmp_path / "a")], Rng(0))
    step, calls = Trainer._step, []

    def killed(self, *args):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return step(self, *args)

    monkeypatch.setattr(Trainer, "_step", killed)
    with pytest.raises(KeyboardInterrupt):
        method.fit([task_of(folder=tmp_path / "b")], Rng(0))
    monkeypatch.setattr(Trainer, "_step", step)
    again = method.fit([task_of(folder=tmp_path / "b")], Rng(0))
    assert all(torch.equal(again.tensors[n], t) for n, t in whole.tensors.items())
    for told in ("rows", "evaluations"):
        assert again.info["history"][told] == whole.info["history"][told]
    done = method.fit([task_of(folder=tmp_path / "b")], Rng(0))
    assert done.info["stages"]["meta"] == again.info["stages"]["meta"] > 0  # nothing was left to do


def bright_corners(n=128):
    """Four classes, learnt in seconds: which corner of the image is bright."""
    draw, splits = np.random.default_rng(0), []
    for _ in range(3):
        labels = torch.from_numpy(draw.integers(0, 4, n))
        images = torch.from_numpy(draw.integers(0, 60, (n, 1, 28, 28), dtype=np.uint8))
        for image, label in zip(images, labels.tolist(), strict=True):
            image[0, 14 * (label // 2) :, 14 * (label % 2) :][:14, :14] += 150
        splits.append(TensorSplit(images, labels, (0.3,), (0.3,)))
    return Data("corners", *splits, 4, (1, 28, 28), tuple("abcd"), "corners")


def test_collapse_stops_meta_training_and_keeps_the_best(tmp_path):
    task = task_of(model=create("zoo:lenet", num_classes=4), folder=tmp_path)
    task = dataclasses.replace(task, data=bright_corners())
    method = dataclasses.replace(
        QUICK,
        metanet=dataclasses.replace(QUICK.metanet, rho=50.0),
        meta=dataclasses.replace(QUICK.meta, steps=40, lr=0.5, shrinkage=1e4, objective="sparsity", max_grad_norm=1e6),
        data_models=DataModelConfig(count=2, shares=(1.0, 1.0), train=dataclasses.replace(TUNE, epochs=8)),
    )
    with pytest.warns(CollapseWarning, match="collapsed at step"):
        artifact = method.fit([task], Rng(0))
    history = artifact.info["history"]
    assert len(history["rows"]) < 40
    assert history["evaluations"][-1]["collapsed"]
    with pytest.warns(CollapseWarning, match="collapsed at step"):  # started again, it does not train on
        again = method.fit([task], Rng(0))
    assert again.info["history"]["rows"] == history["rows"]


def test_one_artifact_serves_other_networks():
    """Another depth, another family: the inputs of the metanetwork are the same."""
    artifact = QUICK.fit([task_of("cnn")], Rng(0))
    for model in (create("zoo:resnet8"), create("zoo:lenet"), small_network("transformer")):
        task = task_of(model=model)
        plan = QUICK.restore(artifact).propose(task, Budget(macs="60%"), Rng(0)).plan
        assert task.network.cost(plan).macs <= 0.6 * task.network.cost().macs


# ---------------------------------------------------------------------------------------------------- the flow


def test_every_step_is_in_the_record():
    method = dataclasses.replace(QUICK, initial=0.9, initial_finetune=TUNE, finetune=TUNE)
    task = task_of()
    found = method.propose(task, Budget(macs="50%"), Rng(0))
    steps = found.details["metagraph"]["steps"]
    assert [s["step"] for s in steps] == [
        "start",
        "initial pruning",
        "fine-tuning after initial pruning",
        "rewrite",
        "fine-tuning after rewrite",
        "pruning",
    ]
    assert steps[0]["macs"] == 1
    assert steps[2]["macs"] <= 0.9
    assert steps[-1]["macs"] <= 0.5
    assert all(s["nonzero"] <= s["params"] <= 1 for s in steps)
    assert 0.5 < found.details["metagraph"]["strength"] < 1
    module = TracedModule(task.network, found.weights, found.plan)
    judged = metric_of(module, [*task.data.val.batches(32)], Classification())
    assert judged == pytest.approx(steps[-1]["metric"])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["start", "no rewrite", "pruning"]),
        (
            {"initial": 0.9, "initial_finetune": TUNE},
            ["start", "initial pruning", "fine-tuning after initial pruning", "no rewrite", "pruning"],
        ),
        (
            {"initial": 0.9, "finetune": TUNE},
            ["start", "initial pruning", "no rewrite", "fine-tuning after no rewrite", "pruning"],
        ),
        ({"pattern": "2:4"}, ["start", "no rewrite", "masking"]),
    ],
)
def test_any_step_can_be_left_out(options, expected):
    budget = Budget(nonzero="60%") if "pattern" in options else Budget(macs="50%")
    details = control(NoRewrite, QUICK, **options).propose(task_of(), budget, Rng(0)).details["metagraph"]
    assert [s["step"] for s in details["steps"]] == expected
    assert details["steps"][-1]["nonzero"] <= 0.6 or "pattern" not in options


def test_an_initial_pruning_below_the_budget_is_said():
    with pytest.warns(NoEffectWarning, match="nothing is cut after the rewrite"):
        control(NoRewrite, QUICK, initial=0.3).propose(task_of(), Budget(macs="60%"), Rng(0))


def test_controls_move_as_far_as_the_metanetwork():
    task = task_of()
    model, metanet = data_model(task), stirred(Metanet(MetanetConfig(hidden=8, layers=2)))
    new = by_metanet(metanet, model, 0.5)

    def far(found):
        own = [n for n, t in task.network.tensors.items() if isinstance(t, nn.Parameter)]
        return float(torch.stack([(found[n] - model.tensors[n]).square().sum() for n in own]).sum().sqrt())

    assert far(new) > 0
    assert far(noise_like(new, model.tensors, Rng(0))) == pytest.approx(far(new), rel=1e-4)
    assert far(shrunk_like(new, model, Shrinkage(task.network))) == pytest.approx(far(new), rel=1e-4)
    other = by_metanet(metanet, model, 0.5, shuffled(model.network_graph, Rng(0)))
    assert any(not torch.equal(other[n], t) for n, t in new.items())  # the graph matters
    assert not torch.equal(by_metanet(metanet, model, 1.0)[next(iter(new))], new[next(iter(new))])  # so does strength


@pytest.mark.parametrize("keep", [True, False])
def test_weights_keep_their_norms(keep):
    task = task_of()
    model = data_model(task)
    new = by_metanet(stirred(Metanet(MetanetConfig(hidden=8, layers=2, keep_norms=keep))), model, 0.5)
    weights = [n for n, t in task.network.tensors.items() if isinstance(t, nn.Parameter) and n.endswith("weight")]
    changes = [float((new[n] - model.tensors[n]).norm() / model.tensors[n].norm()) for n in weights]
    ratios = [float(new[n].norm() / model.tensors[n].norm()) for n in weights]
    assert min(changes) > 1e-3
    assert all(r == pytest.approx(1, abs=1e-5) for r in ratios) == keep


@pytest.mark.parametrize(
    "kind",
    [NoRewrite, Shuffled, *(pytest.param(k, marks=pytest.mark.thorough) for k in (Noise, ShrinkageOnly, Sparse))],
)
def test_controls_run_the_same_flow(kind):
    method = control(kind, QUICK, finetune=TUNE)
    task = task_of()
    found = method.propose(task, Budget(params="50%"), Rng(0))
    assert task.network.cost(found.plan).params <= 0.5 * task.network.cost().params
    assert ("strength" in found.details["metagraph"]) == kind.learns


def test_a_network_within_the_budget_is_left_alone():
    assert QUICK.propose(task_of(), Budget(macs="100%"), Rng(0)).plan == Plan()


# ---------------------------------------------------------------------------------------------------- bad input


def test_bad_options_are_refused():
    for options, text in (
        ({"criterion": "uniform"}, "ranks no channels"),
        ({"initial": 0.0}, "initial"),
        ({"initial_finetune": TUNE}, "set initial below 1"),
        ({"strength": 2.0}, "strength"),
    ):
        with pytest.raises(ConfigError, match=text):
            dataclasses.replace(QUICK, **options)


def test_bad_options_of_the_parts_are_refused():
    for part, options, text in (
        (DataModelConfig, {"count": 1}, "count"),
        (DataModelConfig, {"shares": (0.9, 0.5)}, "shares"),
        (MetanetConfig, {"form": "deep"}, "form"),
        (MetanetConfig, {"rho": 0.0}, "rho"),
        (MetaConfig, {"steps": 0}, "steps"),
        (MetaConfig, {"shares": ()}, "shares is empty"),
        (MetaConfig, {"shares": (1.5,)}, "shares"),
        *((MetaConfig, {n: -1.0}, n) for n in ("lr", "weight_decay", "shrinkage", "alpha", "tune_lr")),
        (MetaConfig, {"max_grad_norm": float("nan")}, "max_grad_norm"),
    ):
        with pytest.raises(ConfigError, match=text):
            part(**options)


def test_weights_that_are_not_finite_are_refused():
    model = small_network("cnn")
    with torch.no_grad():
        next(model.parameters())[0] = float("nan")
    with pytest.raises(WeightsError, match="NaN"):
        QUICK.propose(task_of(model=model), Budget(macs="50%"), Rng(0))


def test_an_artifact_of_other_features_is_refused():
    artifact = QUICK.fit([task_of()], Rng(0))
    other = Artifact(artifact.method, artifact.tensors, {**artifact.info, "features": ["older"]})
    with pytest.raises(ConfigError, match="other node and edge features"):
        QUICK.restore(other).propose(task_of(), Budget(macs="50%"), Rng(0))


def test_an_impossible_budget_ends_before_meta_training(monkeypatch):
    monkeypatch.setattr(MetaGraph, "fit", None)
    with pytest.raises(InfeasibleBudgetError):
        QUICK.propose(task_of(), Budget(macs=10), Rng(0))


def test_the_gradient_is_that_of_torch_pruning():
    """DepGraph's own code as the oracle."""
    example = toy("residual")
    model = perturb(example.model.eval()).double()
    inputs = tuple(a.double() for a in example.args)
    network = trace(model, inputs)
    shrinkage = Shrinkage(network, alpha=16)
    shrinkage.loss(network.tensors, shrinkage.weights(network.tensors)).backward()
    mine = {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    last = [m for m in model.modules() if isinstance(m, nn.Linear)]
    importance = tp.importance.GroupMagnitudeImportance(p=2, group_reduction="mean", normalizer="max")
    pruner = tp.pruner.GroupNormPruner(model, inputs, importance=importance, ignored_layers=last, reg=1.0, alpha=16)
    pruner.regularize(model, alpha=16)
    for name, parameter in model.named_parameters():
        assert torch.allclose(mine[name], parameter.grad, rtol=1e-4, atol=1e-6), name
