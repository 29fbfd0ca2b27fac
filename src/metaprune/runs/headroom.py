"""`headroom`: do structures of equal cost differ by more than seeds do? If not, no search can win there."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metaprune.core.arguments import check_arguments
from metaprune.core.errors import ConfigError
from metaprune.protocol.method import recovery_after
from metaprune.protocol.registry import create_method
from metaprune.report.comparison import Comparison
from metaprune.report.comparison_rows import RunRow
from metaprune.report.metric import MetricView
from metaprune.runs.auto import AUTO
from metaprune.runs.compare import PAGE, compared
from metaprune.runs.config import RunConfig
from metaprune.values import Budget

UNIFORM = "uniform fill=true"
RULES = (*(f"{UNIFORM} tilt={t:g}" for t in (-1.0, -0.5, 0.5, 1.0)), f"{UNIFORM} last_whole=true")
RANDOM = "random"
STANDARD_ERRORS, TIMES_NOISE = 3.0, 2.0
"""How far the best rule has to be above uniform, in standard errors of their difference (five rules are tried), and how
many times as much as seeds random structures have to spread: with three seeds each, either is an accident in one of
twenty cases or fewer."""


@dataclass(frozen=True)
class Headroom:
    """What structures differ by at one budget. Figures are of the objective's primary metric.

    uniform: mean of uniform widths. best_rule: the rule of thumb with the best mean, and that mean.
    random: of each random structure. noise: standard deviation between seeds of one structure.
    needed: how far above uniform the best of the rules has to be to be no accident.
    differ: whether random structures spread by more than seeds do.
    """

    budget: str
    uniform: float
    best_rule: str
    best: float
    random: tuple[float, ...]
    noise: float
    needed: float
    differ: bool
    higher_is_better: bool

    @property
    def gain(self) -> float:
        """How far the best rule is above uniform, in the metric's own direction."""
        return self.best - self.uniform if self.higher_is_better else self.uniform - self.best

    @property
    def search(self) -> bool:
        """Tell whether anything can be won: a rule is above uniform, or random structures differ."""
        return self.gain > self.needed or self.differ

    def text(self, metric: MetricView) -> str:
        """Say what follows, in two sentences."""

        def size(value: float) -> str:
            return f"{metric.scale * value:.3g}{' points' if metric.percent else ''}"

        noise = f"seeds alone differ by {size(self.noise)} (standard deviation)"
        if self.gain > self.needed:
            rule = self.best_rule.removeprefix(f"{UNIFORM} ")
            return (
                f"Search: {rule} is {size(self.gain)} better than uniform widths, and {noise}. "
                "That rule costs nothing; a search has to beat it."
            )
        if self.differ:
            spread = size(statistics.stdev(self.random))
            return (
                f"Search: random structures differ by {spread} (standard deviation), and {noise}. "
                "No rule of thumb is better than uniform widths."
            )
        return (
            f"Do not search: the best rule of thumb is {size(self.gain)} better than uniform widths, and {noise}. "
            "Uniform widths will do at this budget."
        )


def headroom(
    config: RunConfig,
    folder: str | Path,
    *,
    budgets: Sequence[Budget | Mapping[str, Any] | str],
    seeds: int = 3,
    progress: bool = True,
) -> dict[str, Any]:
    """Measure what is to be won by a search for widths, before one is paid for.

    Uniform widths, widths tilted to either end, the last width whole, and random ones are cut to equal cost and
    recovered alike, each with several seeds (`compare`: resumable, shared by processes in one folder). Figures are of
    the validation part: a choice follows from them.

    Args:
        config: the recipe. What follows the cut is its recovery, or what its method asks for.
        folder: as for `compare`.
        budgets: as for `compare`.
        seeds: as for `compare`; at least two, since they are the noise.
        progress: show progress bars.

    Returns:
        What comparison.json holds, and `headroom`: of every budget `search` (whether there is anything to be won), its
        `text`, and the figures behind it.

    Raises:
        ConfigError: fewer than two seeds.
        MetapruneError: as `compare` raises them.
    """
    check_arguments(headroom, locals(), but=("budgets",))
    result, answers = measured_headroom(config, folder, budgets=budgets, seeds=seeds, progress=progress)
    found = [{**dataclasses.asdict(a), "search": a.search, "text": a.text(result.metric)} for a in answers]
    return {**result.to_dict(), "headroom": found}


