"""Quality of a network on a split: the mean loss, and what its objective reads from sums over all batches."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from metaprune.core.errors import DataError
from metaprune.core.modes import device_of, modes_restored
from metaprune.objective import Classification, Objective, Split
from metaprune.objective.batch import batch_size_of, call_model


@dataclass(frozen=True, kw_only=True, slots=True)
class Quality:
    """Figures of a network on a split.

    Attributes:
        metrics: by name; `loss` is the mean over items.
        samples: samples that were seen.
        items: what the loss is a mean over: samples, or tokens or pixels that are not masked.
    """

    metrics: Mapping[str, float]
    samples: int
    items: int

    def __getitem__(self, metric: str) -> float:
        return self.metrics[metric]

    def to_dict(self) -> dict[str, float]:
        """Return all figures, JSON-able."""
        return {**self.metrics, "samples": self.samples, "items": self.items}


def evaluate(
    model: nn.Module,
    split: Split,
    *,
    objective: Objective | None = None,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    label_smoothing: float = 0.0,
) -> Quality:
    """Evaluate `model` on all of `split` in evaluation mode, without gradients; every module's mode is restored.

    Args:
        objective: classification unless given.
        device: where the batches go: the device of the model's first parameter unless given. The model is not moved.

    Raises:
        DataError: an empty split, or a target of another kind than the objective's.
    """
    objective = Classification() if objective is None else objective
    totals = quality_sums(
        model, split, objective=objective, batch_size=batch_size, device=device, label_smoothing=label_smoothing
    )
    return quality_from_sums(totals, objective, scores_of(model, split, objective))


def quality_on(run: Callable[[Any], Any], batches: Iterable[tuple[Any, Any]], objective: Objective) -> Quality:
    """Quality of whatever `run` does to inputs, on (inputs, target) batches, without gradients.

    Raises:
        DataError: no batch, or nothing in them that is judged.
    """
    return quality_from_sums(_sums(run, batches, objective), objective)


def scores_of(model: nn.Module, split: Split, objective: Objective) -> Mapping[str, float]:
    """Metrics that are not additive over batches, taken in evaluation mode."""
    with modes_restored(model), torch.random.fork_rng(devices=[]), torch.no_grad():
        model.eval()
        return objective.score(model, split)


def quality_sums(
    model: nn.Module,
    split: Split,
    *,
    objective: Objective,
    batch_size: int,
    device: torch.device | str | None = None,
    label_smoothing: float = 0.0,
    rank: int = 0,
    num_processes: int = 1,
) -> Tensor:
    """Sums (see `add_batch`) over every `num_processes`-th batch, from batch `rank` on."""
    device = torch.device(device) if device is not None else device_of(model)
    # a DataLoader draws a seed from the global generator even where nothing is shuffled
    with modes_restored(model), torch.random.fork_rng(devices=[]):
        model.eval()
        mine = itertools.islice(split.batches(batch_size, device=device), rank, None, num_processes)
        return _sums(lambda inputs: call_model(model, inputs), mine, objective, label_smoothing, new_totals(device))


def _sums(
    run: Callable[[Any], Any],
    batches: Iterable[tuple[Any, Any]],
    objective: Objective,
    label_smoothing: float = 0.0,
    totals: Tensor | None = None,
) -> Tensor:
    """`totals` with all batches added; without them from zero, on the device of the first loss."""
    with torch.no_grad():
        for inputs, target in batches:
            output = run(inputs)
            loss = objective.loss(output, target, label_smoothing=label_smoothing)
            totals = new_totals(loss.device) if totals is None else totals
            totals = add_batch(totals, loss, objective, output, inputs, target)
    return new_totals(torch.device("cpu")) if totals is None else totals


def new_totals(device: torch.device) -> Tensor:
    """Zeros [3]: loss sum, items, samples. Kept on the device so that no batch waits for a copy."""
    return torch.zeros(3, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)


def add_batch(
    totals: Tensor,
    mean_loss: Tensor,
    objective: Objective,
    output: object,
    inputs: object,
    target: object,
    items: float | None = None,
) -> Tensor:
    """Return `totals` [3 + k] with one batch added: loss sum, items, samples, and the objective's k sums.

    items: the target's, where they are counted already.
    """
    items = objective.items(target) if items is None else items
    counts = torch.tensor([items, batch_size_of(inputs)], dtype=totals.dtype, device=totals.device)
    loss = (mean_loss.detach() * items).to(totals)
    row = torch.cat([loss.reshape(1), counts, objective.sums(output, target).to(totals)])
    return row + torch.cat([totals, row.new_zeros(len(row) - len(totals))])


def quality_from_sums(totals: Tensor, objective: Objective, scores: Mapping[str, float] | None = None) -> Quality:
    """Read the figures from added-up sums.

    Raises:
        DataError: nothing was seen, or all of it is masked.
    """
    loss, items, samples = (float(value) for value in totals[:3].tolist())
    if samples == 0:
        raise DataError("nothing to evaluate: the split is empty; choose another split or more samples")
    if items == 0:
        raise DataError(
            f"nothing to evaluate: every {objective.item} of the split is masked or ignored; check labels and padding"
        )
    metrics = {"loss": loss / items, **objective.metrics(totals[3:], items), **(scores or {})}
    return Quality(metrics=metrics, samples=round(samples), items=round(items))
