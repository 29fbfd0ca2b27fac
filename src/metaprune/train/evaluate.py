"""Quality of a classifier on a split."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metaprune.core.errors import DataError
from metaprune.train.batch import Split, call_model, cross_entropy, logits_of
from metaprune.train.modes import device_of, modes_restored


@dataclass(frozen=True, kw_only=True, slots=True)
class Quality:
    """Top-1 accuracy in 0..1 and mean cross-entropy (nats) over `samples` samples."""

    accuracy: float
    loss: float
    samples: int


def evaluate(
    model: nn.Module,
    split: Split,
    *,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    label_smoothing: float = 0.0,
) -> Quality:
    """Evaluate `model` on all of `split` in evaluation mode, without gradients; every module's mode is restored.

    `device` is where the batches go: the device of the model's first parameter unless given. The model is not moved.
    Raises `DataError` for an empty split.
    """
    totals = quality_sums(model, split, batch_size=batch_size, device=device, label_smoothing=label_smoothing)
    return quality_from_sums(totals)


def quality_sums(
    model: nn.Module,
    split: Split,
    *,
    batch_size: int,
    device: torch.device | str | None = None,
    label_smoothing: float = 0.0,
    rank: int = 0,
    num_processes: int = 1,
) -> Tensor:
    """Sums [3] of loss, correct predictions and samples over every `num_processes`-th batch, from batch `rank` on."""
    device = torch.device(device) if device is not None else device_of(model)
    totals = new_totals(device)
    # a DataLoader draws a seed from the global generator even where nothing is shuffled
    with modes_restored(model), torch.random.fork_rng(devices=[]), torch.no_grad():
        model.eval()
        for index, (inputs, labels) in enumerate(split.batches(batch_size, device=device)):
            if index % num_processes == rank:
                logits = logits_of(call_model(model, inputs))
                loss = cross_entropy(logits, labels, label_smoothing=label_smoothing)
                add_batch(totals, loss, logits, labels)
    return totals


def new_totals(device: torch.device) -> Tensor:
    """Zeros [3]: loss sum, correct, samples. Kept on the device so that no batch waits for a copy."""
    return torch.zeros(3, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)


def add_batch(totals: Tensor, mean_loss: Tensor, logits: Tensor, labels: Tensor) -> None:
    """Add one batch to `totals` [3]; `mean_loss` [] is the mean over the labels [B] of logits [B, C]."""
    samples = labels.numel()
    totals[0] += mean_loss.detach() * samples
    totals[1] += (logits.detach().argmax(dim=-1) == labels).sum()
    totals[2] += samples


def quality_from_sums(totals: Tensor) -> Quality:
    """Raises `DataError` when no sample was seen."""
    loss, correct, samples = (float(value) for value in totals.tolist())
    if samples == 0:
        raise DataError("nothing to evaluate: the split is empty; choose another split or more samples")
    return Quality(accuracy=correct / samples, loss=loss / samples, samples=round(samples))
