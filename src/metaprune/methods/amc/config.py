"""Options of the search for keep ratios by layer, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from metaprune.protocol.options import MethodOptions
from metaprune.train.config import require_number


@dataclass(frozen=True, kw_only=True)
class AMCConfig(MethodOptions):
    """AMC's search for keep ratios by layer, judged right after the cut, with a Bayesian optimiser."""

    name: ClassVar[str] = "amc"
    needs_data: ClassVar[bool] = True

    trials: int = 100
    """Structures that are tried."""
    samples: int = 1000
    """Validation samples that judge a structure."""
    calibration: int = 512
    """Training samples that the weights of a structure are solved from; no labels of them are read."""

    def __post_init__(self) -> None:
        require_number("amc.trials", self.trials, 1)
        require_number("amc.samples", self.samples, 1)
        require_number("amc.calibration", self.calibration, 4)
