"""Records of several runs -> rows that can be compared: one per run, and one per method and budget over the seeds.

Imports neither torch nor plotly.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metaprune.report.metric import MetricView, metric_of, value_of
from metaprune.report.units import finite

Record = Mapping[str, Any]
SAME = ("model", "data", "objective", "recover", "compensate", "rounds", "constraints")
"""Parts of a record that runs have to share, or a comparison of their methods is none."""


@dataclass(frozen=True, slots=True)
class RunRow:
    """One run. Costs are of one sample, metric -> value; figures that were not measured are None.

    final: the primary metric after recovery, or right after the cut where nothing followed.
    failure: why there is no network; empty where there is one.
    """

    label: str
    budget: str
    seed: int
    folder: str
    dense: float | None = None
    cut: float | None = None
    final: float | None = None
    before: Mapping[str, float] | None = None
    after: Mapping[str, float] | None = None
    latency_ms: float | None = None
    seconds: float | None = None
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean, lowest and highest of the figures that were measured."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Spread | None:
        known = [v for v in values if v is not None]
        return cls(statistics.fmean(known), min(known), max(known)) if known else None


@dataclass(frozen=True, slots=True)
class MethodRow:
    """A method at a budget, over `runs` seeds. cost: mean of each metric after the cut."""

    label: str
    budget: str
    runs: int
    final: Spread | None
    cut: Spread | None
    cost: Mapping[str, float]
    latency_ms: Spread | None
    failure: str


def run_row(record: Record, label: str, folder: str) -> RunRow:
    """Read the row of a run's record."""
    quality, metric = record.get("quality") or {}, metric_of(record).name
    cut, recovered = value_of(quality.get("cut"), metric), value_of(quality.get("recovered"), metric)
    cost, latency = record.get("cost") or {}, record.get("latency_ms") or {}
    seconds = [s for s in map(finite, (record.get("seconds") or {}).values()) if s is not None]
    return RunRow(
        label=label,
        budget=budget_text(record.get("budget") or {}),
        seed=int(finite(record.get("seed")) or 0),
        folder=folder,
        dense=value_of(quality.get("dense"), metric),
        cut=cut,
        final=cut if recovered is None else recovered,
        before=_figures(cost.get("before")),
        after=_figures(cost.get("after")),
        latency_ms=finite(latency.get("after")),
        seconds=sum(seconds) if seconds else None,
    )


def method_rows(rows: Sequence[RunRow], higher_is_better: bool = True) -> list[MethodRow]:
    """Sum up runs of one method and budget; best mean first within a budget, budgets in the order of the runs."""
    sign = -1 if higher_is_better else 1
    groups: dict[tuple[str, str], list[RunRow]] = {}
    for row in rows:
        groups.setdefault((row.budget, row.label), []).append(row)
    budgets = list(dict.fromkeys(budget for budget, _ in groups))
    made = [_summed(group) for group in groups.values()]
    return sorted(made, key=lambda m: (budgets.index(m.budget), sign * m.final.mean if m.final else math.inf))


def _summed(group: Sequence[RunRow]) -> MethodRow:
    done = [row for row in group if not row.failure]
    costs = [row.after or {} for row in done]
    shared = [m for m in (costs[0] if costs else {}) if all(m in cost for cost in costs)]
    return MethodRow(
        group[0].label,
        group[0].budget,
        len(done),
        Spread.of([row.final for row in done]),
        Spread.of([row.cut for row in done]),
        {m: statistics.fmean(cost[m] for cost in costs) for m in shared},
        Spread.of([row.latency_ms for row in done]),
        next((row.failure for row in group if row.failure), ""),
    )


def labels_of(records: Sequence[Record]) -> list[str]:
    """Name the method of each record, with the options in which records of one method differ."""
    options = [(str(r.get("method")), r.get("method_options") or {}) for r in records]
    labels = []
    for name, own in options:
        peers = [given for other, given in options if other == name]
        differing = [key for key in own if any(peer.get(key) != own[key] for peer in peers)]
        labels.append(" ".join([name, *(f"{key}={own[key]}" for key in differing)]))
    return labels


def differences(records: Sequence[Record]) -> list[str]:
    """Say in what runs differ, beside method, budget and seed: each a line."""
    lines = []
    for key in SAME:
        values = _distinct(_differing_parts([record.get(key) for record in records]))
        if len(values) > 1:
            lines.append(f"these runs differ in {key}: {_shortened(values[0])} and {_shortened(values[1])}")
    return lines


def _distinct(values: Sequence[object]) -> list[str]:
    return list(dict.fromkeys(json.dumps(value, sort_keys=True, default=str) for value in values))


def _differing_parts(values: Sequence[Any]) -> Sequence[Any]:
    """Of tables, only the keys in which they differ."""
    if not all(isinstance(value, Mapping) for value in values):
        return values
    keys = dict.fromkeys(key for value in values for key in value)
    differing = [key for key in keys if len(_distinct([value.get(key) for value in values])) > 1]
    return [{key: value.get(key) for key in differing} for value in values]


def judged_by(records: Sequence[Record]) -> MetricView:
    """The metric of the first record; others are warned of by `differences`."""
    return metric_of(records[0]) if records else MetricView()


def cost_of_all(rows: Sequence[RunRow], records: Sequence[Record]) -> str:
    """Choose the cost that curves are drawn over: the first that a budget bounds and every run knows, else MACs."""
    asked = [metric for record in records for metric in record.get("budget") or {}]
    known = [m for m in asked if all(m in (row.after or {}) for row in rows if not row.failure)]
    return known[0] if known else "macs"


def budget_text(budget: Mapping[str, Any]) -> str:
    """Write `macs=50%,params=1e6`."""
    return ",".join(f"{metric}={bound}" for metric, bound in budget.items())


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def _figures(cost: object) -> dict[str, float]:
    cost = cost if isinstance(cost, Mapping) else {}
    return {str(name): number for name, value in cost.items() if (number := finite(value)) is not None}
