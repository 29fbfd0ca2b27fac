"""The figure that a record's network is judged by, as its objective names it; accuracy in records without one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from metaprune.report.units import finite, number_change, percentage, point_change, significant


@dataclass(frozen=True, slots=True)
class MetricView:
    """The primary metric of a record, and how it is written.

    Attributes:
        name: key in `quality` and in the history.
        label: as `Mean IoU`.
        higher_is_better: False for losses, errors and perplexity.
        percent: whether it is a share in 0..1, shown as a percentage.
        items: what it is taken over, as `tokens`.
    """

    name: str = "accuracy"
    label: str = "Accuracy"
    higher_is_better: bool = True
    percent: bool = True
    items: str = "samples"

    @property
    def scale(self) -> float:
        """Factor of what figures draw."""
        return 100.0 if self.percent else 1.0

    @property
    def suffix(self) -> str:
        """Unit on axes."""
        return "%" if self.percent else ""

    @property
    def in_text(self) -> str:
        """The label within a sentence: `accuracy`, `mean IoU`, `F1`."""
        return self.label if self.label[:2].isupper() else self.label[:1].lower() + self.label[1:]

    def text(self, value: object, digits: int = 2) -> str:
        """Format `91.20%` of a share, `12.34` of any other number."""
        return percentage(value, digits) if self.percent else significant(value)

    def change(self, before: object, after: object) -> str:
        """`-0.40 pp` of shares, `+1.3` of other numbers."""
        return point_change(before, after) if self.percent else number_change(before, after)


def metric_of(record: Mapping[str, Any]) -> MetricView:
    """Read the record's primary metric."""
    objective = record.get("objective")
    primary = objective.get("primary") if isinstance(objective, Mapping) else None
    if not isinstance(primary, Mapping):
        return MetricView()
    item = objective.get("item") if isinstance(objective, Mapping) else None
    return MetricView(
        str(primary.get("name") or "loss"),
        str(primary.get("label") or primary.get("name") or "Loss"),
        primary.get("higher_is_better") is not False,
        primary.get("percent") is True,
        f"{item or 'sample'}s",
    )


def value_of(metrics: object, name: str) -> float | None:
    """Read a metric among those of a quality entry or an epoch."""
    return finite(metrics.get(name)) if isinstance(metrics, Mapping) else None
