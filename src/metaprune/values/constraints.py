"""What a plan may look like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real

from metaprune.core.arguments import check_fields
from metaprune.core.errors import ConfigError


def as_patterns(given: Sequence[str]) -> tuple[str, ...]:
    """Take a single text as one pattern, not one per letter."""
    return (given,) if isinstance(given, str) else tuple(given)


@dataclass(frozen=True, kw_only=True)
class Constraints:
    """What a plan may look like, whatever the method.

    round_to: kept widths are multiples of this (or the full width).
    min_keep: a group keeps at least this many channels (or all, if it has fewer).
    ignore: glob patterns of groups, modules or parameters that are left as they are, inputs included.
    only: glob patterns of what may shrink; everything else is left as it is. Empty: everything may.
    ratios: glob pattern -> keep ratio in (0, 1] that the matching groups get, whatever the scores say about width.
    ties: tuples of glob patterns; all groups that one tuple matches keep one and the same ratio.
    keep_module: only widths at which the model's own class still runs; `prune` turns it into ties and whole groups.
    keep_config: only widths that the config of a transformers model can say, which its class runs at; likewise.

    Tied widths move together, in steps of full width / greatest common divisor.
    """

    round_to: int = 1
    min_keep: int = 1
    ignore: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    ratios: Mapping[str, float] = field(default_factory=dict)
    ties: tuple[tuple[str, ...], ...] = ()
    keep_module: bool = False
    keep_config: bool = False

    def __post_init__(self) -> None:
        for name in ("ignore", "only"):
            if isinstance(pattern := getattr(self, name), str):  # one pattern, not one per letter
                object.__setattr__(self, name, (pattern,))
        check_fields(self)
        for name in ("ignore", "only"):
            object.__setattr__(self, name, as_patterns(getattr(self, name)))
        if isinstance(self.ties, str) or any(isinstance(tie, str) for tie in self.ties):
            raise ConfigError(f"ties are tuples of patterns, as [['a*', 'b*']], not {self.ties!r}")
        object.__setattr__(self, "ties", tuple(tuple(tie) for tie in self.ties))
        if not all(isinstance(n, Integral) and n >= 1 for n in (self.round_to, self.min_keep)):
            raise ConfigError(
                f"round_to={self.round_to!r}, min_keep={self.min_keep!r} do not fit: give whole numbers from 1 on"
            )
        for pattern, ratio in self.ratios.items():
            if not (isinstance(ratio, Real) and 0 < ratio <= 1):
                raise ConfigError(f"keep ratio {ratio!r} of {pattern!r} does not fit: give a number in (0, 1]")
        for name in ("round_to", "min_keep"):  # numpy's own would not go into the record
            object.__setattr__(self, name, int(getattr(self, name)))
        object.__setattr__(self, "ratios", {pattern: float(ratio) for pattern, ratio in self.ratios.items()})
