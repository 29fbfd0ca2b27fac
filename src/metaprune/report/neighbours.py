"""The runs that lie beside one: those of the same model, data and objective, as rows of a small table."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metaprune.core.errors import DataError
from metaprune.core.read import read_json, understood
from metaprune.report.comparison_rows import RunRow, differences, labels_of, run_row
from metaprune.report.metric import MetricView, metric_of
from metaprune.report.units import cost_noun, cost_text, share

Record = Mapping[str, Any]
_MOST = 50  # records that are read: a page takes no minutes
_SAME = ("model", "data", "objective")


@dataclass(frozen=True, slots=True)
class Neighbours:
    """A table of runs, this one first; `differences` says in what else they differ, each a line."""

    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    differences: list[str]


def neighbours(record: Record, folder: Path) -> Neighbours | None:
    """Compare the run in `folder` with the finished ones in the same parent folder; None where there is none like it.

    Records that cannot be read are passed over.
    """
    others = [(path.parent.name, other) for path in _records_beside(folder) if (other := _like(record, path))]
    if not record.get("model") or not others:
        return None
    records = [record, *(other for _, other in others)]
    names = [f"{folder.resolve().name} (this run)", *(name for name, _ in others)]
    rows = [run_row(of, label, name) for of, label, name in zip(records, labels_of(records), names, strict=True)]
    metric, cost = metric_of(record), next(iter(record.get("budget") or {}), "macs")
    header = ("run", "method", "budget", cost_noun(cost), "left", metric.label)
    columns = 5 if all(row.final is None for row in rows) else 6  # runs without data have no quality
    return Neighbours(header[:columns], [_cells(row, cost, metric)[:columns] for row in rows], differences(records))


def _records_beside(folder: Path) -> list[Path]:
    folder = folder.resolve()
    return sorted(path for path in folder.parent.glob("*/record.json") if path.parent != folder)[:_MOST]


def _like(record: Record, path: Path) -> Record | None:
    """The record at `path`, if it is whole and of the same model, data and objective."""
    with suppress(DataError), understood(path.name, ""):
        other = read_json(path, remedy="")
        if all(other.get(key) == record.get(key) for key in _SAME):
            run_row(other, "", "")  # whether its parts are what they should be
            labels_of([other])
            return other
    return None


def _cells(row: RunRow, cost: str, metric: MetricView) -> tuple[str, ...]:
    before, after = ((of or {}).get(cost) for of in (row.before, row.after))
    costs = ("", "") if after is None else (cost_text(cost, after), share(after, before))
    return (row.folder, row.label, row.budget, *costs, "" if row.final is None else metric.text(row.final))
