"""What a method returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from metaprune.core.arguments import check_fields
from metaprune.values.plan import Plan


@dataclass(frozen=True)
class Trial:
    """One structure a method looked at."""

    widths: tuple[int, ...]
    cost: Mapping[str, float]
    score: float | None = None

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Proposal:
    """What a method returns: a plan, new weights where it makes its own, what it looked at and has to report.

    masks: parameter name -> bool tensor of the parameter's full shape; where it is False, that single weight is held at
    zero, through recovery too. `details["masks"]` may say more of them for the record: `pattern`, and `whole`, the
    names of weights without a mask.
    """

    plan: Plan
    weights: Mapping[str, Any] | None = None  # full-size tensors by parameter name
    trials: tuple[Trial, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)  # JSON-able; `method_details` of the record
    masks: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)
