"""Tensors for the executor: sliced from a model's own, gradients included; and masks of single weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch

from metaprune.graph.call import Survivors
from metaprune.graph.labelling import Labelled


def kept_rows(labels: list, alive: Survivors) -> list[np.ndarray | None]:
    """List the surviving indices of every dimension; None where all survive."""
    return [alive.index(x) if x is not None and alive.cut(x) else None for x in labels]


def slice_tensor(tensor: torch.Tensor, labels: list, alive: Survivors) -> torch.Tensor:
    """Slice the surviving rows of every labelled dimension; a differentiable copy (or the tensor itself if not cut)."""
    for dim, rows in enumerate(kept_rows(labels, alive)):
        if rows is not None:
            tensor = tensor.index_select(dim, torch.from_numpy(rows).to(tensor.device))
    return tensor


def unslice_tensor(
    part: torch.Tensor, full: torch.Tensor, labels: list | None, alive: Survivors | None
) -> torch.Tensor:
    """Copy `full` with `part` in the places that `slice_tensor` reads."""
    restored = full.detach().clone()
    rows_kept = [None] * full.dim() if labels is None or alive is None else kept_rows(labels, alive)
    index = [
        (torch.arange(size) if rows is None else torch.from_numpy(rows)).to(full.device)
        for rows, size in zip(rows_kept, full.shape, strict=True)
    ]
    restored[torch.meshgrid(*index, indexing="ij") if index else ...] = part
    return restored


def zeroed(tensors: Mapping[str, torch.Tensor], masks: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return `tensors` with zeros where a mask (bool, of the tensor's shape) is False; those without it as they are."""
    masked = dict(tensors)
    for name, mask in masks.items():
        masked[name] = masked[name].detach().masked_fill(~mask.to(masked[name].device), 0)
    return masked


class SlicedTensors(Mapping[str, torch.Tensor]):
    """Slices `tensors` on access, so that a run never holds more than one slice at a time (gradients aside).

    `dtype` casts floating tensors too.
    """

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        labelled: Labelled,
        alive: Survivors | None,
        dtype: torch.dtype | None = None,
    ):
        self._tensors, self._labelled, self._alive, self._dtype = tensors, labelled, alive, dtype

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor = self._tensors[name]
        if self._alive is not None and name in self._labelled.parameters:
            tensor = slice_tensor(tensor, self._labelled.parameters[name], self._alive)
        if self._dtype is not None and (tensor.is_floating_point() or tensor.is_complex()):
            tensor = tensor.to(self._dtype.to_complex() if tensor.is_complex() else self._dtype)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
