"""Recalibrated BatchNorm statistics against the averages computed by hand."""

from __future__ import annotations

import copy
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from train_fakes import FakeData, FakeSplit, blobs, cnn, mlp, same, weights

import metaprune as mp
from metaprune.core.errors import DataError, NoEffectWarning
from metaprune.core.rng import Rng
from metaprune.elastic.batchnorm import moved_variance
from metaprune.recover.bn_recalibrate import recalibrate_batchnorm
from metaprune.recover.run import recover

torch.set_num_threads(1)


def stale(model):
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.fill_(7.0)
            module.running_var.fill_(3.0)
            module.num_batches_tracked.fill_(5)
    return model


def test_equals_the_mean_of_batch_statistics():
    split = blobs(45, shape=(3, 6, 6))
    model = stale(cnn()).double()
    split = FakeSplit(split.inputs.double(), split.labels)
    assert recalibrate_batchnorm(model, split, num_batches=4, batch_size=10) == 4
    features = [model[0](batch) for batch in split.inputs[:40].split(10)]
    means = torch.stack([f.mean(dim=(0, 2, 3)) for f in features]).mean(0)
    variances = torch.stack([f.var(dim=(0, 2, 3), unbiased=True) for f in features]).mean(0)
    torch.testing.assert_close(model[1].running_mean, means, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model[1].running_var, variances, rtol=1e-12, atol=1e-12)


def test_order_does_not_matter_and_rng_shuffles():
    split = blobs(64, shape=(3, 6, 6))
    first, second, shuffled = (stale(cnn()).double() for _ in range(3))
    batches = [(x.double(), None) for x in split.inputs.split(16)]
    recalibrate_batchnorm(first, batches)
    recalibrate_batchnorm(second, batches[::-1])
    recalibrate_batchnorm(shuffled, FakeSplit(split.inputs.double(), split.labels), batch_size=16, rng=Rng(0))
    torch.testing.assert_close(first[4].running_var, second[4].running_var, rtol=1e-12, atol=1e-12)
    assert not torch.equal(first[4].running_var, shuffled[4].running_var)


def test_modes_momenta_weights_and_random_state_stay():
    model = stale(cnn()).eval()
    model[8].train()  # the dropout of a user who wants it on
    modes = [module.training for module in model.modules()]
    parameters = {name: p.detach().clone() for name, p in model.named_parameters()}
    state = torch.get_rng_state()
    recalibrate_batchnorm(model, blobs(32, shape=(3, 6, 6)), batch_size=16)
    assert [module.training for module in model.modules()] == modes
    assert [model[1].momentum, model[4].momentum] == [0.1, 0.3]
    assert same(parameters, {name: p.detach() for name, p in model.named_parameters()})
    assert torch.equal(torch.get_rng_state(), state)  # dropout drew nothing: it was off


def test_small_split_is_one_batch():
    assert recalibrate_batchnorm(cnn(), blobs(5, shape=(3, 6, 6)), batch_size=128) == 1


def test_statistics_survive_a_failure():
    model = stale(cnn())
    before = weights(model)
    for bad in (
        [(torch.zeros(2, 3, 6, 6), None), (torch.zeros(2, 5, 6, 6), None)],
        [],
        [(torch.full((2, 3, 6, 6), torch.nan), None)],
    ):
        with pytest.raises((RuntimeError, DataError)):
            recalibrate_batchnorm(model, bad)
        assert same(weights(model), before)
    assert model[4].momentum == 0.3


def test_nothing_to_recalibrate_warns():
    with pytest.warns(NoEffectWarning):
        assert recalibrate_batchnorm(nn.Linear(8, 3), blobs(4)) == 0


