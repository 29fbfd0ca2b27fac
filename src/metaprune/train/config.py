"""Options of the training loop, without torch: the command line reads them before anything heavy is imported."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Literal, get_args

from metaprune.core.arguments import check_fields
from metaprune.core.errors import ConfigError, closest

OPTIMIZERS = ("auto", "sgd", "adamw")
SCHEDULES = ("cosine", "linear", "constant")
PYTHON = "python:"
MixedPrecision = Literal["auto", "no", "bf16", "fp16"]


def require_choice(option: str, value: object, choices: tuple[str, ...]) -> None:
    """Raises `ConfigError` with the closest name when `value` is not one of `choices`."""
    if value not in choices:
        raise ConfigError(f"{option}={value!r} is not one of {', '.join(choices)}.{closest(str(value), choices)}")


def require_number(option: str, value: float, low: float, high: float = math.inf, *, open_low: bool = False) -> None:
    """Raises `ConfigError` unless `value` is a finite number in [low, high] (in (low, high] with `open_low`)."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    is_finite = is_number and abs(value) <= sys.float_info.max  # math.isfinite raises for longer integers
    if is_finite and (low < value if open_low else low <= value) and value <= high:
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
    optimizer: str = "auto"
    """Update rule: sgd, adamw, or python:module:function, which is called with (parameter groups, lr=lr). auto: sgd,
    but adamw in the recoveries reconstruct and lora."""
    lr: Literal["auto"] | float = "auto"
    """Peak learning rate. auto: 0.05 where training starts from new weights (0.001 for adamw); a recovery finds what
    fits the weights that it begins with, by a short ramp."""
    momentum: float = 0.9
    """Momentum of sgd (adamw does not use it)."""
    nesterov: bool = True
    """Nesterov momentum of sgd (adamw does not use it)."""
    weight_decay: float = 5e-4
    """Weight decay: an L2 term in sgd, decoupled in adamw."""
    decay_norm_and_bias: bool = True
    """Decay parameters with at most one dimension (normalisation weights, biases) too."""
    schedule: str = "cosine"
    """Learning rate after the warm-up: falls to zero along a cosine or a line, or stays (constant); or
    python:module:function of (step, total_steps, warmup_steps), which returns the factor of lr."""
    warmup_epochs: float = 0.0
    """Epochs of linear warm-up, part of `epochs`."""
    label_smoothing: float = 0.0
    """Share of the target spread evenly over all classes, in [0, 1)."""
    max_grad_norm: float | None = None
    """Clip the gradient to this global L2 norm."""
    accumulate: int = 1
    """Parts that a batch is split into, one forward and backward pass each: the same update with less memory, but
    BatchNorm sees the parts."""
    ema_decay: float | None = None
    """Average the weights over steps with this decay, as 0.999; validation and the result use the average."""
    steps_per_epoch: int | None = None
    """Batches that count as one epoch; by default a whole pass. A stream without a length is counted first without
    this, and started again where it ends early."""
    mixed_precision: MixedPrecision = "auto"
    """auto: bf16 on a GPU that has it, fp16 on other CUDA GPUs, no elsewhere."""
    augment: bool = True
    """Augment the training samples as the data source defines it."""
    channels_last: bool = False
    """Images in channels-last layout: faster on CPUs, and on GPUs in half precision; a model that calls `.view` on
    feature maps needs `.reshape` there."""
    log_with: str | None = None
    """Experiment tracker that epochs are logged to: tensorboard, wandb, mlflow, ... (Accelerate's names; install its
    package), or python:module:Class of an accelerate GeneralTracker."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.optimizer.startswith(PYTHON):
            require_choice("optimizer", self.optimizer, OPTIMIZERS)
        if not self.schedule.startswith(PYTHON):
            require_choice("schedule", self.schedule, SCHEDULES)
        require_choice("mixed_precision", self.mixed_precision, get_args(MixedPrecision))
        require_number("epochs", self.epochs, 0.0, 1e6, open_low=True)
        require_number("batch_size", self.batch_size, 1)
        if not isinstance(self.batch_size, int):
            raise ConfigError(f"batch_size={self.batch_size!r} does not fit: give a whole number")
        for name in ("accumulate", "steps_per_epoch"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ConfigError(f"{name}={value!r} does not fit: give a whole number from 1 on")
        if self.ema_decay is not None:
            require_number("ema_decay", self.ema_decay, 0.0, 1.0)
        if self.lr != "auto":
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
        if self.optimizer in ("auto", "sgd") and self.nesterov and self.momentum == 0.0:
            raise ConfigError("nesterov=True needs momentum above 0: set nesterov=False for plain sgd")
