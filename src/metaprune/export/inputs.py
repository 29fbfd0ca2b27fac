"""Example inputs of a saved network, by the shapes and types that its archive tells."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from metaprune.core.errors import DataError, NotAvailableError, first_line
from metaprune.core.files import part_of
from metaprune.core.rng import Rng
from metaprune.export.archive import NETWORK, REMEDY, read_archive

_LARGEST_INPUT = 2**30  # elements of an example


def example_inputs(folder: str | Path, device: str | torch.device = "cpu") -> tuple[tuple, dict[str, Any]]:
    """Make inputs of the traced shapes (normal floats, zeros for integers), for export and timing."""
    folder = Path(folder)
    described = read_archive(folder)["inputs"]
    if described is None:
        raise NotAvailableError(
            f"the network of {folder} takes inputs that are not plain tensors; export it from Python"
        )

    def make(d: dict[str, Any]) -> torch.Tensor:
        dtype = getattr(torch, d["dtype"])
        shape = [int(n) for n in d["shape"]]
        if not isinstance(dtype, torch.dtype) or min(shape, default=0) < 0 or math.prod(shape) > _LARGEST_INPUT:
            raise ValueError(f"an input of shape {shape}")
        if not dtype.is_floating_point:
            return torch.zeros(shape, dtype=dtype, device=device)
        return torch.randn(shape, generator=Rng(0).torch()).to(dtype=dtype, device=device)

    try:
        return tuple(make(d) for d in described["args"]), {n: make(d) for n, d in described["kwargs"].items()}
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        raise DataError(
            f"{part_of(folder, NETWORK)} describes no inputs that can be made ({first_line(error)}): {REMEDY}"
        ) from error
