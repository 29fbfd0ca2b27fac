"""LoRA: updates of low rank, and a plain network afterwards."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from train_fakes import blobs, cnn, data, mlp, same, weights

import metaprune as mp
from metaprune.core.errors import ConfigError, NotAvailableError
from metaprune.recover.config import RecoverConfig
from metaprune.recover.lora import lora
from metaprune.recover.run import recover
from metaprune.recover.task import RecoverTask
from metaprune.train.config import TrainConfig
from metaprune.train.evaluate import evaluate

SHORT = TrainConfig(epochs=4, batch_size=16, lr=0.01)


def recovered(model, original, rank=2, samples=data, **options):
    config = RecoverConfig(kind="lora", train=SHORT, lora_rank=rank, **options)
    return recover(model, original, samples(), config, rng=mp.Rng(0), device="cpu", progress=False)


@pytest.mark.parametrize("make", [mlp, cnn])
def test_updates_have_the_rank_and_the_network_is_plain(make):
    images = (lambda: data(shape=(3, 8, 8))) if make is cnn else data
    model, original = make(1), make(2)
    model[0].weight.requires_grad_(False)  # frozen parts stay frozen, and are updated all the same
    before, modules = weights(model), [type(m) for m in model.modules()]
    flags = {n: p.requires_grad for n, p in model.named_parameters()}
    assert recovered(model, original, rank=1, samples=images).rows
    after = weights(model)
    assert [type(m) for m in model.modules()] == modules and after.keys() == before.keys()
    assert {n: p.requires_grad for n, p in model.named_parameters()} == flags
    assert not [name for name in vars(model) if "peft" in name]
    for name, tensor in after.items():
        change = tensor - before[name]
        if tensor.dim() == 2:
            assert torch.linalg.matrix_rank(change, atol=1e-5) == 1
        elif tensor.dim() == 1 and "running" not in name:
            assert not change.any()  # biases and norms are not updated


def test_it_learns_from_the_original():
    original = mlp()
    recover(
        original, None, data(), RecoverConfig(train=SHORT), rng=mp.Rng(0), device="cpu", progress=False
    )  # fmt: skip
    student = mlp(5)
    before = evaluate(student, data().val)["accuracy"]
    taught = replace(data(), train=replace(blobs(96, seed=1), labels=torch.zeros(96, dtype=torch.long)))
    recovered(student, original, rank=4, samples=lambda: taught, distil_weight=1.0)  # whose labels say nothing
    assert evaluate(student, data().val)["accuracy"] > max(0.8, before)


def test_tied_weights_and_parts_of_attention_are_left_alone():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.mlp = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 8)
            self.first, self.second = nn.Linear(8, 8, bias=False), nn.Linear(8, 3)
            self.last = nn.Linear(8, 8, bias=False)
            self.last.weight = self.first.weight

        def forward(self, x):
            x = x[:, None] + self.attention(x[:, None], x[:, None], x[:, None])[0]
            return self.second(self.last(self.mlp(self.first(x)))[:, 0])

    model = Tied()
    before = weights(model)
    recovered(model, Tied())
    changed = {name for name, tensor in weights(model).items() if not torch.equal(tensor, before[name])}
    assert changed == {"mlp.weight", "second.weight"}


def test_a_run_with_it_is_proved_and_resumes(tmp_path):
    x = torch.zeros(2, 8)
    options = {
        "budget": "params=60%", "method": "magnitude", "data": data(), "checkpoint_dir": tmp_path,
        "recover": RecoverConfig(kind="lora", train=SHORT), "progress": False,
    }  # fmt: skip
    first, second = (mp.prune(mlp(), x, **options) for _ in range(2))
    assert first.record["proof"]["error"] < 1e-9
    assert same(weights(first.model), weights(second.model))


def test_what_it_cannot_do_is_told():
    class Free(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 8))

        def forward(self, x):
            return x @ self.weight.T

    with pytest.raises(NotAvailableError, match="no linear layer"):
        recovered(Free(), Free())
    with pytest.raises(ConfigError, match="original"):
        recovered(mlp(), None)
    with pytest.raises(ConfigError, match="lora_rank"):
        RecoverConfig(lora_rank=0)
    masked = mp.prune(
        mlp(), torch.zeros(2, 8), budget="nonzero=60%", method="weight_masks", data=data(), progress=False
    )
    task = RecoverTask(
        model=masked.model, original=mlp(), data=data(), config=RecoverConfig(kind="lora"), rng=mp.Rng(0),
        pruned=masked.pruned,
    )  # fmt: skip
    with pytest.raises(ConfigError, match="masked"):
        lora(task)
