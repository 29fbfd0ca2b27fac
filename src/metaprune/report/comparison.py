"""A comparison of runs: metric-against-cost curves and tables in one page, CSV, JSON, and a table for the terminal."""

from __future__ import annotations

import csv
import dataclasses
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from rich.table import Table

from metaprune.core.files import write_json, write_text
from metaprune.report.comparison_rows import (
    MethodRow,
    RunRow,
    Spread,
    cost_of_all,
    differences,
    judged_by,
    method_rows,
)
from metaprune.report.metric import MetricView
from metaprune.report.naming import pretty_data, pretty_model
from metaprune.report.page import PageTable, write_page
from metaprune.report.plots import INK, style
from metaprune.report.section import SectionFigure
from metaprune.report.text import plain_table
from metaprune.report.units import MISSING, cost_axis, cost_noun, cost_text, duration, milliseconds

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#27313C")
_DASHES = ("solid", "dash", "dot")
_NOTE = "Points are means over seeds, bars reach from the lowest to the highest. Nothing is chosen by these figures."


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Runs side by side. rows: every run, failed ones too. records: of those that have one, in any order.

    answers: what follows, by budget; on top of the page.
    """

    rows: Sequence[RunRow]
    records: Sequence[Mapping[str, Any]]
    answers: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def metric(self) -> MetricView:
        return judged_by(self.records)

    @property
    def cost(self) -> str:
        return cost_of_all(self.rows, self.records)

    @property
    def methods(self) -> list[MethodRow]:
        return method_rows(self.rows, self.metric.higher_is_better)

    def to_dict(self) -> dict[str, Any]:
        """Plain data: what was compared, every run, and every method at every budget."""
        first = self.records[0] if self.records else {}
        return {
            "model": first.get("model"),
            "data": first.get("data"),
            "split": (first.get("quality") or {}).get("split"),
            "metric": self.metric.name,
            "cost": self.cost,
            "differences": differences(self.records),
            "runs": [dataclasses.asdict(row) for row in self.rows],
            "methods": [dataclasses.asdict(row) for row in self.methods],
        }

    def table(self) -> Table:
        """Make the table of methods for the terminal."""
        header, rows = self._methods()
        return plain_table(header, rows, texts=2)

    def write(self, page: Path) -> None:
        """Write the page to `page`, and CSV and JSON beside it, each whole or not at all."""
        write_json(page.with_suffix(".json"), self.to_dict())
        write_text(page.with_suffix(".csv"), self._csv(), newline="")
        data, metric = self.to_dict(), self.metric
        figures = [
            SectionFigure(key, f"{metric.label} {when}", _NOTE, figure)
            for key, when in (("final", "after recovery"), ("cut", "right after the cut"))
            if (figure := curves(self.rows, self.cost, metric, key)) is not None
        ]
        failures = [f"{r.label} at {r.budget}, seed {r.seed}: {r.failure}" for r in self.rows if r.failure]
        model, on = pretty_model(data["model"]), f" on {pretty_data(data['data'])}" if data["data"] else ""
        seeds = sorted({row.seed for row in self.rows})
        write_page(
            page,
            f"{model}{on}: {len({r.label for r in self.rows})} methods compared",
            facts=[*self.answers.items(), ("runs", str(len(self.rows))), *self._recipe(seeds)],
            warnings=[*data["differences"], *failures],
            figures=figures,
            tables=[PageTable("Methods", *self._methods(), texts=2), PageTable("Runs", *self._runs(), texts=2)],
        )

    def _recipe(self, seeds: Sequence[int]) -> list[tuple[str, str]]:
        first = self.records[0] if self.records else {}
        split, recovery = (first.get("quality") or {}).get("split"), (first.get("recover") or {}).get("kind")
        facts = [("seeds", ", ".join(map(str, seeds))), ("split", split), ("recovery", recovery)]
        facts.append(("compensation", first.get("compensate")))
        return [(name, str(value)) for name, value in facts if value]

    def _methods(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows; the dense network first, where all runs began with one."""
        costs, metric = list(dict.fromkeys((self.cost, "macs", "params"))), self.metric
        timed = any(row.latency_ms is not None for row in self.rows)
        header = ["method", "budget", "seeds", metric.label, "lowest to highest", "after the cut"]
        header += [cost_noun(m) for m in costs] + ["latency"] * timed
        full = [row.before for row in self.rows if row.before]
        dense = Spread.of([row.dense for row in self.rows])
        rows = []
        if full and all(before == full[0] for before in full):
            known = [cost_text(m, full[0].get(m)) for m in costs]
            rows.append(["dense", "", "", *self._spread(dense), "", *known, *([""] * timed)])
        for row in self.methods:
            figures = [*self._spread(row.final), metric.text(row.cut.mean) if row.cut else MISSING]
            time = [milliseconds(row.latency_ms.mean) if row.latency_ms else MISSING] * timed
            known = [cost_text(m, row.cost.get(m)) for m in costs]
            rows.append([row.label, row.budget, _seeds(row), *figures, *known, *time])
        return header, rows

    def _spread(self, spread: Spread | None) -> list[str]:
        """The mean, and the range where there is one."""
        if spread is None:
            return [MISSING, ""]
        text = self.metric.text
        reach = "" if spread.low == spread.high else f"{text(spread.low)} to {text(spread.high)}"
        return [text(spread.mean), reach]

    def _runs(self) -> tuple[list[str], list[list[str]]]:
        metric = self.metric
        header = ["method", "folder", "budget", "seed", metric.label, "after the cut", cost_noun(self.cost), "time"]
        rows = []
        for r in self.rows:
            figures = [metric.text(r.final), metric.text(r.cut), cost_text(self.cost, (r.after or {}).get(self.cost))]
            rows.append([r.label, r.folder, r.budget, str(r.seed), *figures, duration(r.seconds)])
        return header, rows

    def _csv(self) -> str:
        """One line per run; costs are those after the cut."""
        costs = list(dict.fromkeys(m for row in self.rows for m in row.after or {}))
        plain = ["label", "budget", "seed", "dense", "cut", "final", "latency_ms", "seconds", "folder", "failure"]
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow([*plain, "metric", *costs])
        for row in self.rows:
            values = [getattr(row, name) for name in plain]
            writer.writerow([*values, self.metric.name, *((row.after or {}).get(m) for m in costs)])
        return text.getvalue()


