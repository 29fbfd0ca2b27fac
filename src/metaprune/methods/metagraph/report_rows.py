"""What the graph metanetwork learned and did -> rows of plain data: evaluations, steps, norms, moves.

Like `metaprune.report.rows`, it takes a record of which any part may be missing, and imports neither torch nor plotly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from metaprune.report.metric import metric_of
from metaprune.report.rows import Record
from metaprune.report.section import FactRow, effort_rows, list_or_empty, mapping_or_empty, method_part
from metaprune.report.units import finite, percentage


@dataclass(frozen=True, slots=True)
class EvaluationRow:
    """One evaluation of meta-training: mean score over the budgets after the cut, and without a cut."""

    step: int
    area: float | None
    uncut: float | None


@dataclass(frozen=True, slots=True)
class StepRow:
    """One step of the flow, with the primary metric on the validation split and shares of the whole network's cost."""

    name: str
    metric: float | None
    seconds: float | None
    macs: float | None
    params: float | None
    nonzero: float | None


@dataclass(frozen=True, slots=True)
class NormRow:
    """Channels of one group counted by norm, in equal bins from 0 to the largest before the rewrite; what is larger
    afterwards is in the last."""

    name: str
    before: tuple[float, ...]
    after: tuple[float, ...]


def evaluation_rows(record: Record) -> list[EvaluationRow]:
    history = mapping_or_empty(mapping_or_empty(_details(record).get("meta_training")).get("history"))
    rows = [mapping_or_empty(e) for e in list_or_empty(history.get("evaluations"))]
    return [
        EvaluationRow(
            int(finite(e.get("step")) or 0), finite(e.get("area")), finite(e.get("uncut", e.get("uncut_accuracy")))
        )
        for e in rows
    ]


def step_rows(record: Record) -> list[StepRow]:
    rows = [mapping_or_empty(s) for s in list_or_empty(_details(record).get("steps"))]
    numbers = ("metric", "seconds", "macs", "params", "nonzero")
    return [StepRow(str(s.get("step") or ""), *(finite(s.get(k)) for k in numbers)) for s in _renamed(rows)]


def _renamed(rows: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Steps of records before objectives said `accuracy`."""
    return [{"metric": row.get("accuracy"), **row} for row in rows]


def norm_rows(record: Record) -> list[NormRow]:
    rows = []
    for name, norms in mapping_or_empty(_details(record).get("norms")).items():
        sides = [
            tuple(float(v) for v in list_or_empty(mapping_or_empty(norms).get(side)) if finite(v) is not None)
            for side in ("before", "after")
        ]
        if sides[0] and len(sides[0]) == len(sides[1]):
            rows.append(NormRow(name, *sides))
    return rows


def moved_rows(record: Record) -> list[tuple[str, float]]:
    """(parameter, change relative to its norm), in the order of the network."""
    changes = mapping_or_empty(_details(record).get("moved"))
    return [(name, value) for name, v in changes.items() if (value := finite(v)) is not None]


def metagraph_text(record: Record) -> str:
    """Say what a scoring rule goes by; or `Rewritten by a metanetwork at strength 0.67; graph of 701 nodes and 30,672
    edges`, or what is known."""
    details = _details(record)
    if not details:
        return ""
    if rule := mapping_or_empty(details.get("rule")):
        numbers = {str(name): value for name, v in rule.items() if (value := finite(v))}
        largest = sorted(numbers, key=lambda name: -abs(numbers[name]))[:4]
        return "Ranked by a learned scoring rule; most counts " + ", ".join(f"{n} {numbers[n]:+.2f}" for n in largest)
    strength = finite(details.get("strength"))
    parts = ["No metanetwork" if strength is None else f"Rewritten by a metanetwork at strength {strength:.2f}"]
    graph = mapping_or_empty(details.get("graph"))
    nodes, edges = (finite(graph.get(k)) for k in ("nodes", "edges"))
    if nodes is not None and edges is not None:
        parts += [f"graph of {int(nodes):,} nodes and {int(edges):,} edges"]
    if uncovered := mapping_or_empty(graph.get("uncovered")):
        parts += [f"not in the graph, and not rewritten: {', '.join(uncovered)}"]
    if details.get("moved") == {}:
        parts += ["nothing moved"]
    return "; ".join(parts)


def fact_rows(record: Record) -> list[FactRow]:
    """Metric, MACs and seconds of every step, and what meta-training took."""
    rows = []
    for step in step_rows(record):
        metric = metric_of(record).text(step.metric) if step.metric is not None else "not judged"
        parts = [f"{percentage(step.macs, 1)} of MACs"] if step.macs is not None else []
        parts += [f"{percentage(step.params, 1)} of parameters"] if step.params is not None else []
        if step.nonzero is not None and step.nonzero != step.params:
            parts += [f"{percentage(step.nonzero, 1)} not zero"]
        parts += [f"{step.seconds:.1f} s"] if step.seconds is not None else []
        rows.append(FactRow(step.name[:1].upper() + step.name[1:], metric, ", ".join(["validation split", *parts])))
    seconds = mapping_or_empty(mapping_or_empty(_details(record).get("meta_training")).get("stages"))
    for key, title in (("data_models", "Data models (made once)"), ("meta", "Meta-training (paid once)")):
        rows += effort_rows(title, {"seconds": seconds.get(key)}, "")
    return rows


def _details(record: Record) -> Mapping[str, Any]:
    return method_part(record, "metagraph")
