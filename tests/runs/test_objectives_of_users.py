"""Losses and scores of the user's own, and those that are wrong: one clear line, and the model as it was."""

import copy
import math

import pytest
import torch
from job_networks import JOBS, perceptron
from torch.nn import functional
from torch.utils.data import TensorDataset

import metaprune as mp
from metaprune.core.errors import DataError, MetapruneError, TrainingDivergedError

X = torch.randn(24, 6, generator=torch.Generator().manual_seed(0))
CLASSES = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()
FINETUNE = mp.RecoverConfig(kind="finetune", train=mp.TrainConfig(epochs=1, batch_size=8, lr=0.01))


def prune(labels=CLASSES, outputs=3, **options):
    """Prune a perceptron; it has to stay as it is, whatever comes."""
    torch.manual_seed(0)
    model = perceptron(outputs)
    before, training = copy.deepcopy(model.state_dict()), model.training
    data = (TensorDataset(X, labels),) * 3
    try:
        return mp.prune(model, X[:2], budget="params=60%", data=data, batch_size=8, progress=False, **options)
    finally:
        assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
        assert model.training == training and torch.is_grad_enabled()


def focal_loss(output, target):
    """Cross-entropy, less of it where the network is sure (Lin et al., 2017)."""
    nats = functional.cross_entropy(output, target, reduction="none")
    return ((1 - torch.exp(-nats)) ** 2 * nats).mean()


def one_line(error):
    text = str(error.value)
    return text if "\n" not in text else pytest.fail(f"more than one line: {text}")


@pytest.mark.parametrize("method", ["magnitude", "taylor"])
def test_focal_loss(method):
    result = prune(objective="classification", loss_fn=focal_loss, method=method, recover=FINETUNE)
    quality, objective = result.record["quality"], result.record["objective"]
    assert objective["kind"] == "classification with own functions" and objective["primary"]["name"] == "accuracy"
    assert quality["recovered"]["loss"] != quality["cut"]["loss"]
    plain = prune(objective="classification", method=method, recover=FINETUNE).record["quality"]
    assert (
        quality["dense"]["loss"] < plain["dense"]["loss"] and quality["dense"]["accuracy"] == plain["dense"]["accuracy"]
    )


def test_loss_alone_is_an_objective():
    quality = prune(loss_fn=focal_loss, recover=FINETUNE).record["quality"]
    assert math.isfinite(quality["recovered"]["loss"])


def test_score():
    """Of which more is better: reports and records show it as the primary metric."""
    seen = []

    def worst_class(model, split):
        assert not model.training and not torch.is_grad_enabled()
        seen.append(model)
        ((x, y),) = split.batches(100)
        right = model(x).argmax(1) == y
        return min(float(right[y == c].float().mean()) for c in range(3))

    record = prune(objective="classification", score_fn=worst_class, recover=FINETUNE).record
    assert record["objective"]["primary"]["name"] == "score" and len(seen) >= 3
    assert 0 <= record["quality"]["recovered"]["score"] <= record["quality"]["recovered"]["accuracy"]


def test_score_that_raises():
    def broken(model, split):
        raise KeyError("no such metric")

    with pytest.raises(DataError, match=r"score_fn failed: .*no such metric.*takes \(model, split\)") as error:
        prune(objective="classification", score_fn=broken)
    one_line(error)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_score_that_is_no_number(value):
    with pytest.raises(DataError, match="finite number") as error:
        prune(objective="classification", score_fn=lambda model, split: value)
    one_line(error)


def test_score_without_anything_to_train_on():
    with pytest.raises(MetapruneError, match="give an objective or loss_fn") as error:
        prune(labels=X, score_fn=lambda model, split: 1.0)
    one_line(error)


@pytest.mark.parametrize("method", ["magnitude", "taylor"])
def test_loss_that_is_a_vector(method):
    def vector(output, target):
        return functional.cross_entropy(output, target, reduction="none")

    with pytest.raises(DataError, match=r"shape \[2\].*loss.mean\(\)") as error:
        prune(loss_fn=vector, method=method, recover=FINETUNE)
    one_line(error)


@pytest.mark.parametrize("returned", [3.0, None, "loss"])
def test_loss_that_is_no_tensor(returned):
    with pytest.raises(DataError, match="return one number") as error:
        prune(loss_fn=lambda output, target: returned)
    one_line(error)


def test_loss_that_is_not_finite_at_once():
    with pytest.raises(DataError, match="nan on finite outputs") as error:
        prune(loss_fn=lambda output, target: output.mean() * math.nan, recover=FINETUNE)
    one_line(error)


def test_loss_that_becomes_nan_in_training():
    calls = []

    def later(output, target):
        calls.append(output.requires_grad)
        return output.mean() * (math.nan if calls.count(True) > 2 else 1.0)

    with pytest.raises(TrainingDivergedError, match="the loss is nan at step 2"):
        prune(loss_fn=later, recover=FINETUNE)


def test_loss_that_raises():
    def broken(output, target):
        return output @ target

    with pytest.raises(DataError, match="loss_fn failed on the first batch") as error:
        prune(loss_fn=broken)
    one_line(error)


def test_loss_that_cannot_be_called():
    with pytest.raises(DataError, match="cannot be called") as error:
        prune(loss_fn="focal")
    one_line(error)


@pytest.mark.parametrize(
    "objective, labels, said",
    [
        ("classification", X[:, 0], r"torch.float32 \[2\].*takes integer labels"),
        ("classification", CLASSES + 5, "3 outputs and user data has 8 classes"),
        ("multi_label", CLASSES, r"labels \[2\].*outputs' shape"),
        ("regression", CLASSES.float(), r"\[2\].*outputs' shape"),
        ({"kind": "segmentation", "classes": 3}, CLASSES, r"takes integer maps \[B, H, W\]"),
        ("next_token", CLASSES, r"\[B, tokens\]"),
        ("token_classification", CLASSES, r"\[B, tokens\]"),
        ("own_loss", CLASSES, "does not run on samples"),
    ],
)
def test_labels_of_the_wrong_kind(objective, labels, said):
    with pytest.raises(DataError, match=said) as error:
        prune(labels=labels, objective=objective, recover=FINETUNE)
    one_line(error)


def test_outputs_that_an_objective_cannot_read():
    job = JOBS["match_outputs"]
    data = (TensorDataset(torch.randn(8, 3, 8, 8), torch.zeros(8).long()),) * 2
    with pytest.raises(DataError, match="no logits in a model output of type dict") as error:
        mp.prune(job.model(), torch.randn(2, 3, 8, 8), budget="params=60%", data=data, progress=False)
    one_line(error)
