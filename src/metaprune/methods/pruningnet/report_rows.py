"""What a search looked at -> rows of plain data: generations, cost and score, kept shares.

Like `metaprune.report.rows`, it takes a record of which any part may be missing, and imports neither torch nor plotly.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from metaprune.report.metric import metric_of
from metaprune.report.rows import Record, group_rows
from metaprune.report.section import FactRow, effort_rows, list_or_empty, mapping_or_empty, method_part
from metaprune.report.units import duration, finite, percentage, quantity


@dataclass(frozen=True, slots=True)
class Scored:
    """A structure that was scored. index: its place in the search. score: 0..1, what `score_name` says.

    cost: in the metric of `cost_metric`; None where the record does not hold it.
    """

    index: int
    score: float
    cost: float | None


@dataclass(frozen=True, slots=True)
class GenerationRow:
    """Scores of one generation. number: from 1 on. done: structures looked at by its end."""

    number: int
    done: int
    best: float
    median: float


@dataclass(frozen=True, slots=True)
class KeepRow:
    """One channel group: the share of its channels that the winner keeps, and uniform width in the same budget.

    uniform: None in records that do not tell it.
    """

    name: str
    width: int
    before: int
    winner: float
    uniform: float | None


def scored(record: Record) -> list[Scored]:
    """List all candidates with a score, in the order of evaluation."""
    search = method_part(record, "search")
    costs = list_or_empty(mapping_or_empty(search.get("costs")).get(cost_metric(record) or ""))
    rows = []
    for i, value in enumerate(list_or_empty(search.get("scores"))):
        score = finite(value)
        if score is not None:
            rows.append(Scored(i, score, finite(costs[i]) if i < len(costs) else None))
    return rows


def winner(record: Record) -> Scored | None:
    """Find the candidate that the network was cut to; None where the record names none."""
    best = finite(method_part(record, "search").get("best"))
    return next((row for row in scored(record) if row.index == best), None)


def cost_metric(record: Record) -> str | None:
    """Name the cost that candidates are drawn over: what the budget bounds, latency or MACs first, else MACs."""
    costs, bounds = mapping_or_empty(method_part(record, "search").get("costs")), mapping_or_empty(record.get("bounds"))
    bounded = [m for m in ("latency_ms", "macs", *bounds) if m in bounds and m in costs]
    return next(iter([*bounded, *(m for m in ("macs",) if m in costs)]), None)


def generation_rows(record: Record) -> list[GenerationRow]:
    """Best and median score of every `generation_size` candidates."""
    size = int(finite(method_part(record, "search").get("generation_size")) or 0)
    rows = scored(record)
    if size < 1 or not rows:
        return []
    generations: dict[int, list[Scored]] = {}
    for row in rows:
        generations.setdefault(row.index // size, []).append(row)
    return [
        GenerationRow(k + 1, g[-1].index + 1, max(r.score for r in g), statistics.median(r.score for r in g))
        for k, g in sorted(generations.items())
    ]


def counts_generations(record: Record) -> bool:
    """Tell whether batches are generations, each made from the ones before, or merely the next so many structures."""
    return method_part(record, "search").get("searcher") in ("evolution", "nsga2")


def front_rows(record: Record) -> list[Scored]:
    """List the candidates that none of lower or equal cost beats or equals, by rising cost."""
    front: list[Scored] = []
    known = [(row.cost, -row.score, row.index, row) for row in scored(record) if row.cost is not None]
    for *_, row in sorted(known, key=lambda entry: entry[:3]):
        if not front or row.score > front[-1].score:
            front.append(row)
    return front


def keep_rows(record: Record) -> list[KeepRow]:
    """Kept shares per channel group, in the order of the network; empty without a winner."""
    search, best = method_part(record, "search"), winner(record)
    groups = [str(name) for name in list_or_empty(search.get("groups"))]
    widths = [list_or_empty(row) for row in list_or_empty(search.get("widths"))]
    full = {row.name: row.before for row in group_rows(record)}
    uniform = [finite(w) for w in list_or_empty(search.get("uniform_widths"))]
    if best is None or best.index >= len(widths) or len(widths[best.index]) != len(groups):
        return []
    rows = []
    for index, name in enumerate(groups):
        before = full.get(name)
        width = finite(widths[best.index][index])
        if before and width is not None:
            same = uniform[index] if len(uniform) == len(groups) else None
            rows.append(KeepRow(name, int(width), before, width / before, None if same is None else same / before))
    return rows


def score_name(record: Record) -> str:
    """Name what the scores are: the primary metric, unless the record says likelihood."""
    return f"{'likelihood' if _scores_likelihood(record) else metric_of(record).in_text} on sub-validation"


def score_text(record: Record, score: object) -> str:
    """Format a score as it is read: a likelihood in percent, a metric as itself (scores of errors are negated)."""
    metric, value = metric_of(record), finite(score)
    if value is None or _scores_likelihood(record):
        return percentage(value)
    return metric.text(value if metric.higher_is_better else -value)


def _scores_likelihood(record: Record) -> bool:
    return method_part(record, "search").get("score") == "likelihood"


def search_text(record: Record) -> str:
    """Say `Searched 1,000 structures, best: 81.20% accuracy on sub-validation`; empty without a search."""
    count, best = len(scored(record)), winner(record)
    if not count or best is None:
        return ""
    structures = f"{count:,} structure{'s' if count != 1 else ''}"
    return f"Searched {structures}, best: {score_text(record, best.score)} {score_name(record)}"


def fact_rows(record: Record) -> list[FactRow]:
    """Build the small table: back-end, what it was trained on, what was searched, and what both took."""
    return [*_fit_facts(record), *_search_facts(record)]


_WEIGHTS = {
    "generated": "a small network per tensor makes the weights of every structure",
    "shared": "the weights of every structure are cropped from one set",
    "closed-form": "solved for every structure from one calibration pass over the given network, without training",
}


def _fit_facts(record: Record) -> list[FactRow]:
    fit = method_part(record, "fit")
    options, split = mapping_or_empty(fit.get("options")), mapping_or_empty(fit.get("split"))
    rows = []
    weights, sampling = str(options.get("weights") or ""), str(options.get("sampling") or "")
    if weights:
        rows.append(FactRow("Weights", weights, _WEIGHTS.get(weights, "")))
    trained = weights != "closed-form"
    if sampling and trained:
        sandwich = f"{options.get('structures', '?')} structures per mini-batch: widest, narrowest and random ones"
        details = {"uniform": "one random structure per mini-batch", "sandwich": sandwich}
        rows.append(FactRow("Sampling", sampling, details.get(sampling, "")))
    if options.get("distil") is not None and trained:
        detail = "the narrower structures learn the widest one's output" if options["distil"] else ""
        rows.append(FactRow("Distillation", "yes" if options["distil"] else "no", detail))
    if (count := finite(fit.get("parameters"))) is not None:
        name = "Shared parameters" if weights == "shared" else "Generator parameters"
        rows.append(FactRow(name, quantity(count), "trained once, for all structures"))
    if (genes := finite(fit.get("genes"))) is not None:
        rows.append(FactRow("Genes", f"{int(genes):,}", "widths that are chosen freely"))
    if (images := finite(split.get("sub_training"))) is not None:
        rows.append(FactRow("Sub-training", f"{int(images):,} images", "what the weights are made from"))
    held = split.get("sub_validation")
    if (images := finite(held)) is not None:
        rows.append(
            FactRow("Sub-validation", f"{int(images):,} images", "training images held out to score structures")
        )
    elif held:
        rows.append(FactRow("Sub-validation", str(held), "the data's own validation split scores structures"))
    return [*rows, *effort_rows("Fit", fit, "expected: meta-training, forward and backward")]


def _search_facts(record: Record) -> list[FactRow]:
    search, best, count = method_part(record, "search"), winner(record), len(scored(record))
    rows = []
    if count:
        size = finite(search.get("generation_size"))
        word = "generation" if counts_generations(record) else "batch"
        by = f", {int(size):,} per {word}" if size else ""
        rows.append(FactRow("Structures scored", f"{count:,}", f"by {search.get('searcher') or 'a search'}{by}"))
    if best is not None:
        rows.append(
            FactRow("Best score", score_text(record, best.score), f"on sub-validation; structure {best.index + 1:,}")
        )
    rows += effort_rows("Search", search, "calibration and scoring of every structure, forward only")
    propose = finite(mapping_or_empty(record.get("seconds")).get("propose"))
    if search and propose is not None and finite(search.get("seconds")) is None:
        detail = "the whole phase “propose”: the fit too, unless a finished one was loaded"
        rows.append(FactRow("Search: wall time", duration(propose), detail))
    return rows
