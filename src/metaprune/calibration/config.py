"""Options of calibration and compensation, without torch."""

from __future__ import annotations

from typing import Literal

Compensate = Literal["none", "bias", "least-squares"]
COMPENSATIONS: tuple[Compensate, ...] = ("none", "bias", "least-squares")

SHARES = (0.75, 0.5, 0.25, 0.1)  # each is needed: see "Right after the cut" in benchmarks/README.md
"""Of a group's width, where its sensitivity is measured. Without the last, a deep VGG at a quarter of the MACs kept one
channel somewhere."""
