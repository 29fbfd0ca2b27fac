"""A run's record -> rows of plain data, formatted once for the page, the terminal and whoever writes a table.

A record is JSON; every part of it may be None or missing, and a row exists only for what was measured.
Imports neither torch nor plotly.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from metaprune.cost.metrics import cost_metrics
from metaprune.report.advice import interval_text, latency_detail
from metaprune.report.metric import MetricView, metric_of, value_of
from metaprune.report.naming import pretty_data, pretty_model
from metaprune.report.units import (
    byte_size,
    cost_noun,
    cost_text,
    duration,
    finite,
    number_change,
    percentage,
    relative_change,
    share,
    times,
)
from metaprune.train.history import current_epoch

Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class SummaryRow:
    """One figure before and after pruning.

    values: (before, after) as numbers: shares in 0..1, milliseconds, bytes, counts, megabytes of 10^6 bytes.
    factor: `2.01x fewer`; empty where a factor says nothing (the metric).
    detail: how it was measured; may be empty.
    """

    key: str
    label: str
    before: str
    after: str
    change: str
    factor: str
    detail: str
    values: tuple[float, float]


@dataclass(frozen=True, slots=True)
class GroupRow:
    """One channel group. `kept` is a share in 0..1."""

    name: str
    before: int
    after: int
    kept: float
    members: tuple[str, ...]

    @property
    def kept_text(self) -> str:
        return f"{100 * self.kept:.0f}%"


@dataclass(frozen=True, slots=True)
class LockRow:
    """Why parameter dimensions can never shrink: `dims` of them, `indices` in all, with a few of their names."""

    reason: str
    operators: tuple[str, ...]
    dims: int
    indices: int
    examples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PhaseRow:
    """Wall time of one phase; `part` is its share of the whole in 0..1."""

    phase: str
    seconds: float
    text: str
    part: float


@dataclass(frozen=True, slots=True)
class HistoryRow:
    """One epoch of one phase; figures that were not measured are None. `step` counts epochs over all phases."""

    phase: str
    epoch: int
    step: int
    train_loss: float | None
    train_metric: float | None
    val_loss: float | None
    val_metric: float | None
    lr: float | None
    seconds: float | None


@dataclass(frozen=True, slots=True)
class BudgetRow:
    """One bound: what was asked for, its absolute value, what was reached; `met` is None where that is unknown."""

    metric: str
    asked: str
    bound: str
    reached: str
    met: bool | None


def summary_rows(record: Record) -> list[SummaryRow]:
    """List the metric, MACs, parameters, latency, file size and memory before and after; only what the record holds."""
    rows = _quality_rows(record)
    shown = [metric for metric in cost_metrics() if metric.listed]
    for metric in shown:
        if metric.name == "nonzero" and not masks_text(record):  # the parameters, then
            continue
        before, after = _both(record, metric.name)
        if metric.name == "active_params" and (before, after) == _both(record, "params"):  # no experts
            continue
        if before is not None and after is not None:
            detail = latency_detail(record) if metric.name == "latency_ms" else metric.detail
            text, words = partial(cost_text, metric.name), (metric.smaller, metric.larger)
            rows.append(_row(metric.name, metric.label, before, after, text, words, detail))
    size = _pair(record, "file_bytes")
    if size:
        rows.append(_row("file_bytes", "File size", *size, byte_size, ("smaller", "larger"), ""))
    counts = [m.name for m in shown if m.count]
    order = ["metric", "metric_cut", "loss", *counts, "latency_ms", "file_bytes", *(m.name for m in shown)]
    return sorted(rows, key=lambda row: order.index(row.key))


def group_rows(record: Record) -> list[GroupRow]:
    """Channel groups in the order of the network."""
    rows = []
    for group in _list(record, "space", "groups"):
        before, after = finite(group.get("before")), finite(group.get("after"))
        if before is None or before < 1:
            continue
        after = before if after is None else after
        members = tuple(str(m) for m in group.get("members") or ())
        rows.append(GroupRow(str(group.get("name", "?")), int(before), int(after), after / before, members))
    return rows


def lock_rows(record: Record, examples: int = 3) -> list[LockRow]:
    """Reasons why dimensions are locked, counted, most frequent first; `examples` bounds the names per reason."""
    entries: dict[str, dict[str, Any]] = {}
    for dim in _list(record, "space", "locked"):
        operator, reason = split_reason(str(dim.get("reason") or "not said"))
        entry = entries.setdefault(reason, {"operators": {}, "dims": 0, "indices": 0, "examples": []})
        if operator:
            entry["operators"][operator] = None
        entry["dims"] += 1
        entry["indices"] += int(finite(dim.get("locked")) or 0)
        if len(entry["examples"]) < examples:
            entry["examples"].append(f"{dim.get('parameter', '?')}:{dim.get('dim', '?')}")
    rows = [
        LockRow(reason, tuple(e["operators"]), e["dims"], e["indices"], tuple(e["examples"]))
        for reason, e in entries.items()
    ]
    return sorted(rows, key=lambda row: -row.dims)


def split_reason(reason: str) -> tuple[str, str]:
    """Split `conv2d in layer1.conv1 (spatial dimension)` into (`conv2d`, `spatial dimension`), or ("", the reason)."""
    match = re.fullmatch(r"(\S+)(?: in \S+)? \((.+)\)", reason, flags=re.DOTALL)
    if match:
        return match[1], match[2]
    match = re.fullmatch(r"(\S+) in \S+", reason)
    return (match[1], match[1]) if match else ("", reason)


def phase_rows(record: Record) -> list[PhaseRow]:
    """Wall time of every phase, in the order of the run."""
    seconds = record.get("seconds") or {}
    known = {str(name): value for name, value in ((n, finite(s)) for n, s in seconds.items()) if value is not None}
    total = sum(known.values())
    return [PhaseRow(n, s, duration(s), s / total if total > 0 else 0.0) for n, s in known.items()]


def history_rows(record: Record) -> list[HistoryRow]:
    """Epochs of all phases in one sequence: training first, recovery after it."""
    rows: list[HistoryRow] = []
    metric = metric_of(record).name
    for phase, history in (record.get("history") or {}).items():
        for i, row in enumerate((history or {}).get("rows") or (), start=1):
            row = current_epoch(row)
            epoch = int(finite(row.get("epoch")) or i)
            names = {"loss": "loss", "metric": metric}
            figures = {f"{p}_{k}": value_of(row.get(p), name) for p in ("train", "val") for k, name in names.items()}
            numbers = {k: finite(row.get(k)) for k in ("lr", "seconds")}
            rows.append(HistoryRow(str(phase), epoch, len(rows) + 1, **figures, **numbers))
    return rows


def budget_rows(record: Record) -> list[BudgetRow]:
    """List what was asked for and what was reached, bound by bound."""
    asked = record.get("budget") or {}
    rows = []
    for metric, bound in (record.get("bounds") or {}).items():
        limit = finite(bound)
        if limit is None:
            continue
        text = partial(cost_text, metric)
        reached = measured = _both(record, metric)[1]
        predicted = finite(((record.get("cost") or {}).get("after") or {}).get("latency_ms"))
        if metric == "latency_ms" and predicted is not None:  # what is bounded is what the latency table says
            reached = predicted
        # bounds are floats of a share: one part in 10^9 is rounding, not a violation
        met = None if reached is None else reached <= limit * (1 + 1e-9)
        said = text(reached)
        if metric == "latency_ms" and predicted is not None:
            said += " predicted by the table" + ("" if measured is None else f" ({text(measured)} measured)")
        rows.append(BudgetRow(cost_noun(metric), str(asked.get(metric, "")), text(limit), said, met))
    return rows


def title(record: Record) -> str:
    """Name the run: `ResNet-20 on Fashion-MNIST`."""
    model = pretty_model(record.get("model"))
    data = record.get("data")
    return f"{model} on {pretty_data(data)}" if data else model


def headline(record: Record) -> str:
    """Sum the run up in one sentence: what is left of the cost, what became of quality, whether the cut is proved."""
    parts = []
    for metric in list(record.get("budget") or {}) or ["macs"]:
        before, after = _both(record, metric)
        if before and after is not None:
            parts.append(f"{share(after, before)} of {cost_noun(metric)}")
    quality, metric = _primary(record), metric_of(record)
    if quality and not is_untrained(record):
        _, before, after = quality
        split = _get(record, "quality", "split")
        start = "" if _untrained_head(record) else f"{metric.text(before, 1)} -> "
        parts.append(f"{metric.in_text} {start}{metric.text(after, 1)}" + (f" ({split})" if split else ""))
    proof = proof_text(record)
    return f"{title(record)}: {', '.join([*parts, *([proof] if proof else [])]) or 'no figures in this record'}"


def proof_text(record: Record) -> str:
    """Say what is known about the cut's equality with the masked original; empty without a proof entry."""
    proof = record.get("proof")
    if not proof:
        return ""
    error = finite(proof.get("error"))
    if proof.get("unproved"):
        return f"cut not proved: nothing to compare ({proof['unproved']})"
    if error is None:
        return "equality of the cut with its masked original not checked"
    return "cut proved equal to its masked original" + (f" to {error:.1e}" if error else ", error 0")


