"""The objectives, by hand: losses, metrics that add up over any split of a batch, masks, distillation."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset

from metaprune.core.errors import DataError
from metaprune.core.rng import Rng
from metaprune.data import as_data
from metaprune.objective import (
    Classification,
    MatchOutputs,
    MultiLabel,
    NextToken,
    OwnLoss,
    Regression,
    Segmentation,
    TokenClassification,
)
from metaprune.objective.batch import share_of
from metaprune.objective.registry import create_objective
from metaprune.train.config import TrainConfig
from metaprune.train.evaluate import add_batch, new_totals, quality_from_sums
from metaprune.train.loop import train


def quality(objective, *batches):
    """Figures of (output, target) batches."""
    totals = new_totals(torch.device("cpu"))
    for output, target in batches:
        loss = objective.loss(output, target)
        totals = add_batch(totals, loss, objective, output, target, target)
    return quality_from_sums(totals, objective).metrics


def sample(kind, count, generator):
    """(objective, output, target) of `count` samples; targets of every value, some of them masked."""

    def numbers(*shape):
        return torch.randn(count, *shape, generator=generator, dtype=torch.float64)

    def labels(high, *shape):
        return torch.randint(high, (count, *shape), generator=generator)

    tokens = labels(6, 7).masked_fill(labels(3, 7) == 0, -100)
    tokens[:, 1] = 2  # of every sample something is judged
    maps = labels(3, 4, 4)
    maps[:, 0, 0] = 255
    return {
        "classification": (Classification(), numbers(4), labels(4)),
        "soft": (Classification(), numbers(4), numbers(4).softmax(1)),
        "multi_label": (MultiLabel(), numbers(5), labels(2, 5)),
        "regression": (Regression(), numbers(3), numbers(3)),
        "segmentation": (Segmentation(3, ignore_index=255), numbers(3, 4, 4), maps),
        "token_classification": (TokenClassification(), numbers(7, 6), tokens),
        "next_token": (NextToken(), numbers(7, 6), tokens),
    }[kind]


KINDS = ("classification", "soft", "multi_label", "regression", "segmentation", "token_classification", "next_token")


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20, deadline=None)
@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=5), seed=st.integers(0, 9))
def test_figures_do_not_depend_on_the_batches(kind, sizes, seed):
    objective, output, target = sample(kind, sum(sizes), torch.Generator().manual_seed(seed))
    whole = quality(objective, (output, target))
    parts = quality(objective, *zip(output.split(sizes), target.split(sizes), strict=True))
    assert parts == pytest.approx(whole, rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_distillation_is_least_for_equal_outputs(kind):
    objective, output, target = sample(kind, 6, torch.Generator().manual_seed(0))
    student = output.clone().requires_grad_()
    objective.distillation(student, output, target, 3.0).backward()
    assert student.grad.abs().max() < 1e-9
    same = float(objective.distillation(output, output, target, 3.0))
    assert same < float(objective.distillation(output + torch.randn_like(output), output, target, 3.0))
    if kind != "multi_label":  # a cross-entropy, whose least value is the teacher's entropy
        assert same == pytest.approx(0, abs=1e-12)


def test_classification():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    target = torch.tensor([0, 1, 1])
    by_hand = [math.log(1 + math.exp(-2)), math.log(1 + math.exp(-1)), math.log(1 + math.exp(3))]
    figures = quality(Classification(), (logits, target))
    assert figures == pytest.approx({"loss": sum(by_hand) / 3, "accuracy": 2 / 3})
    soft = torch.tensor([[0.7, 0.3], [0.0, 1.0], [1.0, 0.0]])
    terms = [0.7 * by_hand[0] + 0.3 * (by_hand[0] + 2), by_hand[1], by_hand[2] - 3]
    assert quality(Classification(), (logits, soft)) == pytest.approx({"loss": sum(terms) / 3, "accuracy": 1.0})


def test_f1_of_multi_label():
    logits = torch.tensor([[5.0, -5.0, 5.0], [5.0, -5.0, -5.0]])
    target = torch.tensor([[1, 0, 0], [1, 1, 1]])  # two hits, one false alarm, two misses, one true rejection
    figures = quality(MultiLabel(), (logits, target))
    assert figures["f1"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 2))
    assert figures["label_accuracy"] == pytest.approx(3 / 6)
    small, large = math.log(1 + math.exp(-5)), math.log(1 + math.exp(5))
    assert figures["loss"] == pytest.approx((3 * small + 3 * large) / 6)


def test_regression():
    output, target = torch.tensor([[1.0], [2.0], [6.0]]), torch.tensor([1.0, 4.0, 4.0])
    figures = quality(Regression(), (output, target))
    assert figures["loss"] == pytest.approx(8 / 3)
    assert figures["rmse"] == pytest.approx(math.sqrt(8 / 3))
    assert figures["mae"] == pytest.approx(4 / 3)
    assert figures["r2"] == pytest.approx(1 - 8 / 6)


def test_mean_iou():
    said = torch.tensor([[[0, 0, 1], [1, 1, 0]]])
    true = torch.tensor([[[0, 1, 1], [1, 255, 0]]])  # class 2 is nowhere and does not count
    logits = functional.one_hot(said, 3).movedim(-1, 1).float()
    figures = quality(Segmentation(3, ignore_index=255), (logits, true))
    assert figures["mean_iou"] == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert figures["pixel_accuracy"] == pytest.approx(4 / 5)
    right, wrong = math.log(1 + 2 * math.exp(-1)), math.log(math.e + 2)
    assert figures["loss"] == pytest.approx((4 * right + wrong) / 5)


def test_perplexity():
    ids = torch.tensor([[0, 1, 1, 0], [1, 0, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    objective = NextToken()
    inputs, target = objective.inputs_and_target({"input_ids": ids, "attention_mask": mask})
    assert set(inputs) == {"input_ids", "attention_mask"}
    assert target.tolist() == [[0, 1, 1, 0], [1, 0, -100, -100]]
    assert objective.items(target) == 4  # three of the first row, one of the second
    logits = torch.zeros(2, 4, 2)
    logits[..., 1] = math.log(3)  # says 1 with probability 3/4
    figures = quality(objective, (logits, target))
    nats = -(math.log(3 / 4) * 2 + math.log(1 / 4) * 2) / 4
    assert figures == pytest.approx({"loss": nats, "perplexity": math.exp(nats), "token_accuracy": 2 / 4})
    assert objective.inputs_and_target(ids)[1] is ids


def test_tokens_that_are_all_masked():
    objective, logits = TokenClassification(), torch.randn(2, 3, 4, requires_grad=True)
    target = torch.full((2, 3), -100)
    loss = objective.loss(logits, target)
    loss.backward()
    assert float(loss.detach()) == 0 and logits.grad.abs().max() == 0
    with pytest.raises(DataError, match="every token of the split is masked"):
        quality(objective, (logits, target))


def test_match_outputs_on_nested_outputs():
    reference = {"a": torch.tensor([[3.0, 4.0]]), "b": [torch.tensor([[2.0]]), (torch.tensor([1]),)]}
    output = {"a": torch.tensor([[3.0, 5.0]]), "b": [torch.tensor([[4.0]]), (torch.tensor([7]),)]}
    figures = quality(MatchOutputs(), (output, reference))  # whole numbers are no outputs that could be near
    assert figures["loss"] == pytest.approx((1 / 25 + 4 / 4) / 2)
    assert figures["output_error"] == pytest.approx((1 / 5 + 1) / 2)
    assert quality(MatchOutputs(), (reference, reference)) == {"loss": 0, "output_error": 0}
    with pytest.raises(DataError, match="cannot be compared"):
        MatchOutputs().loss({"a": torch.ones(1, 3)}, {"a": torch.ones(1, 2)})


def test_match_outputs_adds_up():
    generator = torch.Generator().manual_seed(0)
    output, reference = (
        {"a": torch.randn(6, 3, generator=generator), "b": torch.randn(6, generator=generator)} for _ in range(2)
    )
    whole = quality(MatchOutputs(), (output, reference))["output_error"]
    parts = [(share_of(output, i, i + 2), share_of(reference, i, i + 2)) for i in (0, 2, 4)]
    assert quality(MatchOutputs(), *parts)["output_error"] == pytest.approx(whole)


def test_the_square_of_a_sensitivity_is_the_loss_on_average():
    torch.manual_seed(0)
    reference = {"a": torch.randn(4, 3), "b": torch.randn(4, 2)}
    change = {n: 0.1 * torch.randn_like(t) for n, t in reference.items()}
    squares = []
    for seed in range(400):
        values = []
        for output in (reference, {n: reference[n] + change[n] for n in reference}):
            torch.manual_seed(seed)
            values.append(MatchOutputs().sensitivity(output, reference))
        squares.append(float(values[1] - values[0]) ** 2)
    loss = MatchOutputs().loss({n: reference[n] + change[n] for n in reference}, reference)
    assert sum(squares) / len(squares) == pytest.approx(float(loss), rel=0.25)


def test_own_loss_of_mappings_and_objects():
    losses = {"box": torch.tensor(1.0), "class": torch.tensor([0.5])}
    assert float(OwnLoss().loss(losses, None)) == 1.5
    assert float(OwnLoss().loss(SimpleNamespace(loss=torch.tensor(2.0)), None)) == 2
    with pytest.raises(DataError, match="returned no loss"):
        OwnLoss().loss(torch.zeros(2, 3), None)


class Sentences(Dataset):
    """Token ids of 8 rows, the more padded the later the row."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(1, 20, (8, 9), generator=generator)
        self.mask = (torch.arange(9) < torch.tensor([9, 9, 8, 7, 5, 4, 3, 2])[:, None]).long()

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return {"input_ids": self.ids[index], "attention_mask": self.mask[index]}


