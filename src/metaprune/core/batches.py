"""The batch dimension of a model's inputs: dimension 0 of the first tensor, and of all tensors as long as it."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree


def batch_size(args: tuple, kwargs: dict[str, Any]) -> int:
    """Dimension 0 of the first tensor; 0 without one."""
    tensors = (x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor) and x.dim())
    return next((int(x.shape[0]) for x in tensors), 0)


def is_batched(value: Any, batch: int) -> bool:
    """Tell whether `value` is a tensor whose dimension 0 is the batch."""
    return isinstance(value, torch.Tensor) and value.dim() > 0 and value.shape[0] == batch


def with_batch(args: tuple, kwargs: dict[str, Any], size: int) -> tuple[tuple, dict[str, Any]]:
    """Set every batch dimension of the inputs to `size`: the first rows, or all rows repeated in turn."""
    batch = batch_size(args, kwargs)
    if batch in (0, size):
        return args, kwargs

    def resized(x: Any) -> Any:
        if not is_batched(x, batch):
            return x
        return x[:size].clone() if size < batch else x.index_select(0, torch.arange(size, device=x.device) % batch)

    return pytree.tree_map(resized, (args, kwargs))
