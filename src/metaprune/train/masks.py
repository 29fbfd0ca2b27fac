"""Single weights that stay zero while a network is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@torch.no_grad()
def set_to_zero(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Zero the weights of `model`, in place, where a mask (bool, by parameter name, of its shape) is False."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, mask in masks.items():
        parameters[name].masked_fill_(~mask.to(parameters[name].device), 0)


@contextmanager
def held_at_zero(model: nn.Module, masks: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside the block, training leaves the weights of `model` at zero where a mask is False.

    Their gradients are set to zero as they arrive, so that clipping does not count them and a new optimiser keeps no
    momentum of them; weight decay of a zero is zero. Parametrisations (`torch.nn.utils.parametrize`) would do the same,
    but rename the parameters (checkpoints know them by name), change the modules' classes, and do not reach the flat
    weights of recurrent layers. The model has to be on its device already. It is left without hooks, whatever happens.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    hooks = []
    try:
        set_to_zero(model, masks)
        for name, mask in masks.items():
            if parameters[name].requires_grad:
                gone = ~mask.to(parameters[name].device)
                # filled, not multiplied: an infinite gradient times zero is NaN
                hooks.append(parameters[name].register_hook(lambda grad, gone=gone: grad.masked_fill(gone, 0)))
        yield
    finally:
        for hook in hooks:
            hook.remove()
        set_to_zero(model, masks)
