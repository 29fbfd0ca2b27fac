"""Options of recovery, without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from metaprune.core.errors import ConfigError
from metaprune.train.config import TrainConfig, require_choice, require_number

RecoverKind = Literal["auto", "none", "bn", "finetune", "distil", "scratch"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RecoverConfig:
    """How a pruned network gets its accuracy back."""

    kind: RecoverKind = "finetune"
    """none; bn: recompute BatchNorm statistics; finetune; distil: from the original network; scratch: new weights;
    auto: nothing, or what the method asks for."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Training of finetune, distil and scratch."""
    temperature: float = 4.0
    """Softening of both outputs in distil."""
    distil_weight: float = 0.9
    """Share of the teacher in distil's loss, in [0, 1]; the rest is cross-entropy with the labels."""
    bn_batches: int = 16
    """Training batches over which bn averages the statistics."""
    bn_batch_size: int = 128
    """Samples in each of them."""

    def __post_init__(self) -> None:
        require_choice("kind", self.kind, get_args(RecoverKind))
        require_number("temperature", self.temperature, 0.0, open_low=True)
        require_number("distil_weight", self.distil_weight, 0.0, 1.0)
        require_number("bn_batches", self.bn_batches, 1)
        require_number("bn_batch_size", self.bn_batch_size, 2)  # the variance of one sample does not exist


def parse_recover(value: RecoverConfig | str | None) -> RecoverConfig:
    """A config as it is, a kind's name with default options, or None for `auto`.

    Raises `ConfigError` for an unknown kind (naming the closest) or another type.
    """
    if value is None:
        return RecoverConfig(kind="auto")
    if isinstance(value, RecoverConfig):
        return value
    if isinstance(value, str):
        return RecoverConfig(kind=value)  # pyrefly: ignore[bad-argument-type] (checked in __post_init__)
    raise ConfigError(
        f"recover={value!r} is not understood: give None, one of {', '.join(get_args(RecoverKind))}, or a RecoverConfig"
    )
