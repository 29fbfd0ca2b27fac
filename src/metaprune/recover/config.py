"""Options of recovery, without torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from metaprune.core.arguments import check_fields, shown
from metaprune.core.errors import ConfigError
from metaprune.core.plugins import PYTHON, Registry
from metaprune.train.config import TrainConfig, require_choice, require_number

RecoverKind = str
RECOVERIES = Registry(
    "recovery",
    "metaprune.recoveries",
    {
        "bn": "metaprune.recover.bn_recalibrate:recover_batchnorm",
        "finetune": "metaprune.recover.finetune:finetune",
        "distil": "metaprune.recover.distil:distil",
        "lora": "metaprune.recover.lora:lora",
        "reconstruct": "metaprune.recover.reconstruct:reconstruct",
        "scratch": "metaprune.recover.scratch:train_from_scratch",
    },
)
NOTHING = ("auto", "none")
"""Kinds that leave the network as it is, once a method had its say."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RecoverConfig:
    """How a pruned network gets its accuracy back."""

    kind: RecoverKind = "finetune"
    """none; bn: recompute BatchNorm statistics; finetune; distil: from the original network; lora: as distil, by
    low-rank updates that are merged; reconstruct: from what the original computes inside, without labels; scratch:
    new weights; auto: nothing, or what the method asks for; python:module:function, your own loop, which is called with
    (model, data)."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Training of every kind but none and bn."""
    temperature: float = 4.0
    """Softening of both outputs in distil and lora."""
    distil_weight: float = 0.9
    """Share of the teacher in the loss of distil and lora, in [0, 1]; the rest is the objective's, with the labels."""
    lora_rank: int = 8
    """Rank of the updates of lora."""
    bn_batches: int = 16
    """Training batches over which bn averages the statistics."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.kind.startswith(PYTHON):
            require_choice("kind", self.kind, (*NOTHING, *RECOVERIES.names()))
        require_number("temperature", self.temperature, 0.0, open_low=True)
        require_number("distil_weight", self.distil_weight, 0.0, 1.0)
        require_number("bn_batches", self.bn_batches, 1)
        require_number("lora_rank", self.lora_rank, 1)


def parse_recover(value: RecoverConfig | str | None) -> RecoverConfig:
    """Return a config as it is, or that of a kind's name with default options; None is `auto`.

    Raises:
        ConfigError: an unknown kind (naming the closest) or another type.
    """
    if value is None:
        return RecoverConfig(kind="auto")
    if isinstance(value, RecoverConfig):
        return value
    if isinstance(value, str):
        return RecoverConfig(kind=value)
    kinds = ", ".join((*NOTHING, *RECOVERIES.names()))
    raise ConfigError(
        f"recover={shown(value)} is not understood: give None, one of {kinds}, a RecoverConfig, or a function of "
        "(model, data)"
    )
