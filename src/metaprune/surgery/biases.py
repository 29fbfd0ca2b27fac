"""Biases where a model has none: what compensation then moves (`compensate="bias"` of FLAP, An et al., AAAI 2024)."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from metaprune.core.arguments import check_arguments
from metaprune.core.errors import ConfigError, closest
from metaprune.core.side_effects import copy_model


def add_biases(model: nn.Module, *, only: Sequence[str] = ("*",)) -> nn.Module:
    """Copy a model with a bias of zeros in every linear and convolution layer that has none.

    The copy computes what the model does. Compensation can then make up for the mean of what dropped channels gave,
    which a layer without a bias cannot. Layers that share their weight with another, as tied heads do, stay.

    Args:
        model: stays as it is.
        only: patterns of the layers' names, as `*.down_proj`. Where BatchNorm follows, a bias is of no use.

    Raises:
        ConfigError: a pattern that matches no layer without a bias.
    """
    check_arguments(add_biases, locals())
    uses = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))
    without = [
        name
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, _ConvNd)) and module.bias is None and uses[id(module.weight)] <= 1
    ]
    for pattern in only:
        if not fnmatch.filter(without, pattern):
            raise ConfigError(f"only={pattern!r} matches no layer without a bias.{closest(pattern, without)}")
    copied = copy_model(model)
    for name in without:
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in only):
            layer = copied.get_submodule(name)
            weight = layer.weight
            out = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
            layer.bias = nn.Parameter(torch.zeros(out, dtype=weight.dtype, device=weight.device), weight.requires_grad)
    return copied
