"""The shape of a data split, which everything that walks over data is written against."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import torch

from metaprune.core.rng import Rng


@runtime_checkable
class Split(Protocol):
    """One part of a data set."""

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def batches(
        self,
        batch_size: int,
        *,
        device: str | torch.device = "cpu",
        rng: Rng | None = None,
        augment: bool = False,
        drop_last: bool = False,
    ) -> Iterator[tuple[Any, Any]]:
        """Yield one pass: (inputs, target) on `device`.

        Images are float32 [B, C, H, W], normalised; class labels int64 [B]. Shuffled iff `rng` is given, and the same
        `rng` gives the same pass: derive one per epoch, e.g. `rng.child("epoch", i)`.
        """
        ...
