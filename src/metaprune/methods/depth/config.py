"""Options of the method for depth, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from metaprune.protocol.options import MethodOptions
from metaprune.train.config import require_choice, require_number

Criterion = Literal["cosine", "loss"]


@dataclass(frozen=True, kw_only=True)
class DepthConfig(MethodOptions):
    """Depth: residual branches are dropped whole, those that matter least for what they cost first."""

    name: ClassVar[str] = "depth"
    needs_data: ClassVar[bool] = True

    criterion: Criterion = "loss"
    """cosine: 1 - cosine of the stream before and after the branch (ShortGPT's block influence, of a branch);
    loss: how far the outputs move without it. Neither reads labels."""
    iterative: bool = True
    """True: all are measured anew after each that goes; False: once, on the full network."""
    samples: int = 64
    """Training samples that are looked at."""
    batch_size: int = 16

    def __post_init__(self) -> None:
        require_choice("depth.criterion", self.criterion, get_args(Criterion))
        require_number("depth.samples", self.samples, 1)
        require_number("depth.batch_size", self.batch_size, 1)
