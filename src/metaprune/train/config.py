"""Options of the training loop, without torch: the command line reads them before anything heavy is imported."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from metaprune.core.errors import ConfigError, closest

OptimizerName = Literal["sgd", "adamw"]
ScheduleName = Literal["cosine", "linear", "constant"]
MixedPrecision = Literal["auto", "no", "bf16", "fp16"]


def require_choice(option: str, value: object, choices: tuple[str, ...]) -> None:
    """Raises `ConfigError` with the closest name when `value` is not one of `choices`."""
    if value not in choices:
        raise ConfigError(f"{option}={value!r} is not one of {', '.join(choices)}.{closest(str(value), choices)}")


def require_number(option: str, value: float, low: float, high: float = math.inf, *, open_low: bool = False) -> None:
    """Raises `ConfigError` unless `value` is a finite number in [low, high] (in (low, high] with `open_low`)."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if is_number and math.isfinite(value) and (low < value if open_low else low <= value) and value <= high:
        return
    lower = f"above {low:g}" if open_low else f"at least {low:g}"
    upper = "" if math.isinf(high) else f" and at most {high:g}"
    raise ConfigError(f"{option}={value!r} does not fit: give a finite number {lower}{upper}")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How a network is trained. The defaults are the usual ones for CIFAR-size networks."""

    epochs: float = 10.0
    """Passes over the training split; a fraction ends within a pass."""
    batch_size: int = 128
    """Samples per optimiser update, over all processes together."""
    optimizer: OptimizerName = "sgd"
    """Update rule."""
    lr: float = 0.05
    """Peak learning rate."""
    momentum: float = 0.9
    """Momentum of sgd (adamw does not use it)."""
    nesterov: bool = True
    """Nesterov momentum of sgd (adamw does not use it)."""
    weight_decay: float = 5e-4
    """Weight decay: an L2 term in sgd, decoupled in adamw."""
    decay_norm_and_bias: bool = True
    """Decay parameters with at most one dimension (normalisation weights, biases) too."""
    schedule: ScheduleName = "cosine"
    """Learning rate after the warm-up: falls to zero along a cosine or a line, or stays."""
    warmup_epochs: float = 0.0
    """Epochs of linear warm-up, part of `epochs`."""
    label_smoothing: float = 0.0
    """Share of the target spread evenly over all classes, in [0, 1)."""
    max_grad_norm: float | None = None
    """Clip the gradient to this global L2 norm."""
    mixed_precision: MixedPrecision = "auto"
    """auto: bf16 on a GPU that has it, fp16 on other CUDA GPUs, no elsewhere."""
    augment: bool = True
    """Augment the training samples as the data source defines it."""
    channels_last: bool = False
    """Images in channels-last layout: faster on CPUs, and on GPUs in half precision; a model that calls `.view` on
    feature maps needs `.reshape` there."""

    def __post_init__(self) -> None:
        require_choice("optimizer", self.optimizer, get_args(OptimizerName))
        require_choice("schedule", self.schedule, get_args(ScheduleName))
        require_choice("mixed_precision", self.mixed_precision, get_args(MixedPrecision))
        require_number("epochs", self.epochs, 0.0, open_low=True)
        require_number("batch_size", self.batch_size, 1)
        if not isinstance(self.batch_size, int):
            raise ConfigError(f"batch_size={self.batch_size!r} does not fit: give a whole number")
        require_number("lr", self.lr, 0.0, open_low=True)
        require_number("momentum", self.momentum, 0.0, 1.0)
        require_number("weight_decay", self.weight_decay, 0.0)
        require_number("warmup_epochs", self.warmup_epochs, 0.0)
        require_number("label_smoothing", self.label_smoothing, 0.0, 1.0)
        if self.label_smoothing == 1.0:
            raise ConfigError("label_smoothing=1 leaves no target to learn: give a number below 1, usually 0.1")
        if self.max_grad_norm is not None:
            require_number("max_grad_norm", self.max_grad_norm, 0.0, open_low=True)
        if self.warmup_epochs > self.epochs:
            raise ConfigError(
                f"warmup_epochs={self.warmup_epochs:g} is longer than epochs={self.epochs:g}: the peak learning rate "
                "would never be reached; shorten the warm-up or train for longer"
            )
        if self.optimizer == "sgd" and self.nesterov and self.momentum == 0.0:
            raise ConfigError("nesterov=True needs momentum above 0: set nesterov=False for plain sgd")
