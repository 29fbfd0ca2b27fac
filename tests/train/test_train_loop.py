"""The training loop and evaluation on networks small enough to reason about."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn
from torch.nn import functional
from train_fakes import FakeData, FakeSplit, blobs, cnn, data, mlp, same, weights

from metaprune.core.errors import ConfigError, DataError, TrainingDivergedError
from metaprune.core.rng import Rng
from metaprune.objective import Classification, logits_of
from metaprune.objective.batch import channels_last, channels_last_is_safe
from metaprune.train.config import TrainConfig
from metaprune.train.evaluate import evaluate
from metaprune.train.loop import train
from metaprune.train.loss import TrainLoss
from metaprune.train.optimizer import make_optimizer

torch.set_num_threads(1)


def fit(model, given=None, seed=0, **options):
    keys = {"device", "loss", "checkpoint_dir", "on_epoch", "identity"}
    arguments = {key: options.pop(key) for key in keys & options.keys()}
    config = TrainConfig(**{"epochs": 2, "batch_size": 16, **options})
    return train(model, given or data(), config, rng=Rng(seed), progress=False, **{"device": "cpu", **arguments})


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_learns_separable_blobs(optimizer):
    model = mlp()
    history = fit(model, epochs=6, optimizer=optimizer, lr=0.05 if optimizer == "sgd" else 0.01)
    assert [row.epoch for row in history.rows] == [1, 2, 3, 4, 5, 6]
    assert history.rows[-1].val["accuracy"] > 0.95
    assert history.rows[-1].train["loss"] < history.rows[0].train["loss"]
    assert history.rows[-1].val["accuracy"] == evaluate(model, data().val)["accuracy"]
    assert all(row.samples_per_s > 0 for row in history.rows)


def test_one_step_equals_plain_torch():
    model, plain, given = cnn(), cnn(), data(16, shape=(3, 6, 6))
    model[8].p = plain[8].p = 0.0
    fit(model, given, epochs=1, augment=False, label_smoothing=0.1, schedule="constant")
    plain.train()
    order = torch.cat([y for _, y in given.train.batches(16, rng=Rng(0).child("epoch", 0, "data"))])
    inputs = torch.cat([x for x, _ in given.train.batches(16, rng=Rng(0).child("epoch", 0, "data"))])
    sgd = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    functional.cross_entropy(plain(inputs), order, label_smoothing=0.1).backward()
    sgd.step()
    assert same(weights(model), weights(plain))


@pytest.mark.parametrize("accumulate", [1, 4])
def test_items_are_counted_once_per_part(accumulate):
    """Of tokens the count is a copy from the device, which waits for it."""
    counted = []

    class Counting(Classification):
        def items(self, target):
            counted.append(len(target))
            return super().items(target)

    fit(mlp(), FakeData(blobs(32)), epochs=1, accumulate=accumulate, loss=TrainLoss(Counting()))
    assert counted == [16 // accumulate] * 2 * accumulate


def test_same_seed_same_weights_and_no_trace_outside():
    first, second, third = mlp(), mlp(), mlp()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    fit(first)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    fit(second)
    fit(third, seed=1)
    assert same(weights(first), weights(second))
    assert not same(weights(first), weights(third))
    assert "forward" not in first.__dict__
    assert all(parameter.grad is None for parameter in first.parameters())


def test_modes_are_restored():
    model = mlp().eval()
    model[1].train()
    before = [module.training for module in model.modules()]
    evaluate(model, data().val)
    assert [module.training for module in model.modules()] == before
    fit(model, epochs=1)
    assert [module.training for module in model.modules()] == before
    other = mlp().train()  # the mode it comes in does not change the training
    fit(other, epochs=1)
    assert same(weights(model), weights(other))


def test_evaluate_by_hand():
    split = FakeSplit(torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]]), torch.tensor([0, 1, 1]))
    for batch_size in (1, 2, 256):
        quality = evaluate(nn.Identity(), split, batch_size=batch_size)
        assert quality["accuracy"] == pytest.approx(2 / 3)
        assert quality.samples == 3
        assert quality["loss"] == pytest.approx(float(functional.cross_entropy(split.inputs, split.labels)))
    with pytest.raises(DataError, match="empty"):
        evaluate(nn.Identity(), FakeSplit(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64)))


def test_logits_are_found_in_the_usual_outputs():
    class Output:
        logits = torch.ones(2, 3)

    for output in (torch.ones(2, 3), {"logits": torch.ones(2, 3)}, Output(), (torch.ones(2, 3), None)):
        assert logits_of(output).shape == (2, 3)
    with pytest.raises(DataError, match="no logits in a model output of type dict"):
        logits_of({"prediction": torch.ones(2, 3)})


def test_mapping_inputs_become_keyword_arguments():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(8, 3)

        def forward(self, values):
            return {"logits": self.head(values)}

    class NamedSplit(FakeSplit):
        def batches(self, *args, **kwargs):
            for inputs, labels in super().batches(*args, **kwargs):
                yield {"values": inputs}, labels

    whole = blobs(96, seed=1)
    given = FakeData(NamedSplit(whole.inputs, whole.labels), NamedSplit(whole.inputs, whole.labels))
    assert fit(Named(), given, epochs=4).last.val["accuracy"] > 0.9


def test_non_finite_loss_stops_before_the_update():
    split = blobs(48, seed=1)
    split.inputs[:] = torch.nan
    model = nn.Sequential(nn.Linear(8, 3))
    before = weights(model)
    with pytest.raises(TrainingDivergedError, match=r"loss is nan at step 0 .*learning rate 0.05.*Lower lr"):
        fit(model, FakeData(split), schedule="constant")
    assert same(weights(model), before)
    assert "forward" not in model.__dict__


def test_non_finite_gradient_stops_before_the_update():
    model = mlp()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}

    class Steep(TrainLoss):
        def __call__(self, output, inputs, target):
            return (output.sum() * 0.0).sqrt()  # finite value, infinite slope times zero

    with pytest.raises(TrainingDivergedError, match="gradient norm"):
        fit(model, loss=Steep(Classification()), max_grad_norm=1.0)
    assert same({name: p.detach() for name, p in model.named_parameters()}, before)


def test_data_that_cannot_train_is_refused():
    for split, message in ((None, "no training samples"), (blobs(0), "no training samples"), (blobs(1), "1 training")):
        with pytest.raises(DataError, match=message):
            fit(mlp(), FakeData(split))
    with pytest.raises(ConfigError, match="unfreeze"):
        fit(mlp().requires_grad_(False))
    with pytest.raises(ConfigError, match="fp16"):
        fit(mlp(), mixed_precision="fp16")


def test_small_and_odd_splits_train():
    assert len(fit(mlp(), FakeData(blobs(5)), batch_size=128).rows) == 2
    assert len(fit(mlp(), FakeData(blobs(17)), batch_size=16).rows) == 2  # BatchNorm1d refuses one sample
    row = fit(mlp(), FakeData(blobs(17)), epochs=1).last
    assert row.val is None
    assert row.samples_per_s * row.seconds == pytest.approx(16)


def test_a_fraction_of_an_epoch_ends_within_it():
    calls = []
    history = fit(mlp(), epochs=1.5, on_epoch=calls.append)  # 96 samples / 16 = 6 steps a pass
    assert [round(row.samples_per_s * row.seconds) for row in history.rows] == [96, 48]
    assert calls == history.rows


def test_split_whose_length_lies_is_named():
    class Short(FakeSplit):
        def __len__(self):
            return 2 * len(self.labels)

        def batches(self, batch_size, **kwargs):
            yield from FakeSplit(self.inputs, self.labels).batches(batch_size, **kwargs)

    whole = blobs(32)
    with pytest.raises(DataError, match="disagree"):
        fit(mlp(), FakeData(Short(whole.inputs, whole.labels)))


def test_users_dataloader_keeps_its_batches():
    from torch.utils.data import DataLoader, TensorDataset

    class LoaderSplit(FakeSplit):
        source: DataLoader

        def batches(self, batch_size, *, device="cpu", rng=None, augment=False, drop_last=False):
            yield from self.source

    def given(**options):
        splits = []
        for split in (blobs(100, seed=1), blobs(50, seed=2)):
            splits.append(LoaderSplit(split.inputs, split.labels))
            dataset = TensorDataset(split.inputs, split.labels)
            object.__setattr__(splits[-1], "source", DataLoader(dataset, **options))
        return FakeData(*splits)

    state = torch.get_rng_state()
    for options, samples in (({"batch_size": 32}, 100), ({"batch_size": 32, "drop_last": True}, 96), ({}, 100)):
        first, second = mlp(), mlp()
        first[1] = second[1] = nn.Identity()  # a loader's default batch is one sample
        history = fit(first, given(shuffle=True, **options), epochs=1, batch_size=128)
        fit(second, given(shuffle=True, **options), epochs=1, batch_size=128)
        assert history.last.samples_per_s * history.last.seconds == pytest.approx(samples)
        assert same(weights(first), weights(second))
    assert torch.equal(torch.get_rng_state(), state)


def test_batches_of_another_size_are_refused():
    class Halves(FakeSplit):
        def batches(self, batch_size, **kwargs):
            yield from FakeSplit(self.inputs, self.labels).batches(batch_size // 2, **kwargs)

    whole = blobs(64)
    with pytest.raises(DataError, match="a batch of 8 where 16"):
        fit(mlp(), FakeData(Halves(whole.inputs, whole.labels)))


def test_norms_and_biases_can_go_without_decay():
    groups = make_optimizer(cnn(), TrainConfig(decay_norm_and_bias=False), 0.1).param_groups
    assert [group["weight_decay"] for group in groups] == [5e-4, 0.0]
    assert all(p.ndim > 1 for p in groups[0]["params"])
    assert all(p.ndim <= 1 for p in groups[1]["params"])
    assert len(make_optimizer(cnn(), TrainConfig(), 0.1).param_groups) == 1


def test_frozen_parameters_stay():
    model = mlp()
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    fit(model)
    assert torch.equal(model[0].weight, before)


def test_bf16_leaves_the_forward_and_other_precisions_alone():
    from accelerate import Accelerator

    mine = Accelerator(cpu=True)  # a user's own engine, of another precision
    model = mlp()
    history = fit(model, mixed_precision="bf16", epochs=4)
    assert history.last.val["accuracy"] > 0.9
    assert model(torch.zeros(2, 8)).dtype == torch.float32
    assert "forward" not in model.__dict__
    assert mine.mixed_precision == "no"
    assert mine.device.type == "cpu"
    fit(model, mixed_precision="no")


def test_exported_graph_trains():
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    dynamic = {"input": {0: torch.export.Dim.DYNAMIC}}
    graph = torch.export.export(model, (torch.zeros(4, 8),), dynamic_shapes=dynamic).module()
    graph.train = lambda mode=True: graph  # the surgery's graph form brings its own; exported ones refuse
    graph.eval = lambda: graph
    assert fit(graph, epochs=4, mixed_precision="bf16").last.val["accuracy"] > 0.9


def test_one_log_line_per_epoch_without_a_terminal(caplog):
    with caplog.at_level(logging.INFO, logger="metaprune"):
        train(mlp(), data(), TrainConfig(epochs=2, batch_size=16), rng=Rng(0), device="cpu", label="recover")
    assert len(caplog.messages) == 2
    assert caplog.messages[1].startswith("recover epoch 2/2: loss")


@pytest.mark.filterwarnings("ignore:channels_last=True does nothing")
def test_channels_last_is_the_same_training_in_another_layout():
    layouts = []

    class Watched(nn.Conv2d):
        def forward(self, x):
            layouts.append(x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous())
            return super().forward(x)

    models = []
    for wanted in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(Watched(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), Watched(4, 8, 3), nn.Flatten())
        model.append(nn.Linear(8 * 4, 3))
        layouts.clear()
        fit(model, data(48, shape=(3, 6, 6)), epochs=1, augment=False, channels_last=wanted)
        assert any(layouts) == (wanted and channels_last_is_safe())
        models.append(model)
    for a, b in zip(*(m.state_dict().values() for m in models), strict=True):
        assert torch.allclose(a.float(), b.float(), atol=1e-4)


@pytest.mark.skipif(not channels_last_is_safe(), reason="this CPU's kernels damage memory in that layout")
def test_channels_last_reaches_images_inside_batches_alone():
    image, tokens = torch.randn(2, 3, 4, 4), torch.randint(0, 5, (2, 3, 4, 4))
    found = channels_last({"pixels": image, "rest": (tokens, image[0])})
    assert found["pixels"].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found["pixels"], image)
    assert found["rest"][0] is tokens
    assert found["rest"][1].is_contiguous()
