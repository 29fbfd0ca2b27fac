"""Cost metrics by name: what a budget can bound, a record holds and a report shows.

A metric is one entry of a registry. Packages add their own through the entry-point group `metaprune.cost_metrics`;
a script calls `register_cost_metric`:

    register_cost_metric(CostMetric(name="flops", noun="FLOPs", of=lambda at: 2 * at.macs, count=True, soft=True))

Nothing here imports torch: budgets and the command line read it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from metaprune.core.arguments import check_arguments, check_fields
from metaprune.core.errors import ConfigError, closest
from metaprune.core.plugins import Registry


class Figures(Protocol):
    """What a metric is computed from, at one or many structures.

    Every figure is int64 [structures]. Under soft gates it is a number with gradients, and `peak_bytes` and
    `latency_ms` are not there.

    macs: multiply-accumulates of conv, linear and matmul, attention products included.
    params: elements of the model's parameters.
    active_params: of those, what one token reads: of experts, as many as its router takes. Elsewhere all.
    weight_bytes: bytes of parameters and buffers.
    peak_bytes: the largest sum of live activations, inputs included; at most that, where branches are dropped.
    masked: single weights that masks hold at zero; no other figure leaves them out, as dense hardware does not.
    latency_ms: predicted milliseconds, float64; None without a latency table.
    widths: int64 [structures, groups].
    terms: the network's `CostTerms`, for other sums than these.
    """

    @property
    def macs(self) -> Any: ...
    @property
    def params(self) -> Any: ...
    @property
    def active_params(self) -> Any: ...
    @property
    def weight_bytes(self) -> Any: ...
    @property
    def peak_bytes(self) -> Any: ...
    @property
    def masked(self) -> Any: ...
    @property
    def latency_ms(self) -> Any: ...
    @property
    def widths(self) -> Any: ...
    @property
    def terms(self) -> Any: ...

    def total(self, terms: Sequence[Any]) -> Any:
        """Sum some of `terms`."""
        ...


@dataclass(frozen=True, kw_only=True)
class CostMetric:
    """One cost of a network.

    name: the key in budgets, records and `Cost`, as `memory_mb`.
    noun: what texts call it, as `memory`.
    of: computes it from `Figures`; None where it is not known.
    unit: `MB`, `bytes` and `ms` are shown with a suitable prefix or precision; others follow the number. Empty: a
        plain quantity.
    count: it is a whole number, so that a bound below one is a mistake.
    monotone: it never grows when a width shrinks. Searches rely on it.
    soft: `of` has gradients and works on real-valued widths; otherwise gates get differences of single channels.
    needs_table: it is known with a latency table only.
    listed: budgets may bound it and reports show it. False for what is a part of another metric: records only.
    smaller, larger: words for the change, as in `2.01x fewer`.
    detail: a remark beside the figure in reports.
    axis: title of an axis; by default the noun with the unit.
    """

    name: str
    noun: str
    of: Callable[[Figures], Any]
    unit: str = ""
    count: bool = False
    monotone: bool = True
    soft: bool = False
    needs_table: bool = False
    listed: bool = True
    smaller: str = "less"
    larger: str = "more"
    detail: str = ""
    axis: str = ""

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.name.isidentifier() or self.name.startswith("_"):
            raise ConfigError(f"a cost metric's name is an identifier such as energy_mj, not {self.name!r}")

    @property
    def label(self) -> str:
        """The noun as a heading."""
        return self.noun[:1].upper() + self.noun[1:]

    @property
    def axis_title(self) -> str:
        """Name the axis of a plot: what is measured, and its unit."""
        return self.axis or (f"{self.noun} ({self.unit})" if self.unit else self.noun)


COST_METRICS = Registry("cost metric", "metaprune.cost_metrics", {})


def register_cost_metric(metric: CostMetric) -> None:
    """Make a metric known to costs, budgets, records and reports.

    Raises:
        ConfigError: the name is taken by another metric.
    """
    check_arguments(register_cost_metric, locals())
    COST_METRICS.register(metric.name, metric)


def cost_metric(name: str) -> CostMetric:
    """Return the metric of that name.

    Raises:
        ConfigError: no such metric (with the closest name), or a package registered something else.
    """
    metric = COST_METRICS.get(name)
    if not isinstance(metric, CostMetric) or metric.name != name:
        raise ConfigError(f"cost metric {name!r} must be a CostMetric of that name, not {metric!r}")
    return metric


def cost_metrics() -> tuple[CostMetric, ...]:
    """List all known metrics."""
    return tuple(cost_metric(name) for name in COST_METRICS.names())


def budget_metrics() -> tuple[str, ...]:
    """Name the metrics that a budget may bound."""
    return tuple(metric.name for metric in cost_metrics() if metric.listed)


def require_budget_metric(name: object) -> None:
    """Raises ConfigError for what no budget may bound, with the closest name."""
    known = budget_metrics()
    if name not in known:
        raise ConfigError(f"no budget metric {name!r}.{closest(str(name), known)} Known: {', '.join(known)}")


def _memory_mb(at: Figures) -> Any:
    return (at.weight_bytes + at.peak_bytes) / 1e6


for _metric in (
    CostMetric(
        name="macs",
        noun="MACs",
        of=lambda at: at.macs,
        count=True,
        soft=True,
        smaller="fewer",
        axis="MACs of one sample",
    ),
    CostMetric(name="params", noun="parameters", of=lambda at: at.params, count=True, soft=True, smaller="fewer"),
    CostMetric(
        name="active_params",
        noun="active parameters",
        of=lambda at: at.active_params,
        count=True,
        soft=True,
        smaller="fewer",
        detail="one token: of experts, those that its router takes",
    ),
    CostMetric(
        name="nonzero",
        noun="nonzero parameters",
        of=lambda at: at.params - at.masked,
        count=True,
        soft=True,
        smaller="fewer",
    ),
    CostMetric(name="peak_bytes", noun="peak activations", of=lambda at: at.peak_bytes, count=True, listed=False),
    CostMetric(name="weight_bytes", noun="weights", of=lambda at: at.weight_bytes, count=True, listed=False),
    CostMetric(
        name="memory_mb",
        noun="memory",
        unit="MB",  # of 10^6 bytes
        of=_memory_mb,
        smaller="smaller",
        larger="larger",
        detail="one sample: weights and peak activations",
    ),
    CostMetric(
        name="latency_ms",
        noun="latency",
        unit="ms",
        of=lambda at: at.latency_ms,
        monotone=False,  # 16 channels can be faster than 15
        needs_table=True,
        smaller="faster",
        larger="slower",
        axis="latency (ms, predicted by the table)",
    ),
):
    register_cost_metric(_metric)
