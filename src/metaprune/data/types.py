"""What a method or a training loop sees of a data set: splits that yield batches, and a few facts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

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
    ) -> Iterator[tuple[Any, Tensor]]:
        """One pass: (inputs, labels) on `device`.

        Images are float32 [B, C, H, W], normalised; labels int64 [B]. Shuffled iff `rng` is given, and the same `rng`
        gives the same pass: derive one per epoch, e.g. `rng.child("epoch", i)`.
        """
        ...


@dataclass(frozen=True)
class Data:
    """A classification data set.

    Attributes:
        test: never used to choose anything; None where the user gave none.
        num_classes: 0 where the labels are not class indices.
        input_shape: (channels, height, width) of a sample, or whatever shape the user's samples have.
        digest: changes with the content of the splits or their normalisation. For a user's loaders and datasets it
            covers their types and lengths only.
    """

    name: str
    train: Split
    val: Split
    test: Split | None
    num_classes: int
    input_shape: tuple[int, ...]
    classes: tuple[str, ...]
    digest: str
