"""What a latency table says of itself -> rows of plain data. Any part of the record may be missing."""

from __future__ import annotations

from dataclasses import dataclass

from metaprune.report.rows import Record
from metaprune.report.section import FactRow, list_or_empty, mapping_or_empty
from metaprune.report.units import finite, milliseconds, percentage


@dataclass(frozen=True, slots=True)
class LatencyFit:
    """How well a latency table predicts structures it was not made from. pairs: (predicted, measured) ms."""

    pairs: tuple[tuple[float, float], ...]
    median_error: float | None
    p90_error: float | None
    rank_correlation: float | None


def latency_fit(record: Record) -> LatencyFit | None:
    """Read the error of the latency table, as the table itself tells it; None without one."""
    error = mapping_or_empty(mapping_or_empty(record.get("latency_table")).get("error"))
    pairs = [
        (p, m)
        for pair in map(list_or_empty, list_or_empty(error.get("pairs")))
        if len(pair) == 2 and (p := finite(pair[0])) is not None and (m := finite(pair[1])) is not None
    ]
    if not pairs:
        return None
    numbers = (finite(error.get(k)) for k in ("median_relative_error", "p90_relative_error", "spearman"))
    return LatencyFit(tuple(pairs), *numbers)


def latency_facts(record: Record) -> list[FactRow]:
    """Runtime and error of the table, and what it says of the pruned network."""
    table, fit = mapping_or_empty(record.get("latency_table")), latency_fit(record)
    rows = []
    if table:
        batch = f"batch {table['batch']}" if table.get("batch") is not None else ""
        where = ", ".join(str(x) for x in (batch, table.get("device_name")) if x)
        rows.append(FactRow("Latency table", str(table.get("runtime") or "runtime not said"), where))
    if fit is not None:
        spread = f"90% of structures within {percentage(fit.p90_error, 1)}; " if fit.p90_error is not None else ""
        count = f"{len(fit.pairs):,} random structure{'s' if len(fit.pairs) != 1 else ''}"
        rows.append(FactRow("Error of the table", percentage(fit.median_error, 1), f"median; {spread}{count}"))
    predicted = finite(mapping_or_empty(record.get("latency_ms")).get("predicted"))
    if predicted is not None:
        detail = "what the table says of the pruned network; the time measured in this run is in the first table"
        rows.append(FactRow("Predicted latency", milliseconds(predicted), detail))
    return rows