def _seeds(row: MethodRow) -> str:
    return f"{row.runs}, then failed" if row.failure and row.runs else "failed" if row.failure else str(row.runs)


def curves(rows: Sequence[RunRow], cost: str, metric: MetricView, figure_of: str) -> go.Figure | None:
    """Draw a line per method over the cost, the dense network as a star; None where nothing was judged.

    figure_of: final or cut, the field of the rows that is drawn.
    """
    full = {row.before.get(cost) for row in rows if row.before}
    whole = next(iter(full)) if len(full) == 1 else None
    scale = 100 / whole if whole else 1.0  # a share, where all runs began with one network
    figure = go.Figure()
    for i, label in enumerate(dict.fromkeys(row.label for row in rows)):
        points = []
        for budget in dict.fromkeys(row.budget for row in rows):
            here = [r for r in rows if (r.label, r.budget) == (label, budget) and r.after and not r.failure]
            across = Spread.of([(r.after or {}).get(cost) for r in here])
            upward = Spread.of([getattr(r, figure_of) for r in here])
            if across and upward:
                points.append((scale * across.mean, upward))
        if points:
            figure.add_trace(_line(label, sorted(points, key=lambda p: p[0]), metric, i))
    if not figure.data:
        return None
    dense = Spread.of([row.dense for row in rows])
    if whole and dense:
        marker = {"symbol": "star", "size": 12, "color": INK}
        figure.add_scatter(x=[100], y=[metric.scale * dense.mean], mode="markers", name="dense", marker=marker)
    style(figure, height=420)
    figure.update_xaxes(title_text=f"{cost_noun(cost)}, share of the dense network" if whole else cost_axis(cost))
    figure.update_xaxes(ticksuffix="%" if whole else "")
    figure.update_yaxes(title_text=metric.label, ticksuffix=metric.suffix)
    return figure


def _line(label: str, points: Sequence[tuple[float, Spread]], metric: MetricView, number: int) -> go.Scatter:
    means = [metric.scale * s.mean for _, s in points]
    reach = {
        "type": "data",
        "symmetric": False,
        "array": [metric.scale * (s.high - s.mean) for _, s in points],
        "arrayminus": [metric.scale * (s.mean - s.low) for _, s in points],
        "thickness": 1,
    }
    name = html.escape(label)
    colour = _COLOURS[number % len(_COLOURS)]
    return go.Scatter(
        x=[x for x, _ in points],
        y=means,
        error_y=reach,
        mode="lines+markers",
        name=name,
        line={"color": colour, "dash": _DASHES[number // len(_COLOURS) % len(_DASHES)], "width": 2},
        customdata=[f"{metric.text(s.low)} to {metric.text(s.high)}" for _, s in points],
        hovertemplate=f"<b>{name}</b><br>%{{y:.4~g}}{metric.suffix} (%{{customdata}})<extra></extra>",
    )
