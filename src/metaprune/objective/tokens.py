"""Sequences: the next token, or a class per token. Everything is weighted by tokens, whatever the batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from metaprune.core.errors import DataError
from metaprune.objective.base import Metric, Objective, logits_of, require_range, soft_cross_entropy, wide
from metaprune.objective.batch import as_mapping, inputs_and_target
from metaprune.objective.dense import masked_cross_entropy

IGNORED = -100


def _are_token_labels(target: Any, logits: Tensor) -> bool:
    """Whether `target` holds integers [B, T] for logits [B, T, C]."""
    is_whole = isinstance(target, Tensor) and not target.is_floating_point()
    return is_whole and target.ndim >= 2 and target.shape == logits.shape[:-1]


@dataclass(frozen=True)
class TokenClassification(Objective):
    """Integer labels [B, T], -100 where none is judged, and logits [B, T, C]."""

    name = "token_classification"
    primary = Metric("token_accuracy", "Token accuracy", percent=True)
    item = "token"
    smooths_labels = True

    def _rows(self, output: Any, target: Any) -> tuple[Tensor, Tensor]:
        """Logits [N, C] and labels [N] of all positions."""
        logits = logits_of(output)
        if not _are_token_labels(target, logits):
            given = f"{target.dtype} {list(target.shape)}" if isinstance(target, Tensor) else type(target).__name__
            raise DataError(
                f"labels {given} for outputs {list(logits.shape)}: objective {self.name!r} takes integer labels "
                "[B, tokens] (-100: not judged) and outputs [B, tokens, classes]"
            )
        return logits.flatten(0, -2), target.flatten()

    def require_labels(self, target: Any, num_classes: int, role: str) -> None:
        if isinstance(target, Tensor):
            require_range(target, num_classes, IGNORED, role)

    def items(self, target: Any) -> float:
        return int((target != IGNORED).sum())

    def loss(self, output: Any, target: Any, *, label_smoothing: float = 0.0) -> Tensor:
        return masked_cross_entropy(*self._rows(output, target), IGNORED, label_smoothing)

    def sums(self, output: Any, target: Any) -> Tensor:
        logits, labels = (t.detach() for t in self._rows(output, target))
        nats = functional.cross_entropy(wide(logits), labels, ignore_index=IGNORED, reduction="sum")
        right = (logits.argmax(dim=-1) == labels).sum()  # -100 is no class, so it is never right
        return torch.stack([right.double(), nats.double()])

    def metrics(self, sums: Tensor, items: float) -> Mapping[str, float]:
        return {"token_accuracy": float(sums[0]) / items}

    def distillation(self, student: Any, teacher: Any, target: Any, temperature: float) -> Tensor:
        rows = []
        for output in (student, teacher):
            logits, labels = self._rows(output, target)
            rows.append(logits[labels != IGNORED])
        return soft_cross_entropy(rows[0], rows[1], temperature)


@dataclass(frozen=True)
class NextToken(TokenClassification):
    """Causal language modelling: labels [B, T] are the input tokens, shifted here; -100 and padding are not judged.

    Batches are mappings with `input_ids` (`labels` and `attention_mask` where there are any), pairs (ids, labels), or
    token ids [B, T] alone. Logits are [B, T, vocabulary].
    """

    name = "next_token"
    primary = Metric("perplexity", "Perplexity", higher_is_better=False)

    def inputs_and_target(self, batch: Any) -> tuple[Any, Any]:
        inputs, target = inputs_and_target(batch)
        named = as_mapping(inputs)
        if target is None:
            if named is not None and "input_ids" not in named:
                raise DataError(
                    f"a batch with {', '.join(named)} has neither labels nor input_ids, and 'next_token' needs one"
                )
            target = named["input_ids"] if named is not None else inputs
        mask = None if named is None else named.get("attention_mask")
        if mask is None or not isinstance(mask, Tensor) or mask.shape != target.shape:
            return inputs, target
        return inputs, target.masked_fill(mask == 0, IGNORED)

    def _rows(self, output: Any, target: Any) -> tuple[Tensor, Tensor]:
        logits = logits_of(output)
        if not _are_token_labels(target, logits):
            return super()._rows(output, target)  # says what is wrong
        return logits[:, :-1].flatten(0, 1), target[:, 1:].flatten()

    def items(self, target: Any) -> float:
        return int((target[:, 1:] != IGNORED).sum())

    def metrics(self, sums: Tensor, items: float) -> Mapping[str, float]:
        perplexity = math.exp(min(float(sums[1]) / items, 700.0))
        return {"perplexity": perplexity, "token_accuracy": float(sums[0]) / items}
