"""Random: the control that learned methods have to beat (Li et al., Revisiting Random Channel Pruning, CVPR 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from metaprune.core.errors import ConfigError
from metaprune.core.rng import Rng
from metaprune.protocol.method import Task
from metaprune.values import Budget, Proposal


@dataclass(frozen=True, kw_only=True)
class Random:
    """Random channels.

    widths: `random` draws how fast each group shrinks (keep ratio r ** e with log2 e uniform in [-1, 1]);
    `uniform` gives every group the same ratio.
    """

    name: ClassVar[str] = "random"
    needs_data: ClassVar[bool] = False
    widths: Literal["random", "uniform"] = "random"

    def __post_init__(self) -> None:
        if self.widths not in ("random", "uniform"):
            raise ConfigError(f"widths is random or uniform, not {self.widths!r}")

    def propose(self, task: Task, budget: Budget, rng: Rng) -> Proposal:
        allocator = task.allocator(budget)
        draw = rng.child("random").numpy()
        exponents = 2.0 ** draw.uniform(-1, 1, len(task.network.space)) if self.widths == "random" else None
        scores = [draw.random(g.width) for g in task.network.space]
        return Proposal(allocator.by_ratio(scores, exponents))
