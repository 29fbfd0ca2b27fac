"""Options of calibration and compensation, without torch."""

from __future__ import annotations

from typing import Literal

Compensate = Literal["none", "bias", "least-squares"]
COMPENSATIONS: tuple[Compensate, ...] = ("none", "bias", "least-squares")