class Bigrams(nn.Module):
    def __init__(self):
        super().__init__()
        with Rng(0).torch_global():
            self.embed, self.head = nn.Embedding(20, 6), nn.Linear(6, 20)

    def forward(self, input_ids, attention_mask=None):
        return self.head(self.embed(input_ids))


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_accumulated_parts_are_the_whole_batch(parts):
    """Parts hold different numbers of tokens and weigh by them."""
    trained = {}
    for accumulate in (1, parts):
        model, data = Bigrams(), as_data((Sentences(), Sentences()), objective="next_token")
        config = TrainConfig(epochs=3, batch_size=8, lr=0.5, accumulate=accumulate)
        history = train(model, data, config, rng=Rng(0), device="cpu", progress=False)
        trained[accumulate] = [history.rows[-1].train["loss"], *model.parameters()]
    for whole, part in zip(trained[1], trained[parts], strict=True):
        torch.testing.assert_close(torch.as_tensor(part), torch.as_tensor(whole), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["classification", "multi_label", "next_token", "segmentation"])
def test_losses_of_half_precision_are_not_rounded(name):
    objective = create_objective({"kind": name, "classes": 5} if name == "segmentation" else name)
    shape = {"next_token": (4, 9, 5), "segmentation": (4, 5, 3, 3)}.get(name, (4, 5))
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    target = {
        "classification": torch.arange(4),
        "multi_label": (logits > 0).long(),
        "next_token": torch.arange(36).reshape(4, 9) % 5,
        "segmentation": torch.arange(36).reshape(4, 3, 3) % 5,
    }[name]
    loss = objective.loss(logits, target)
    assert loss.dtype == torch.float32 and torch.equal(loss, objective.loss(logits.float(), target))