def masks_text(record: Record) -> str:
    """Say `Single weights are held at zero (pattern 2:4): ...`, and what that is not; empty without such masks."""
    masks = record.get("masks")
    left, part = finite(_get(masks, "nonzero")), finite(_get(masks, "share"))
    if left is None or part is None:
        return ""
    pattern, whole = _get(masks, "pattern"), [str(name) for name in _get(masks, "whole") or ()]
    text = "Single weights are held at zero" + (f" (pattern {pattern})" if pattern else "")
    text += f": {int(left):,} parameters ({percentage(part, 1)}) are left"
    if whole:
        text += f"; without a mask: {', '.join(whole[:4])}{', ...' if len(whole) > 4 else ''}"
    return f"{text}. Such masks bring no speed-up on dense hardware: they change neither MACs nor latency nor file size"


def _row(
    key: str, label: str, before: float, after: float, text: Any, words: tuple[str, str], detail: str
) -> SummaryRow:
    change, factor = relative_change(before, after), times(before, after, *words)
    return SummaryRow(key, label, text(before), text(after), change, factor, detail, (before, after))


def _quality_rows(record: Record) -> list[SummaryRow]:
    split = _get(record, "quality", "split")
    named = f" ({split})" if split else ""
    metric = metric_of(record)
    samples, items = (finite(_get(record, "quality", "dense", k)) for k in ("samples", "items"))
    detail = f"{int(samples):,} samples" if samples else ""
    if items and items != samples:
        detail += f", {int(items):,} {metric.items}"
    if untrained := _untrained_head(record):
        detail += f"{', ' if detail else ''}before: a new head that nothing trained"
    rows = []
    primary = _primary(record)
    if primary:
        after_key, before, after = primary
        detail += interval_text(metric, after, samples)
        rows.append(_metric_row("metric", f"{metric.label}{named}", metric, (before, after), detail))
        raw = finite(_get(record, "quality", "cut", metric.name))
        if after_key == "recovered" and raw is not None:
            label = f"{metric.label} right after the cut{named}"
            rows.append(_metric_row("metric_cut", label, metric, (before, raw), "before recovery"))
    before = finite(_get(record, "quality", "dense", "loss"))
    after = next(
        (x for x in (finite(_get(record, "quality", k, "loss")) for k in ("recovered", "cut")) if x is not None), None
    )
    if before is not None and after is not None and metric.name != "loss":
        text = (f"{before:.3f}", f"{after:.3f}", number_change(before, after))
        rows.append(SummaryRow("loss", f"Loss{named}", *text, "", _loss_detail(record), (before, after)))
    return [replace(row, change="") for row in rows] if untrained else rows


