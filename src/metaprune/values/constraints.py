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
    min_keep: a group keeps at least this many channels (or all, if it has fewer); one number, or by glob pattern, the
        first that matches, else 1. Where it is 0 for all groups of a branch, that may be dropped whole. A group that a
        `topk` chooses from keeps what that takes, whatever is less.
    ignore: glob patterns of groups, modules or parameters that are left as they are, inputs included.
    only: glob patterns of what may shrink; everything else is left as it is. Empty: everything may. Of a layer it is
        what the layer makes, not what it reads; likewise in `ratios`, `ties` and `min_keep`.
    ratios: glob pattern -> keep ratio in (0, 1] that the matching groups get, whatever the scores say about width.
    ties: tuples of glob patterns; all groups that one tuple matches keep one and the same ratio.
    whole: glob patterns of what keeps all its channels, or, where its branch may be dropped, none.
    keep_module: only widths at which the model's own class still runs; `prune` turns it into ties and whole groups.
    keep_config: only widths that the config of a transformers model can say, which its class runs at; likewise.

    Tied widths move together, in steps of full width / greatest common divisor.
    """

    round_to: int = 1
    min_keep: int | Mapping[str, int] = 1
    ignore: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    ratios: Mapping[str, float] = field(default_factory=dict)
    ties: tuple[tuple[str, ...], ...] = ()
    whole: tuple[str, ...] = ()
    keep_module: bool = False
    keep_config: bool = False

    def __post_init__(self) -> None:
        for name in ("ignore", "only", "whole"):
            if isinstance(pattern := getattr(self, name), str):  # one pattern, not one per letter
                object.__setattr__(self, name, (pattern,))
        check_fields(self)
        for name in ("ignore", "only", "whole"):
            object.__setattr__(self, name, as_patterns(getattr(self, name)))
        if isinstance(self.ties, str) or any(isinstance(tie, str) for tie in self.ties):
            raise ConfigError(f"ties are tuples of patterns, as [['a*', 'b*']], not {self.ties!r}")
        object.__setattr__(self, "ties", tuple(tuple(tie) for tie in self.ties))
        least = self.min_keep.values() if isinstance(self.min_keep, Mapping) else (self.min_keep,)
        if not (isinstance(self.round_to, Integral) and self.round_to >= 1):
            raise ConfigError(f"round_to={self.round_to!r} does not fit: give a whole number from 1 on")
        if not all(isinstance(n, Integral) and n >= 0 for n in least):
            raise ConfigError(f"min_keep={self.min_keep!r} does not fit: give whole numbers from 0 on")
        for pattern, ratio in self.ratios.items():
            if not (isinstance(ratio, Real) and 0 < ratio <= 1):
                raise ConfigError(f"keep ratio {ratio!r} of {pattern!r} does not fit: give a number in (0, 1]")
        object.__setattr__(self, "round_to", int(self.round_to))  # numpy's own would not go into the record
        least = self.min_keep
        plain = {p: int(n) for p, n in least.items()} if isinstance(least, Mapping) else int(least)
        object.__setattr__(self, "min_keep", plain)
        object.__setattr__(self, "ratios", {pattern: float(ratio) for pattern, ratio in self.ratios.items()})
