"""Fine-tuning, distillation and training from scratch behind one call."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional
from train_fakes import cnn, data, mlp, same, weights

from metaprune.core.errors import ConfigError, NotAvailableError
from metaprune.core.rng import Rng
from metaprune.objective import Classification
from metaprune.objective.base import soft_cross_entropy
from metaprune.recover.config import NOTHING, RECOVERIES, RecoverConfig, parse_recover
from metaprune.recover.distil import DistillationLoss
from metaprune.recover.run import recover
from metaprune.recover.scratch import reinitialise
from metaprune.train.config import TrainConfig
from metaprune.train.evaluate import evaluate
from metaprune_networks.zoo import build_zoo, zoo_names

torch.set_num_threads(1)
SHORT = TrainConfig(epochs=4, batch_size=16)


def logits(seed: int) -> torch.Tensor:
    return torch.randn(5, 3, dtype=torch.float64, generator=Rng(seed).torch())


def test_parse():
    assert parse_recover(None).kind == "auto"
    assert parse_recover("distil") == RecoverConfig(kind="distil")
    assert parse_recover(RecoverConfig(kind="bn", bn_batches=3)).bn_batches == 3
    with pytest.raises(ConfigError, match="Did you mean 'finetune'"):
        parse_recover("fine-tune")
    with pytest.raises(ConfigError, match="not understood"):
        parse_recover(3)
    for options in ({"temperature": 0.0}, {"distil_weight": 1.5}, {"bn_batches": 0}):
        with pytest.raises(ConfigError):
            RecoverConfig(**options)


def test_distillation_loss_by_hand_and_at_its_limits():
    student, teacher = logits(0), logits(1)
    p, q = (teacher / 4).softmax(-1), (student / 4).softmax(-1)
    expected = 16 * (p * (p.log() - q.log())).sum(-1).mean()
    torch.testing.assert_close(soft_cross_entropy(student, teacher, 4.0), expected)
    assert float(soft_cross_entropy(teacher, teacher, 4.0)) == pytest.approx(0.0, abs=1e-12)
    # Hinton et al., section 2.1: for high temperatures the gradient is that of matching centred logits
    student.requires_grad_(True)
    (gradient,) = torch.autograd.grad(soft_cross_entropy(student, teacher, 1e4), student)
    difference = student.detach() - teacher
    matched = (difference - difference.mean(-1, keepdim=True)) / (3 * 5)
    torch.testing.assert_close(gradient, matched, rtol=1e-3, atol=1e-5)


def test_distillation_gradient_is_the_numerical_one():
    teacher = logits(1)
    assert torch.autograd.gradcheck(lambda s: soft_cross_entropy(s, teacher, 3.0), logits(0).requires_grad_(True))


def test_objective_mixes_and_never_touches_the_teacher():
    teacher, inputs, labels = mlp(1).train(), torch.randn(6, 8), torch.tensor([0, 1, 2, 0, 1, 2])
    before = weights(teacher)
    output = torch.randn(6, 3, requires_grad=True)
    plain = functional.cross_entropy(output, labels)
    taught = copy.deepcopy(teacher).eval()(inputs)
    for weight in (0.0, 0.4, 1.0):
        mixed = DistillationLoss(Classification(), teacher, temperature=2.0, weight=weight)(output, inputs, labels)
        torch.testing.assert_close(mixed, weight * soft_cross_entropy(output, taught, 2.0) + (1 - weight) * plain)
    assert same(weights(teacher), before)
    assert teacher.training
    assert all(p.requires_grad and p.grad is None for p in teacher.parameters())
    with pytest.raises(ConfigError, match="same classes"):
        DistillationLoss(Classification(), teacher, temperature=2.0, weight=0.5)(torch.randn(6, 4), inputs, labels)


@pytest.mark.parametrize("kind", sorted({*NOTHING, *RECOVERIES.names()} - {"reconstruct"}))  # which needs a cut
def test_every_kind_runs_and_leaves_the_original_alone(kind, tmp_path):
    original, model = mlp(1).train(), mlp(2)
    before, start = weights(original), weights(model)
    config = RecoverConfig(kind=kind, train=SHORT)
    history = recover(
        model, original, data(), config, rng=Rng(0), device="cpu", checkpoint_dir=tmp_path, progress=False
    )
    assert same(weights(original), before)
    assert original.training
    assert same(weights(model), start) == (kind in ("auto", "none"))
    assert len(history.rows) == (4 if kind in ("finetune", "distil", "lora", "scratch") else 0)
    if kind in ("finetune", "scratch"):
        assert evaluate(model, data().val)["accuracy"] > 0.9
    if kind == "distil":  # an untrained teacher teaches its own answers
        with pytest.raises(ConfigError, match=r"recover.temperature"):
            recover(
                mlp(2),
                original,
                data(),
                RecoverConfig(kind=kind, train=SHORT, temperature=1.0),
                rng=Rng(0),
                device="cpu",
                checkpoint_dir=tmp_path,
            )


def test_distil_follows_a_good_teacher_without_labels():
    teacher, student = mlp(1), mlp(2)
    recover(teacher, None, data(), RecoverConfig(train=SHORT), rng=Rng(0), device="cpu", progress=False)
    config = RecoverConfig(kind="distil", distil_weight=1.0, temperature=2.0, train=SHORT)
    recover(student, teacher, data(), config, rng=Rng(1), device="cpu", progress=False)
    assert evaluate(student, data().val)["accuracy"] > 0.9
    with pytest.raises(ConfigError, match="teacher"):
        recover(student, None, data(), config, rng=Rng(1))


def test_scratch_depends_on_the_seed_only():
    first, second, third = cnn(1), cnn(2), cnn(1)
    first[1].running_mean.fill_(7.0)
    state = torch.get_rng_state()
    for model, seed in ((first, 0), (second, 0), (third, 1)):
        reinitialise(model, Rng(seed))
    assert same(weights(first), weights(second))
    assert not same(weights(first), weights(third))
    assert torch.equal(torch.get_rng_state(), state)
    assert float(first[1].running_mean.abs().max()) == 0.0


def test_scratch_initialises_attention():
    attention = nn.Sequential(nn.MultiheadAttention(8, 2))
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.fill_(9.0)
    reinitialise(attention, Rng(0))
    assert not any((parameter == 9.0).any() for parameter in attention.parameters())
    assert float(attention[0].out_proj.bias.detach().abs().max()) == 0.0


def test_scratch_knows_every_network_of_the_zoo():
    assert zoo_names()
    for name in zoo_names():
        with torch.device("meta"):
            model = build_zoo(name)
        reinitialise(model, Rng(0))  # raises on a module that it would have to guess about


def test_scratch_refuses_to_guess():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = mlp()
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, x):
            return self.scale * self.body(x)

    model = Scaled()
    before = weights(model)
    with pytest.raises(NotAvailableError, match=r"1 parameters .*: scale\. Pass `initialise`.*factory"):
        recover(model, None, data(), "scratch", rng=Rng(0))
    assert same(weights(model), before)

    def initialise(module):
        nn.init.normal_(module.scale)

    config = RecoverConfig(kind="scratch", train=TrainConfig(epochs=1, lr=1e-9, weight_decay=0.0))
    recover(model, None, data(), config, rng=Rng(0), device="cpu", initialise=initialise, progress=False)
    with Rng(0).child("initialise").torch_global():
        expected = torch.empty(3).normal_()
    torch.testing.assert_close(model.scale.detach(), expected)
