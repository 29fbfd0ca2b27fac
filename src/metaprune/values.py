"""The values that travel between the parts: frozen, JSON-able where they are saved, and free of torch."""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from numbers import Integral, Real
from typing import Any, Literal, get_args

import numpy as np

from metaprune.core.errors import ConfigError, PlanError, closest


@dataclass(frozen=True)
class Member:
    """Where a group lives in one parameter: `rows[i]` are the indices of dimension `dim` that channel i is part of."""

    parameter: str
    dim: int
    rows: np.ndarray  # int64 [width, multiplicity]


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that can be dropped one by one; dropping channel i drops row i of every member.

    role: `heads` (where queries are grouped: `kv_heads`, and `query_heads` of each), `head_dims` (query and key
    dimensions of a head), `value_dims`, `stream` (the width that a residual connection carries on) or `hidden`.
    """

    name: str
    width: int
    members: tuple[Member, ...]
    atoms: np.ndarray  # int64 [width], atom of every channel in the network's algebra
    role: str = "hidden"

    def matches(self, pattern: str) -> bool:
        """Whether a glob pattern names this group, one of its parameters, a module that holds one, or LAYER:ROLE.

        `=NAME` is the group of exactly that name.
        """
        if pattern.startswith("="):
            return self.name == pattern[1:]
        names = {self.name, f"{self.name.partition(':')[0]}:{self.role}"}
        for member in self.members:
            parts = member.parameter.split(".")
            names |= {".".join(parts[:i]) for i in range(1, len(parts) + 1)}
        return any(fnmatch.fnmatchcase(name, pattern) for name in names)


@dataclass(frozen=True)
class LockedDim:
    """A parameter dimension of which `locked` of `size` indices can never be dropped, and why."""

    parameter: str
    dim: int
    size: int
    locked: int
    reason: str


@dataclass(frozen=True)
class Space:
    """All that can be dropped: channel groups in the order of the network, and what is locked and why."""

    groups: tuple[ChannelGroup, ...]
    locked: tuple[LockedDim, ...] = ()
    over_merged: int = 0

    def __len__(self) -> int:
        return len(self.groups)

    def __iter__(self) -> Iterator[ChannelGroup]:
        return iter(self.groups)

    def __getitem__(self, name: str) -> ChannelGroup:
        if name not in self.index:
            raise PlanError(f"no channel group {name!r}.{closest(name, list(self.index))} `net.explain()` lists all.")
        return self.groups[self.index[name]]

    @cached_property
    def index(self) -> dict[str, int]:
        return {g.name: i for i, g in enumerate(self.groups)}

    @cached_property
    def widths(self) -> np.ndarray:
        """Full widths, int64 [groups]."""
        return np.array([g.width for g in self.groups], dtype=np.int64)

    @property
    def stuck(self) -> tuple[ChannelGroup, ...]:
        """Groups of one channel: dropping it would remove the whole path, so it stays."""
        return tuple(g for g in self.groups if g.width == 1)

    def match(self, patterns: Sequence[str], what: str = "pattern") -> set[int]:
        """Indices of the groups that any pattern names.

        Raises:
            PlanError: a pattern that matches nothing, with the closest name.
        """
        found: set[int] = set()
        names = list(dict.fromkeys(n for g in self.groups for n in (g.name, *(m.parameter for m in g.members))))
        modules = list(dict.fromkeys(".".join(n.split(".")[:i]) for n in names for i in range(1, n.count(".") + 2)))
        locked = [d.parameter for d in self.locked]
        for pattern in patterns:
            hits = {i for i, g in enumerate(self.groups) if g.matches(pattern)}
            if not hits and not any(fnmatch.fnmatchcase(n, pattern) or n.startswith(pattern + ".") for n in locked):
                raise PlanError(f"{what} {pattern!r} matches no group, module or parameter.{closest(pattern, modules)}")
            found |= hits
        return found

    def digest(self) -> str:
        text = json.dumps([(g.name, g.width, [(m.parameter, m.dim) for m in g.members]) for g in self.groups])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Plan:
    """What stays: group name -> sorted kept channels. A group that is not named keeps all."""

    keep: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, space: Space, masks: Sequence[np.ndarray]) -> Plan:
        """From one boolean mask [width] per group, in the order of the space."""
        kept = {g.name: tuple(int(i) for i in np.flatnonzero(m)) for g, m in zip(space, masks, strict=True)}
        return cls({name: k for name, k in kept.items() if len(k) < space[name].width})

    def check(self, space: Space) -> None:
        """Raises PlanError if the plan does not fit the space."""
        for name, kept in self.keep.items():
            group = space[name]
            if not kept:
                raise PlanError(f"group {name!r} would keep nothing; at least one of its {group.width} channels stays")
            if list(kept) != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= group.width:
                raise PlanError(
                    f"group {name!r} has channels 0..{group.width - 1}; kept must be sorted and unique: {kept[:8]}"
                )

    def masks(self, space: Space) -> list[np.ndarray]:
        self.check(space)
        masks = [np.ones(g.width, dtype=bool) for g in space]
        for name, kept in self.keep.items():
            mask = masks[space.index[name]]
            mask[:] = False
            mask[list(kept)] = True
        return masks

    def widths(self, space: Space) -> np.ndarray:
        return np.array([m.sum() for m in self.masks(space)], dtype=np.int64)

    def to_dict(self) -> dict[str, Any]:
        return {"keep": {name: list(kept) for name, kept in self.keep.items()}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        return cls({str(name): tuple(int(i) for i in kept) for name, kept in data["keep"].items()})


@dataclass(frozen=True)
class Cost:
    """Cost of one sample (batch 1). Numbers for one structure; int64 arrays [candidates] for a batch of them.

    macs: multiply-accumulates of conv, linear and matmul, attention products included.
    params: elements of the model's parameters.
    peak_bytes: largest sum of live activations, inputs included.
    weight_bytes: bytes of parameters and buffers.
    latency_ms: predicted milliseconds of a forward pass of the latency table's batch; None without a table.
    masked: single weights that masks hold at zero; all other figures count them, as dense hardware does.
    """

    macs: Any
    params: Any
    peak_bytes: Any
    weight_bytes: Any
    latency_ms: Any = None
    masked: Any = 0

    @property
    def nonzero(self) -> Any:
        """Parameters that no mask holds at zero; `params` without masks."""
        return self.params - self.masked

    @property
    def memory_mb(self) -> Any:
        """Weights plus peak activations of one sample, in megabytes of 10^6 bytes."""
        return (self.weight_bytes + self.peak_bytes) / 1e6

    def metric(self, name: str) -> Any:
        return getattr(self, name)

    def to_dict(self) -> dict[str, float]:
        counts = {k: int(getattr(self, k)) for k in ("macs", "params", "nonzero", "peak_bytes", "weight_bytes")}
        latency = {} if self.latency_ms is None else {"latency_ms": float(self.latency_ms)}
        return {**counts, "memory_mb": float(self.memory_mb), **latency}


Metric = Literal["macs", "params", "nonzero", "memory_mb", "latency_ms"]
METRICS: tuple[str, ...] = get_args(Metric)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Upper bounds, each absolute (a number) or a share of the full network (`"50%"`); all must hold."""

    macs: float | str | None = None
    params: float | str | None = None
    nonzero: float | str | None = None
    memory_mb: float | str | None = None
    latency_ms: float | str | None = None

    def __post_init__(self) -> None:
        if all(getattr(self, m) is None for m in METRICS):
            raise ConfigError(f"a budget bounds at least one of {', '.join(METRICS)}: Budget(macs='50%')")
        for metric in METRICS:
            _parse_bound(metric, getattr(self, metric))

    @classmethod
    def parse(cls, value: Budget | Mapping[str, Any] | str) -> Budget:
        """A Budget, a mapping `{"macs": "50%"}`, or text `macs=50%,params=1e6`."""
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
            raise ConfigError(f"a budget is a Budget, a mapping or text, not {type(value).__name__}: {{'macs': '50%'}}")
        for key in value:
            if key not in METRICS:
                raise ConfigError(f"no budget metric {key!r}.{closest(str(key), METRICS)} Known: {', '.join(METRICS)}")
        return cls(**value)

    def bounds(self, full: Cost) -> dict[str, float]:
        """Absolute upper bounds by metric, given the cost of the full network."""
        found = {}
        for metric in METRICS:
            bound = _parse_bound(metric, getattr(self, metric))
            if bound is not None:
                number, relative = bound
                found[metric] = number * float(full.metric(metric)) if relative else number
        return found

    def to_dict(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}


