"""What a traced graph knows of its values: shapes whose sizes may follow the batch, dtype and device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class BatchedSize:
    """A size that follows the batch: `scale * batch + offset`."""

    scale: int = 1
    offset: int = 0

    def at(self, batch: int) -> int:
        """Compute the size at a batch size."""
        return self.scale * batch + self.offset


@dataclass(frozen=True, slots=True)
class TensorValue:
    """A tensor of a traced graph, without its numbers."""

    shape: tuple[int | BatchedSize, ...]
    dtype: torch.dtype
    device: torch.device

    def dim(self) -> int:
        """Count the dimensions."""
        return len(self.shape)

    @classmethod
    def of(cls, tensor: torch.Tensor) -> TensorValue:
        """Describe a tensor."""
        return cls(tuple(tensor.shape), tensor.dtype, tensor.device)


def concrete(value: Any, batch: int) -> Any:
    """Compute shapes of tensors as tuples of ints, and sizes as ints, in nested lists too."""
    if isinstance(value, TensorValue):
        return tuple(s.at(batch) if isinstance(s, BatchedSize) else s for s in value.shape)
    if isinstance(value, BatchedSize):
        return value.at(batch)
    if isinstance(value, (list, tuple)):
        return [concrete(v, batch) for v in value]
    return value
