"""Upper bounds on costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from metaprune.core.arguments import check_arguments, shown
from metaprune.core.errors import ConfigError
from metaprune.cost.metrics import budget_metrics, cost_metric, require_budget_metric

Bound = float | str  # absolute, or a share of the full network such as "50%"


class Budget(Mapping[str, Bound]):
    """Upper bounds, each absolute (a number) or a share of the full network (`"50%"`); all must hold.

    A mapping of what was asked for, in the order of the metrics: `Budget(macs="50%", params=1e6)`. Any metric of the
    registry may be bounded. As attributes, metrics without a bound are None.

    Raises:
        ConfigError: no bound, an unknown metric (with the closest), or a bound that is no positive number or share.
    """

    def __init__(self, **bounds: Bound | None):
        for metric in bounds:
            require_budget_metric(metric)
        known = budget_metrics()
        self._asked = {m: bound for m in known if (bound := bounds.get(m)) is not None}
        if not self._asked:
            raise ConfigError(f"a budget bounds at least one of {', '.join(known)}: Budget(macs='50%')")
        for metric, bound in self._asked.items():
            _parse_bound(metric, bound)

    def __getitem__(self, metric: str) -> Bound:
        return self._asked[metric]

    def __iter__(self) -> Iterator[str]:
        return iter(self._asked)

    def __len__(self) -> int:
        return len(self._asked)

    def __getattr__(self, name: str) -> Bound | None:
        if name.startswith("_") or name not in budget_metrics():
            raise AttributeError(f"a budget has no {name!r}")
        return self._asked.get(name)

    def __hash__(self) -> int:
        return hash(tuple(self._asked.items()))

    def __repr__(self) -> str:
        return f"Budget({', '.join(f'{metric}={bound!r}' for metric, bound in self._asked.items())})"

    @classmethod
    def parse(cls, value: Budget | Mapping[str, Any] | str) -> Budget:
        """Parse a Budget, a mapping `{"macs": "50%"}`, or text `macs=50%,params=1e6`."""
        if isinstance(value, Budget):
            return value
        if isinstance(value, str):
            pairs = [part.partition("=") for part in value.split(",")]
            if any(not sep for _, sep, _ in pairs):
                raise ConfigError(
                    f"budget {value!r} is not understood; write metric=value, as in macs=50% or params=1e6"
                )
            value = {k.strip(): v.strip() for k, _, v in pairs}
            if len(value) < len(pairs):
                raise ConfigError(
                    f"budget {', '.join(k for k, _, _ in pairs)} names a metric twice; give each one bound"
                )
        if not isinstance(value, Mapping):
            raise ConfigError(f"a budget is no {type(value).__name__}: give a Budget, {{'macs': '50%'}} or 'macs=50%'")
        for key in value:
            require_budget_metric(key)
        return cls(**value)

    @classmethod
    def key_types(cls) -> dict[str, Any]:
        """ChannelIds of a `[budget]` table and their types, for the strict reader of recipes."""
        return dict.fromkeys(budget_metrics(), float | str | None)

    def bounds(self, full: Mapping[str, Any]) -> dict[str, float]:
        """Absolute upper bounds by metric, given the cost of the full network."""
        check_arguments(Budget.bounds, locals())
        if missing := [metric for metric in self if metric not in full]:
            raise ConfigError(f"the full network's cost has no {missing[0]}: give net.cost()")
        absolute = {}
        for metric, bound in self._asked.items():
            number, relative = _parse_bound(metric, bound)
            absolute[metric] = number * float(full[metric]) if relative else number
        return absolute

    def to_dict(self) -> dict[str, Any]:
        """Return what was asked for, as plain data."""
        return dict(self._asked)


def _parse_bound(metric: str, bound: Bound) -> tuple[float, bool]:
    """(number, whether it is a share of the full network)."""
    text = str(bound).strip()
    relative = text.endswith("%")
    try:
        number = float(text.removesuffix("%").replace("_", ""))
    except ValueError:
        raise ConfigError(f"budget {metric}={shown(bound)} is neither a number nor a share such as '50%'") from None
    if not number > 0 or number == float("inf"):
        raise ConfigError(f"budget {metric}={bound!r} must be positive and finite")
    if not relative and number < 1 and cost_metric(metric).count:
        raise ConfigError(f"budget {metric}={bound!r} is less than one; a share is written '{100 * number:g}%'")
    return (number / 100, True) if relative else (number, False)
