"""The optimiser of a `TrainConfig`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from metaprune.core.errors import ConfigError
from metaprune.core.imports import import_python_target
from metaprune.train.config import PYTHON, TrainConfig


def make_optimizer(model: nn.Module, config: TrainConfig, lr: float) -> torch.optim.Optimizer:
    """Make the optimiser of `config` over the parameters that require gradients.

    Raises:
        ConfigError: a function of the user's own that makes no optimiser.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [{"params": parameters, "weight_decay": config.weight_decay}]
    if not config.decay_norm_and_bias:
        decayed = [p for p in parameters if p.ndim > 1]
        others = [p for p in parameters if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
        groups = [group for group in groups if group["params"]]
    if config.optimizer.startswith(PYTHON):
        optimizer = import_python_target(config.optimizer.removeprefix(PYTHON))(groups, lr=lr)
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise ConfigError(f"{config.optimizer} made a {type(optimizer).__name__}; return a torch.optim.Optimizer")
        for group in optimizer.param_groups:  # the schedule moves lr; groups keep their ratios
            group["lr_factor"] = group["lr"] / lr
        return optimizer
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=lr)
    return torch.optim.SGD(groups, lr=lr, momentum=config.momentum, nesterov=config.nesterov)
