"""A model's inputs: in words, and their batch dimension, that of the first tensor and of all that are as long there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils import _pytree as pytree


def batch_size(args: tuple, kwargs: dict[str, Any], dim: int = 0) -> int:
    """Read dimension `dim` of the first tensor that has one; 0 without such a tensor."""
    tensors = (x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor) and x.dim() > dim)
    return next((int(x.shape[dim]) for x in tensors), 0)


def is_batched(value: Any, batch: int, dim: int = 0) -> bool:
    """Tell whether `value` is a tensor whose dimension `dim` is the batch."""
    return isinstance(value, torch.Tensor) and value.dim() > dim and value.shape[dim] == batch


def with_batch(args: tuple, kwargs: dict[str, Any], size: int, dim: int = 0) -> tuple[tuple, dict[str, Any]]:
    """Resize every batch dimension to `size`: the first rows, or all rows repeated in turn."""
    batch = batch_size(args, kwargs, dim)
    if batch in (0, size):
        return args, kwargs

    def resized(x: Any) -> Any:
        if not is_batched(x, batch, dim):
            return x
        return x.index_select(dim, torch.arange(size, device=x.device) % batch)

    return pytree.tree_map(resized, (args, kwargs))


def copied(value: Any) -> Any:
    """Copy the tensors of nested inputs: a forward may write into what it is given."""
    return pytree.tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, value)


def described_inputs(args: tuple, kwargs: Mapping[str, Any]) -> str:
    """Inputs of a call in words, as `float32 [2, 3, 8, 8], attention_mask=int64 [2, 16]`."""

    def word(value: Any) -> str:
        if isinstance(value, torch.Tensor):
            return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
        return type(value).__name__

    return ", ".join([*map(word, args), *(f"{name}={word(value)}" for name, value in kwargs.items())]) or "nothing"
