"""`metaprune inspect MODEL`: channel groups, costs, what is locked and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from metaprune.core.errors import ConfigError
from metaprune.runs.verb_tools import console, traced


@dataclass(frozen=True)
class Inspect:
    """Show the channel groups of a model, its costs, and what is locked and why."""

    model: tyro.conf.Positional[str]
    """zoo:NAME, builtin:NAME, timm:NAME_OR_DIR, torchvision:NAME, hf:NAME_OR_DIR or python:module:function."""
    option: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="KEY=VALUE")] = ()
    """Argument of the model, as num_classes=10; may be repeated."""
    weights: str | None = None
    """Weight file."""
    input_shape: tuple[int, ...] | None = None
    """Shape of one sample, as 3 224 224."""
    batch: int = 1
    """Samples per forward pass that MACs and peak memory are given for."""

    def run(self) -> int:
        if self.batch < 1:
            raise ConfigError(f"--batch {self.batch} is no number of samples: give 1 or more")
        _, network = traced(self.model, self.option, self.weights, self.input_shape)
        cost = network.cost(batch=self.batch)
        out = console()
        out.print(network.explain(), soft_wrap=True)
        out.print(
            f"MACs {cost.macs:,}   parameters {cost.params:,}   peak activations {cost.peak_bytes:,} bytes   "
            f"weights {cost.weight_bytes:,} bytes   (batch {self.batch})",
            soft_wrap=True,
        )
        return 0
