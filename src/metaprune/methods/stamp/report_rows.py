"""What STAMP learned and did -> rows of plain data: episodes, masks, phases, facts.

Like `metaprune.report.rows`, it takes a record of which any part may be missing, and imports neither torch nor plotly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metaprune.report.rows import GroupRow, PhaseRow, Record, group_rows, phase_rows
from metaprune.report.section import FactRow, effort_rows, list_or_empty, mapping_or_empty, method_part
from metaprune.report.units import duration, finite, percentage

_READS = {
    "adapt": "reading, forward and backward of every step",
    "encode": "reading the data set for the final mask, forward only",
}


@dataclass(frozen=True, slots=True)
class EpisodeRow:
    """One episode of meta-training; figures that the record lacks are None.

    kept_cost: expected share of the full cost. variety: 1 - Jaccard with the mask of the episode before.
    """

    number: int
    data: str
    ways: int | None
    loss: float | None
    kept_cost: float | None
    variety: float | None


@dataclass(frozen=True, slots=True)
class MaskRow:
    """One channel group, or layer of filter pairs. probabilities: to be kept, highest first. group: how many were, None
    where the record does not know it."""

    name: str
    probabilities: tuple[float, ...]
    group: GroupRow | None


def episode_rows(record: Record) -> list[EpisodeRow]:
    """List all episodes that hold a figure, in order."""
    rows = []
    history = list_or_empty(mapping_or_empty(_meta(record).get("history")).get("rows"))
    for i, row in enumerate(map(mapping_or_empty, history), start=1):
        loss, kept_cost, alike = (finite(row.get(k)) for k in ("loss", "kept_cost", "jaccard_with_previous"))
        if loss is None and kept_cost is None and alike is None:
            continue
        number, ways = int(finite(row.get("episode")) or i), finite(row.get("ways"))
        variety = None if alike is None else 1 - alike
        named = str(row.get("data") or "")
        rows.append(EpisodeRow(number, named, None if ways is None else int(ways), loss, kept_cost, variety))
    return rows


def mask_rows(record: Record) -> list[MaskRow]:
    """Keep probabilities per channel group or layer, in the order of the network."""
    groups = {group.name: group for group in [*group_rows(record), *pair_rows(record)]}
    rows = []
    for name, values in mapping_or_empty(_stamp(record).get("probabilities")).items():
        known = [p for value in list_or_empty(values) if (p := finite(value)) is not None]
        if known:
            rows.append(MaskRow(name, tuple(sorted(known, reverse=True)), groups.get(name)))
    return rows


def pair_rows(record: Record) -> list[GroupRow]:
    """Filter pairs per layer, before and after; none where channels had the gates."""
    rows = []
    for layer in map(mapping_or_empty, list_or_empty(_pairs(record).get("layers"))):
        pairs, zero = finite(layer.get("pairs")), finite(layer.get("zero"))
        if pairs and zero is not None:
            rows.append(GroupRow(str(layer.get("name")), int(pairs), int(pairs - zero), 1 - zero / pairs, ()))
    return rows


@dataclass(frozen=True, slots=True)
class TargetRow:
    """One data set at one budget.

    kept: numbers of the kept channels or pairs. share: of nonzero parameters. accuracy: at the end.
    """

    name: str
    data: str
    kept: frozenset[int]
    share: float | None
    accuracy: float | None


def target_rows(record: Record) -> list[TargetRow]:
    """List the targets that the artifact was adapted to before this one, then this one."""
    rows = []
    this = {**record, "kept": _stamp(record).get("kept")}
    for target in [*map(mapping_or_empty, list_or_empty(_stamp(record).get("targets"))), this]:
        kept_channels = [int(k) for value in list_or_empty(target.get("kept")) if (k := finite(value)) is not None]
        cost, quality = mapping_or_empty(target.get("cost")), mapping_or_empty(target.get("quality"))
        counts = [mapping_or_empty(cost.get(k)) for k in ("after", "before")]
        after, before = (finite(c.get("nonzero", c.get("params"))) for c in counts)  # the same where channels are cut
        accuracy = finite(mapping_or_empty(quality.get("recovered") or quality.get("cut")).get("accuracy"))
        if kept_channels:
            data, budget = str(target.get("data") or "data"), mapping_or_empty(target.get("budget"))
            name = ", ".join([data, *(f"{metric} {value}" for metric, value in budget.items())])
            rows.append(
                TargetRow(name, data, frozenset(kept_channels), after / before if after and before else None, accuracy)
            )
    return rows


def similarities(rows: Sequence[TargetRow]) -> list[list[float]]:
    """Jaccard index of every pair of masks."""
    return [[len(a.kept & b.kept) / len(a.kept | b.kept) for b in rows] for a in rows]


def timeline_rows(record: Record) -> list[PhaseRow]:
    """Wall time from the data set to the small network, in the order of the run; meta-training is not in it."""
    if not _stamp(record):
        return []
    seconds = {**mapping_or_empty(record.get("seconds")), **mapping_or_empty(_stamp(record).get("seconds"))}
    return phase_rows({"seconds": {name: seconds.get(name) for name in ("adapt", "encode", "cut", "recover")}})


def stamp_text(record: Record) -> str:
    """Say `Meta-trained over 300 episodes, adapted in 20 steps, 24.9% of MACs kept`; what is not known is left out."""
    episodes, steps, kept_macs = len(episode_rows(record)), len(_steps(record)), finite(_stamp(record).get("kept_macs"))
    parts = [f"meta-trained over {_counted(episodes, 'episode')}"] if episodes else []
    parts += [f"adapted in {_counted(steps, 'step')}"] if steps else []
    parts += [f"{percentage(kept_macs, 1)} of MACs kept"] if kept_macs is not None else []
    parts += _sparsity(record)
    text = ", ".join(parts)
    return text[:1].upper() + text[1:]


def closing_text(record: Record) -> str:
    """Say `STAMP: 24.9% of MACs kept, mask margin of reference tasks 0.250, adapted in 2.5 s`, or what is known."""
    kept_macs = finite(_stamp(record).get("kept_macs"))
    conditioning = mapping_or_empty(_meta(record).get("conditioning"))
    margin, spent = (
        finite(conditioning.get("margin")),
        finite(mapping_or_empty(_stamp(record).get("seconds")).get("adapt")),
    )
    parts = [f"{percentage(kept_macs, 1)} of MACs kept"] if kept_macs is not None else []
    parts += _sparsity(record)
    if margin is not None:
        collapsed = " (collapsed)" if conditioning.get("collapsed") is True else ""
        parts += [f"mask margin of reference tasks {margin:.3f}{collapsed}"]
    parts += [f"adapted in {duration(spent)}"] if spent is not None else []
    return f"STAMP: {', '.join(parts)}" if parts else ""


def fact_rows(record: Record) -> list[FactRow]:
    """Build the small table: how much masks depend on the data, the adaptation, and what all stages took."""
    details, meta = _stamp(record), _meta(record)
    macs, seconds = mapping_or_empty(details.get("macs")), mapping_or_empty(details.get("seconds"))
    rows = [*_pair_facts(record), *_conditioning_facts(record), *_adaptation_facts(record)]
    for key, detail in _READS.items():
        rows += effort_rows(key.capitalize(), {"macs": macs.get(key), "seconds": seconds.get(key)}, detail)
    if not details:
        return rows
    spent, took = (mapping_or_empty(record.get(key)) for key in ("recovery", "seconds"))
    small = {"macs": spent.get("macs"), "seconds": took.get("recover")}
    rows += effort_rows("Training the small network", small, "forward and backward of every sample")
    rows += effort_rows("Meta-training (paid once)", meta, "reading, forward and backward of every step")
    return [*rows, *_break_even(record)]


def _break_even(record: Record) -> list[FactRow]:
    """Targets after which meta-training has paid, in MACs; none where a target saves nothing."""
    spent, samples = mapping_or_empty(_stamp(record).get("macs")), mapping_or_empty(record.get("recovery"))
    full = mapping_or_empty(mapping_or_empty(record.get("cost")).get("before")).get("macs")
    figures = [finite(x) for x in (_meta(record).get("macs"), full, samples.get("samples"), *map(spent.get, _READS))]
    if any(x is None for x in figures):
        return []
    once, full, seen, *reads = (x for x in figures if x is not None)
    saved = 3 * full * seen - sum(reads)
    detail = "in MACs, beside training the whole network on as many samples before it is pruned and trained again"
    return [FactRow("Meta-training pays from", f"{math.ceil(once / saved):,} targets", detail)] if saved > 0 else []


def _sparsity(record: Record) -> list[str]:
    sparsity = finite(_pairs(record).get("sparsity"))
    return [] if sparsity is None else [f"group sparsity {percentage(sparsity, 1)}"]


def _pair_facts(record: Record) -> list[FactRow]:
    sparsity, layers = finite(_pairs(record).get("sparsity")), list_or_empty(_pairs(record).get("layers"))
    if sparsity is None:
        return []
    detail = "pairs of an output and an input that are zero, of the layers with gates; this brings no dense speed-up"
    rows = [FactRow("Group sparsity", percentage(sparsity, 1), detail)]
    for key, name in (("empty_outputs", "Empty outputs"), ("empty_inputs", "Empty inputs")):
        count = sum(int(finite(mapping_or_empty(layer).get(key)) or 0) for layer in layers)
        rows.append(FactRow(name, f"{count:,}", "of a layer, with all pairs zero by chance; they stay"))
    return rows


def _conditioning_facts(record: Record) -> list[FactRow]:
    conditioning = mapping_or_empty(_meta(record).get("conditioning"))
    same, other, margin, tasks = (
        finite(conditioning.get(k)) for k in ("jaccard_same", "jaccard_different", "margin", "tasks")
    )
    count = f"; {_counted(int(tasks), 'task')}" if tasks is not None else ""
    rows = []
    if same is not None:
        rows.append(FactRow("Jaccard within tasks", f"{same:.3f}", f"masks of two samples of one task{count}"))
    if other is not None:
        rows.append(FactRow("Jaccard between tasks", f"{other:.3f}", f"masks of different tasks{count}"))
    if margin is not None:
        detail = "within less between: how much the mask depends on the data set"
        if conditioning.get("collapsed") is True:
            detail = "collapsed: every data set gets about the same mask"
        rows.append(FactRow("Margin", f"{margin:.3f}", detail))
    return rows


def _adaptation_facts(record: Record) -> list[FactRow]:
    if not isinstance(_stamp(record).get("adaptation"), list):
        return []
    steps = _steps(record)
    ends = [(n, finite(step.get("loss"))) for n, step in (("first", steps[0]), ("last", steps[-1]))] if steps else []
    detail = ", ".join(f"{loss:.3f} in the {name}" for name, loss in ends if loss is not None)
    return [FactRow("Adaptation steps", f"{len(steps):,}", f"loss {detail}" if detail else "")]


def _counted(count: int, word: str) -> str:
    return f"{count:,} {word}{'s' if count != 1 else ''}"


def _steps(record: Record) -> list[Mapping[str, Any]]:
    return [mapping_or_empty(step) for step in list_or_empty(_stamp(record).get("adaptation"))]


def _meta(record: Record) -> Mapping[str, Any]:
    return mapping_or_empty(_stamp(record).get("meta_training"))


def _pairs(record: Record) -> Mapping[str, Any]:
    return mapping_or_empty(_stamp(record).get("pairs"))


def _stamp(record: Record) -> Mapping[str, Any]:
    return method_part(record, "stamp")
