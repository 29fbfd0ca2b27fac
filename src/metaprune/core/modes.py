"""Train and evaluation mode of every module, saved and restored exactly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def modes_restored(model: nn.Module) -> Iterator[None]:
    """Restore each module's `training` flag on exit: users freeze parts by mode, and `train()` would thaw them."""
    before = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        if model.training != before[0][1]:
            model.train(before[0][1])  # graph modules switch their nodes here; plain ones are set again below
        for module, training in before:
            module.training = training


def device_of(model: nn.Module) -> torch.device:
    """Device of the first parameter (else of the first buffer, else the CPU)."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def hold_batchnorm(model: nn.Module) -> None:
    """Put BatchNorm into evaluation mode, so that running statistics are used and stay as they are."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
