"""Options of reader norm, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from metaprune.core.errors import ConfigError
from metaprune.methods.criteria.config import RankingConfig


@dataclass(frozen=True, kw_only=True)
class ReaderNormConfig(RankingConfig):
    """Reader norm: how much the layers after a channel weigh it."""

    name: ClassVar[str] = "reader_norm"

    power: int
    """1 sums absolute weights, 2 sums squares."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.power not in (1, 2):
            raise ConfigError(f"power is 1 or 2, not {self.power}")
