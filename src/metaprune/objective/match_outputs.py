"""Without labels: the original network's own outputs are the target."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from metaprune.core.rng import Rng
from metaprune.core.side_effects import copy_model
from metaprune.objective.base import Metric, Objective, error_sums, relative_error
from metaprune.objective.batch import call_model, inputs_and_target, tensors_in
from metaprune.objective.split import Split


@dataclass(frozen=True)
class MatchOutputs(Objective):
    """Squared error to the original's outputs relative to their square, mean over all floating output tensors.

    Works for any pytree of tensors: detectors before suppression, audio and embedding models. Labels in batches are
    left out. `prune` binds the objective to the network that it was given, by `TeacherSplit`.
    """

    name = "match_outputs"
    primary = Metric("output_error", "Output error", higher_is_better=False, percent=True)
    is_label_free = True

    def inputs_and_target(self, batch: Any) -> tuple[Any, Any]:
        return inputs_and_target(batch)[0], None

    def loss(self, output: Any, target: Any, *, label_smoothing: float = 0.0) -> Tensor:
        return relative_error(output, target)

    def sensitivity(self, output: Any, target: Any) -> Tensor:
        """Project the outputs onto a random direction, each tensor relative to its target's norm.

        The original network is at a minimum of the loss, where all gradients are zero. The expected square of this
        projection's change is the loss after that change.
        """
        pairs = zip(tensors_in(output), tensors_in(target), strict=True)
        dense = [(a, b) for a, b in pairs if a.is_floating_point()]
        parts = [(a * torch.randn_like(a)).sum() / b.norm().clamp_min(1e-6) for a, b in dense]
        return torch.stack(parts).sum() / len(parts) ** 0.5

    def sums(self, output: Any, target: Any) -> Tensor:
        with torch.no_grad():
            return torch.cat(error_sums(output, target)).double()

    def metrics(self, sums: Tensor, items: float) -> Mapping[str, float]:
        errors, norms = sums.view(2, -1)
        return {"output_error": float((errors / norms.clamp_min(1e-12)).sqrt().mean())}


class TeacherSplit:
    """A split whose target is what `teacher` returns for the inputs.

    The teacher is a private copy in evaluation mode, so that the user's model is never moved or switched.
    """

    def __init__(self, split: Split, teacher: nn.Module):
        self._split = split
        self._teacher = copy_model(teacher).eval().requires_grad_(False)
        self.source = getattr(split, "source", None)  # a user's DataLoader keeps its own batches
        self.num_batches = getattr(split, "num_batches", None)

    def __len__(self) -> int:
        return len(self._split)

    def batches(
        self,
        batch_size: int,
        *,
        device: str | torch.device = "cpu",
        rng: Rng | None = None,
        augment: bool = False,
        drop_last: bool = False,
    ) -> Iterator[tuple[Any, Any]]:
        """See `Split.batches`."""
        self._teacher.to(device)
        for inputs, _ in self._split.batches(batch_size, device=device, rng=rng, augment=augment, drop_last=drop_last):
            with torch.no_grad():  # not around the yield, which would switch gradients off for whoever walks
                target = call_model(self._teacher, inputs)
            yield inputs, target
