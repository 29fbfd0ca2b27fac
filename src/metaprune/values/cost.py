"""What a structure costs: one figure per metric."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from metaprune.core.arguments import check_arguments
from metaprune.cost.metrics import COST_METRICS, cost_metric


class Cost(Mapping[str, Any]):
    """Cost of one sample (batch 1): metric -> number of one structure, or array [candidates] of a batch of them.

    Figures are attributes, too: `cost.macs`. A metric that is not known here (`latency_ms` without a latency table) is
    not in the mapping; as an attribute it is None. `latency_ms` is of the table's batch.
    """

    def __init__(self, figures: Mapping[str, Any]):
        check_arguments(Cost.__init__, locals())
        self._figures = dict(figures)

    def __getitem__(self, metric: str) -> Any:
        return self._figures[metric]

    def __iter__(self) -> Iterator[str]:
        return iter(self._figures)

    def __len__(self) -> int:
        return len(self._figures)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or (name not in self._figures and name not in COST_METRICS.names()):
            raise AttributeError(f"a cost has no {name!r}; it has {', '.join(self.__dict__.get('_figures', ()))}")
        return self._figures.get(name)

    def __hash__(self) -> int:
        return hash(tuple(self._figures.items()))

    def __repr__(self) -> str:
        return f"Cost({', '.join(f'{name}={figure!r}' for name, figure in self._figures.items())})"

    @property
    def masked(self) -> Any:
        """Single weights that masks hold at zero."""
        return self["params"] - self["nonzero"]

    def to_dict(self) -> dict[str, float]:
        """Plain numbers, of one structure."""
        return {name: (int if cost_metric(name).count else float)(figure) for name, figure in self.items()}