def measured_headroom(
    config: RunConfig,
    folder: str | Path,
    *,
    budgets: Sequence[Budget | Mapping[str, Any] | str],
    seeds: int,
    progress: bool,
) -> tuple[Comparison, list[Headroom]]:
    """Do what `headroom` says; return the runs side by side, with the answers on their page."""
    if seeds < 2:
        raise ConfigError(f"seeds={seeds}: what seeds differ by is the noise, so give 2 or more")
    if config.data is None:
        raise ConfigError("headroom is measured on data: give a recipe with [data], or --data")
    methods = [UNIFORM, *RULES, RANDOM]
    made = _as_measured(config)
    result = compared(made, folder, methods=methods, budgets=budgets, seeds=seeds, progress=progress)
    names = list(dict.fromkeys(row.budget for row in result.rows))
    answers = [of_rows([r for r in result.rows if r.budget == b], result.metric.higher_is_better) for b in names]
    said = {f"headroom at {a.budget}": a.text(result.metric) for a in answers}
    result = dataclasses.replace(result, answers=said)
    result.write(Path(folder) / PAGE)
    return result, answers


def of_rows(rows: Sequence[RunRow], higher_is_better: bool) -> Headroom:
    """Answer from the runs of one budget.

    Raises:
        ConfigError: a structure of which every run failed, or too few runs.
    """
    groups: dict[str, list[float]] = {}
    for row in rows:
        if row.final is not None:
            groups.setdefault(row.label, []).append(row.final)
    rules = {label: values for label, values in groups.items() if label in RULES}
    repeated = [v for label, v in groups.items() if label != RANDOM and len(v) > 1]
    if UNIFORM not in groups or not rules or not repeated:
        raise ConfigError(f"too few runs ended at {rows[0].budget} to tell structures from seeds: see their failures")
    freedom = sum(len(v) - 1 for v in repeated)
    variance = sum((len(v) - 1) * statistics.variance(v) for v in repeated) / freedom
    sign = 1 if higher_is_better else -1
    best = max(rules, key=lambda label: sign * statistics.fmean(rules[label]))
    sizes = 1 / len(groups[UNIFORM]) + 1 / len(rules[best])
    random = groups.get(RANDOM, [])
    return Headroom(
        budget=rows[0].budget,
        uniform=statistics.fmean(groups[UNIFORM]),
        best_rule=best,
        best=statistics.fmean(rules[best]),
        random=tuple(random),
        noise=math.sqrt(variance),
        needed=STANDARD_ERRORS * math.sqrt(variance * sizes),
        differ=len(random) > 1 and statistics.stdev(random) > TIMES_NOISE * math.sqrt(variance),
        higher_is_better=higher_is_better,
    )


def _as_measured(config: RunConfig) -> RunConfig:
    """The recipe, judged on validation samples, with the recovery that its method asks for."""
    kind = config.recover.kind
    if kind == AUTO:
        name = config.method.name
        kind = "none" if name == AUTO else recovery_after(create_method(name, dict(config.method.options)), kind)
    train = config.recover.train if kind == "scratch" and config.train is None else config.train
    compensate = "least-squares" if kind == "none" and config.compensate in ("none", AUTO) else config.compensate
    return dataclasses.replace(
        config,
        data=None if config.data is None else dataclasses.replace(config.data, judge="val"),
        recover=dataclasses.replace(config.recover, kind=kind),
        train=train,
        compensate=compensate,
        rounds=1,
        latency=dataclasses.replace(config.latency, repeats=0),
    )