def _parse_bound(metric: str, value: float | str | None) -> tuple[float, bool] | None:
    if value is None:
        return None
    text = str(value).strip()
    relative = text.endswith("%")
    try:
        number = float(text.removesuffix("%").replace("_", ""))
    except ValueError:
        raise ConfigError(f"budget {metric}={value!r} is neither a number nor a share such as '50%'") from None
    if not number > 0 or number == float("inf"):
        raise ConfigError(f"budget {metric}={value!r} must be positive and finite")
    if not relative and number < 1 and metric in ("macs", "params", "nonzero"):
        raise ConfigError(f"budget {metric}={value!r} is less than one; a share is written '{100 * number:g}%'")
    return (number / 100, True) if relative else (number, False)


def as_patterns(given: Sequence[str]) -> tuple[str, ...]:
    """A single text is one pattern, not one per letter."""
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

    Tied widths move together, in steps of full width / greatest common divisor.
    """

    round_to: int = 1
    min_keep: int = 1
    ignore: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    ratios: Mapping[str, float] = field(default_factory=dict)
    ties: tuple[tuple[str, ...], ...] = ()
    keep_module: bool = False

    def __post_init__(self) -> None:
        for name in ("ignore", "only"):
            object.__setattr__(self, name, as_patterns(getattr(self, name)))
        if isinstance(self.ties, str) or any(isinstance(tie, str) for tie in self.ties):
            raise ConfigError(f"ties are tuples of patterns, as [['a*', 'b*']], not {self.ties!r}")
        object.__setattr__(self, "ties", tuple(tuple(tie) for tie in self.ties))
        if not all(isinstance(n, Integral) and n >= 1 for n in (self.round_to, self.min_keep)):
            raise ConfigError(
                f"round_to and min_keep are whole numbers from 1 on, not {self.round_to!r} and {self.min_keep!r}"
            )
        for pattern, ratio in self.ratios.items():
            if not (isinstance(ratio, Real) and 0 < ratio <= 1):
                raise ConfigError(f"keep ratio {ratio!r} of {pattern!r} is not a number in (0, 1]")


@dataclass(frozen=True)
class Trial:
    """One structure a method looked at."""

    widths: tuple[int, ...]
    cost: Mapping[str, float]
    score: float | None = None


@dataclass(frozen=True)
class Proposal:
    """What a method returns: a plan, new weights where it makes its own, what it looked at and has to report.

    masks: parameter name -> bool tensor of the parameter's full shape; where it is False, that single weight is held at
    zero, through recovery too. `details["masks"]` may say more of them for the record: `pattern`, and `whole`, the
    names of weights without a mask.
    """

    plan: Plan
    weights: Mapping[str, Any] | None = None  # full-size tensors by parameter name
    trials: tuple[Trial, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)  # JSON-able; `method_details` of the record
    masks: Mapping[str, Any] = field(default_factory=dict)
