"""Whether a dimension of the inputs is a batch: what one sample is must not depend on the others.

A sequence-first recurrent layer runs at any length of dimension 0, too. Only what it computes tells that this is time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from metaprune.core.batches import batch_size, copied, is_batched
from metaprune.core.side_effects import side_effects_undone

NO_BATCH = "dimension {dim} of the inputs is no batch: outputs depend on more than their own sample"
_CLOSE = 1e-4  # relative to the largest entry; what is computed in float32 or less differs by rounding


@torch.no_grad()
def samples_are_independent(model: nn.Module, args: tuple, kwargs: dict[str, Any], dim: int) -> bool | None:
    """Change one sample at a time and look whether any output of the others stays.

    None: it cannot be told, as no output has the dimension, or BatchNorm uses the statistics of the batch at all times.

    Raises whatever the model raises.
    """
    batch = batch_size(args, kwargs, dim)
    if batch < 2 or any(
        isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is None for m in model.modules()
    ):
        return None
    with side_effects_undone(model):
        before = _outputs(model, args, kwargs, batch, dim)
        first = _outputs(model, *varied(args, kwargs, dim, changed=0), batch, dim)
        last = _outputs(model, *varied(args, kwargs, dim, changed=batch - 1), batch, dim)
    if not len(before) == len(first) == len(last) or not before:
        return None
    inner = batch - 1
    return any(
        close(a.narrow(dim, 1, inner), b.narrow(dim, 1, inner))
        and close(a.narrow(dim, 0, inner), c.narrow(dim, 0, inner))
        for a, b, c in zip(before, first, last, strict=True)
    )


def _outputs(model: nn.Module, args: tuple, kwargs: dict[str, Any], batch: int, dim: int) -> list[Tensor]:
    torch.default_generator.manual_seed(0)  # a forward that draws draws the same
    args, kwargs = copied((args, kwargs))
    leaves = pytree.tree_leaves(model(*args, **kwargs))
    return [x.double() for x in leaves if is_batched(x, batch, dim) and not x.is_complex()]


def varied(
    args: tuple, kwargs: dict[str, Any], dim: int, *, kept: int | None = None, changed: int | None = None
) -> tuple[tuple, dict[str, Any]]:
    """Move samples: by noise, or by the order of their integers, which stay in their range. Inputs are copied.

    Args:
        kept: the one sample that stays.
        changed: the one sample that is moved.
    """
    generator = torch.Generator().manual_seed(0)
    batch = batch_size(args, kwargs, dim)

    def moved(x: Any) -> Any:
        if not is_batched(x, batch, dim) or x.dtype == torch.bool:
            return x
        x = x.clone()
        for sample in (x.select(dim, i) for i in range(batch) if i != kept and changed in (None, i)):
            if x.is_floating_point():
                sample += torch.randn(sample.shape, generator=generator).to(sample)
            elif not x.is_complex():
                order = torch.randperm(sample.numel(), generator=generator).to(x.device)
                sample.copy_(sample.reshape(-1)[order].reshape(sample.shape))
        return x

    return pytree.tree_map(moved, (args, kwargs))


def close(a: Tensor, b: Tensor) -> bool:
    """Tell whether two tensors differ by rounding alone."""
    if a.shape != b.shape:
        return False
    rounding = 16 * torch.finfo(a.dtype).eps if a.is_floating_point() else 0.0
    a, b = a.double().nan_to_num(), b.double().nan_to_num()
    return bool((a - b).abs().max() <= max(_CLOSE, rounding) * a.abs().max()) if a.numel() else True