def test_hook_of_a_graph_form_is_used():
    class GraphForm(nn.Module):
        """Holds statistics as plain buffers, as an exported graph does."""

        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.full((8,), 7.0))
            self.register_buffer("var", torch.full((8,), 7.0))
            self.momentum, self.seen = None, []

        def forward(self, x):
            use_batch = self.momentum is not None
            return nn.functional.batch_norm(
                x, self.mean, self.var, training=use_batch, momentum=self.momentum if use_batch else 0.1
            )

        @contextmanager
        def batchnorm_statistics_mode(self, momentum):
            self.seen.append(momentum)
            self.momentum = momentum
            try:
                yield
            finally:
                self.momentum = None

    split = blobs(30)
    outer = nn.Sequential(GraphForm(), nn.BatchNorm1d(8))
    outer[0].inner = nn.BatchNorm1d(8)  # inside the hook's module: its business
    recalibrate_batchnorm(outer, split, num_batches=3, batch_size=10)
    batches = split.inputs.split(10)
    torch.testing.assert_close(outer[0].mean, torch.stack([b.mean(0) for b in batches]).mean(0))
    torch.testing.assert_close(outer[0].var, torch.stack([b.var(0) for b in batches]).mean(0))
    assert outer[0].seen == [1.0, 0.5, 1 / 3]
    assert int(outer[1].num_batches_tracked) == 3
    assert int(outer[0].inner.num_batches_tracked) == 0


def test_recover_bn_needs_a_train_split():
    model = stale(mlp())
    assert recover(model, None, FakeData(blobs(32)), "bn", rng=Rng(0)).rows == []
    assert not torch.equal(model[1].running_mean, torch.full((16,), 7.0))
    with pytest.raises(DataError, match="train split"):
        recover(model, None, FakeData(None), "bn", rng=Rng(0))


def trained_statistics(model, split, batches=8):
    """Give BatchNorm the statistics of noisy (augmented) batches, as a training leaves them."""
    recalibrate_batchnorm(model, [(x + 0.3 * torch.randn_like(x), None) for x in split.inputs.split(8)[:batches]])
    return model.eval()


def test_an_uncut_network_keeps_its_statistics():
    torch.manual_seed(0)
    split = blobs(64, shape=(3, 6, 6))
    dense = trained_statistics(cnn(), split)
    before = weights(dense)
    again, plain = copy.deepcopy(dense), copy.deepcopy(dense)
    recalibrate_batchnorm(again, split, batch_size=16, dense=dense)
    recalibrate_batchnorm(plain, split, batch_size=16)
    for name in ("1.running_mean", "1.running_var", "4.running_mean", "4.running_var"):
        assert torch.equal(again.state_dict()[name], before[name])
        assert not torch.equal(plain.state_dict()[name], before[name])
    assert same(weights(dense), before)


def test_a_cut_network_gets_the_dense_statistics_moved_by_what_the_cut_changed():
    torch.manual_seed(0)
    split = blobs(64, shape=(3, 6, 6))
    dense = trained_statistics(cnn(), split)
    network = mp.trace(dense, torch.zeros(2, 3, 6, 6))
    result = mp.prune(dense, torch.zeros(2, 3, 6, 6), budget="macs=60%", data=FakeData(split, split), recover="bn")
    alive = network.survivors(result.plan)
    dense_measured, cut_measured = copy.deepcopy(dense), copy.deepcopy(result.model)
    batches = list(split.batches(64, rng=Rng(0).child("recover", "bn")))  # all samples are one batch
    for model in (dense_measured, cut_measured):
        recalibrate_batchnorm(model, batches)
    sliced = [network.sliced(alive, tensors=m.state_dict()) for m in (dense, dense_measured)]
    for name in ("1.running_mean", "4.running_mean"):
        expected = sliced[0][name] + cut_measured.state_dict()[name] - sliced[1][name]
        torch.testing.assert_close(result.model.state_dict()[name], expected)
    assert not torch.allclose(result.model.state_dict()["4.running_var"], cut_measured.state_dict()["4.running_var"])


def test_moved_variances_stay_positive_and_do_not_explode():
    running, dense, cut = torch.tensor([[1.0, 1.0, 0.0, 1.0], [2.0, 0.0, 0.0, 1.0], [1.0, 1e-3, 1.0, 1.0]])
    moved = moved_variance(running, dense, cut, 1e-5)
    torch.testing.assert_close(moved, torch.tensor([0.5, 1.001, 1.0, 1.0]), rtol=1e-4, atol=1e-5)
    assert (moved_variance(running, dense + 100, torch.zeros(4), 1e-5) >= 0).all()
