"""The report's section on measured widths: how far the outputs move when a group alone gets narrower."""

from __future__ import annotations

from metaprune.report.curves import NOTE, CurveRow, curves_figure
from metaprune.report.rows import Record, group_rows
from metaprune.report.section import (
    FactRow,
    Section,
    SectionFigure,
    list_or_empty,
    mapping_or_empty,
    method_part,
)
from metaprune.report.units import cost_noun, duration, finite, percentage

_NOTE = f"{NOTE} The widths are those of least total divergence within the budget."


def curve_rows(record: Record) -> list[CurveRow]:
    """List the curves that were measured, in the order of the network; groups that may not shrink have none."""
    kept = {row.name: row.after / row.before for row in group_rows(record) if row.before}
    rows = []
    for curve in list_or_empty(method_part(record, "sensitivity").get("curves")):
        curve = mapping_or_empty(curve)
        points = zip(list_or_empty(curve.get("shares")), list_or_empty(curve.get("losses")), strict=False)
        numbers = [
            (x, y) for share, loss in points if (x := finite(share)) is not None and (y := finite(loss)) is not None
        ]
        names = [str(name) for name in list_or_empty(curve.get("groups"))]
        if numbers and names:
            shares, losses = zip(*numbers, strict=True)
            rows.append(CurveRow(", ".join(names), shares, losses, kept.get(names[0])))
    return rows


def price_rows(record: Record) -> list[FactRow]:
    """Say what each bound costs: how much less the outputs would move if it alone were 5% looser."""
    prices = mapping_or_empty(method_part(record, "sensitivity").get("prices"))
    loss, rows = finite(prices.get("loss")), []
    for metric, value in mapping_or_empty(prices.get("relaxed")).items():
        relaxed = finite(value)
        if loss and relaxed is not None:
            rows.append(
                FactRow(f"5% more {cost_noun(metric)}", f"-{percentage(1 - relaxed / loss, 0)}", "expected divergence")
            )
    return rows


def section(record: Record) -> Section | None:
    """Tell what widths cost; None of a record without measured curves. It is one section for all ranking methods."""
    rows = curve_rows(record)
    if not rows:
        return None
    facts = [FactRow("Groups measured", str(len(rows)), "each alone, at a few shares of its width")]
    if (seconds := finite(method_part(record, "sensitivity").get("seconds"))) is not None:
        facts.append(FactRow("Measuring: wall time", duration(seconds)))
    facts += price_rows(record)
    figure = SectionFigure("sensitivity", "What narrow groups cost", _NOTE, curves_figure(rows))
    return Section("sensitivity", "Sensitivity", facts=facts, figures=[figure])