def is_untrained(record: Record) -> bool:
    """Tell whether the original had random weights: its figures are those of chance."""
    return _get(record, "quality", "untrained") is True


def splits_text(record: Record) -> str:
    """Say how many samples each split has, and which were cut out of the training part; empty if not recorded."""
    splits = record.get("splits")
    if not isinstance(splits, Mapping):
        return ""
    carved = splits.get("carved") or ()
    parts = [
        f"{part} {count if count is None else f'{count:,}'}{' (cut out of train)' if part in carved else ''}"
        for part, count in splits.items()
        if part != "carved" and count is not None
    ]
    return ", ".join(parts)


def _untrained_head(record: Record) -> bool:
    return _get(record, "quality", "untrained_head") is True


def _metric_row(key: str, label: str, metric: MetricView, values: tuple[float, float], detail: str) -> SummaryRow:
    before, after = values
    texts = (metric.text(before), metric.text(after), metric.change(before, after))
    return SummaryRow(key, label, *texts, "", detail, values)


def _loss_detail(record: Record) -> str:
    kind = _get(record, "objective", "kind")
    return "cross-entropy" if kind in (None, "classification") else f"mean over {metric_of(record).items}"


def _primary(record: Record) -> tuple[str, float, float] | None:
    """(which entry is the final one, dense value, final value) of the primary metric, or None without both."""
    name = metric_of(record).name
    before = finite(_get(record, "quality", "dense", name))
    for key in ("recovered", "cut"):
        after = finite(_get(record, "quality", key, name))
        if before is not None and after is not None:
            return key, before, after
    return None


def _get(record: Any, *path: str) -> Any:
    for key in path:
        if not isinstance(record, Mapping):
            return None
        record = record.get(key)
    return record


def _list(record: Record, *path: str) -> list[Mapping[str, Any]]:
    return [entry for entry in _get(record, *path) or () if isinstance(entry, Mapping)]


def _pair(record: Record, key: str) -> tuple[float, float] | None:
    before, after = finite(_get(record, key, "before")), finite(_get(record, key, "after"))
    return None if before is None or after is None else (before, after)


def _cost(record: Record, when: str, key: str) -> float | None:
    return finite(_get(record, "cost", when, key))


def _both(record: Record, metric: str) -> tuple[float | None, float | None]:
    if metric == "latency_ms":
        return _pair(record, "latency_ms") or (None, None)
    return _cost(record, "before", metric), _cost(record, "after", metric)
