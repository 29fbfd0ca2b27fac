"""A module's tensors by name."""

from __future__ import annotations

import torch
from torch import nn


def named_tensors(model: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Parameters and buffers (non-persistent ones too) once each, and alias -> name for tied ones."""
    first: dict[int, str] = {}
    tensors, aliases = {}, {}
    pairs = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, tensor in pairs:
        canonical = first.setdefault(id(tensor), name)
        if canonical == name:
            tensors[name] = tensor
        else:
            aliases[name] = canonical
    return tensors, aliases
