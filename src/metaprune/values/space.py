"""What can be dropped: channel groups and locked dimensions."""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np

from metaprune.core.errors import PlanError, closest
from metaprune.values.constraints import Constraints

PROTECTING = ("ignore", "whole")  # constraints that name the readers of channels as well


@dataclass(frozen=True)
class Member:
    """Where a group lives in one parameter: `rows[i]` are the indices of dimension `dim` that channel i is part of.

    side: a matrix or kernel `makes` the channels or `reads` them (sums over them); biases and norms `follow`.
    """

    parameter: str
    dim: int
    rows: np.ndarray  # int64 [width, multiplicity]
    side: Literal["makes", "reads", "follows"] = "makes"


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that can be dropped one by one; dropping channel i drops row i of every member.

    role: `heads` (where queries are grouped: `kv_heads`, and `query_heads` of each), `head_dims` (query and key
    dimensions of a head), `value_dims`, `stream` (the width that a residual connection carries on), `experts` (of which
    a router chooses) or `hidden`.
    least: as many have to stay: k of a `topk` among them, as a router's; of several groups, each one's share of k.
    """

    name: str
    width: int
    members: tuple[Member, ...]
    atoms: np.ndarray  # int64 [width], atom of every channel in the network's algebra
    role: str = "hidden"
    least: int = 1

    def matches(self, pattern: str, aliases: Mapping[str, str] | None = None, readers: bool = True) -> bool:
        """Tell whether a glob pattern names this group, one of its parameters, a module that holds one, or LAYER:ROLE.

        `=NAME` is the group of exactly that name. aliases: other name of a tied parameter -> its name in `members`.
        readers: without, layers that only read the channels do not count. A stream is made by all that add to it, so a
            pattern has to be its name or match them all: `*mlp*` names what an MLP has inside.
        """
        if pattern.startswith("=") or pattern == self.name:
            return pattern.removeprefix("=") == self.name
        if ":" in pattern and fnmatch.fnmatchcase(f"{self.name.partition(':')[0]}:{self.role}", pattern):
            return True
        members = self.members if readers else self._makers()
        hits = [_is_named(member.parameter, pattern, aliases or {}) for member in members]
        if self.role == "stream" and not readers:
            return all(hits)
        return any(hits) or fnmatch.fnmatchcase(self.name, pattern)

    def _makers(self) -> list[Member]:
        """Of a stream the matrices and kernels that make its channels; elsewhere all that does not only read them."""
        sides = {"makes"} if self.role == "stream" else {"makes", "follows"}
        return [m for m in self.members if m.side in sides] or list(self.members)


def _is_named(parameter: str, pattern: str, aliases: Mapping[str, str]) -> bool:
    """Tell whether a glob names a parameter, another name it is tied to, or a module that holds it."""
    for name in (parameter, *(other for other, tied in aliases.items() if tied == parameter)):
        parts = name.split(".")
        if any(fnmatch.fnmatchcase(".".join(parts[:i]), pattern) for i in range(1, len(parts) + 1)):
            return True
    return False


@dataclass(frozen=True)
class Branch:
    """What one addition adds to a residual stream, where it can be dropped whole: all its groups keep nothing.

    name: the module that gives it.
    groups: names of the channel groups that nothing else holds.
    addition, addend: nodes of the graph, the addition and the operand that is dropped.
    gone: nodes that are computed for it alone, the addend included.
    tensors: names of the model's tensors that nothing else reads.
    constant: whether something of it is left, a number per channel (biases, what a BatchNorm makes of them); else 0.
    channel_dim: dimension of the addend along which that differs.
    """

    name: str
    groups: tuple[str, ...]
    addition: str
    addend: str
    gone: frozenset[str]
    tensors: frozenset[str]
    constant: bool = False
    channel_dim: int = -1

    def matches(self, pattern: str) -> bool:
        """Tell whether a glob pattern names this branch, as NAME:branch."""
        return fnmatch.fnmatchcase(f"{self.name}:branch", pattern) and ":" in pattern

    @property
    def constant_name(self) -> str:
        """Name of the parameter that holds what is left."""
        return f"{self.name}.constant" if self.name else "constant"


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
    """All that can be dropped: channel groups in the order of the network, and what is locked and why.

    branches: what can be dropped whole, in the order of their additions; one may lie inside another.
    aliases: other name of a tied parameter -> its name in the groups.
    """

    groups: tuple[ChannelGroup, ...]
    locked: tuple[LockedDim, ...] = ()
    over_merged: int = 0
    branches: tuple[Branch, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.groups)

    def __iter__(self) -> Iterator[ChannelGroup]:
        return iter(self.groups)

    def __getitem__(self, name: str | int) -> ChannelGroup:
        """Return a group by its name, or by its number.

        Raises:
            PlanError: there is none.
        """
        if isinstance(name, int):
            if not -len(self) <= name < len(self):
                raise PlanError(f"no channel group {name}: there are {len(self)}")
            return self.groups[name]
        if name not in self.index:
            raise PlanError(
                f"no channel group {name!r}.{closest(str(name), list(self.index))} `net.explain()` lists all."
            )
        return self.groups[self.index[name]]

    @cached_property
    def index(self) -> dict[str, int]:
        """Group name -> its number."""
        return {g.name: i for i, g in enumerate(self.groups)}

    @cached_property
    def branch_groups(self) -> list[list[int]]:
        """Numbers of the groups of every branch."""
        return [[self.index[name] for name in b.groups] for b in self.branches]

    def require_whole_branches(self, widths: np.ndarray) -> None:
        """Check what keeps nothing in `widths`, int64 [groups] or [structures, groups].

        Raises:
            PlanError: a group that keeps nothing while others of its branch keep something, or that lies in no branch.
        """
        empty = np.atleast_2d(widths) == 0
        if not empty.any():
            return
        dropped = np.array([empty[:, groups].all(axis=1) for groups in self.branch_groups]).reshape(-1, len(empty))
        covered = np.zeros_like(empty)
        for of, groups in zip(dropped, self.branch_groups, strict=True):
            covered[:, groups] |= of[:, None]
        rows, groups = np.nonzero(empty & ~covered)
        if len(groups):
            raise PlanError(self._why_not_empty(int(groups[0]), empty[rows[0]]))

    def _why_not_empty(self, group: int, empty: np.ndarray) -> str:
        around = min((b for b in self.branch_groups if group in b), key=len, default=None)
        name, width = self.groups[group].name, self.groups[group].width
        if around is None:
            return (
                f"group {name!r} would keep nothing; at least one of its {width} channels stays, as it lies in no "
                "branch that can be dropped whole (network.branches lists those)"
            )
        branch = self.branches[self.branch_groups.index(around)].name
        others = ", ".join(self.groups[g].name for g in around if not empty[g])
        return (
            f"group {name!r} would keep nothing, which drops the branch {branch!r} whole: let its other groups keep "
            f"nothing, too: {others}"
        )

    @cached_property
    def widths(self) -> np.ndarray:
        """Full widths, int64 [groups]."""
        return np.array([g.width for g in self.groups], dtype=np.int64)

    @cached_property
    def least(self) -> np.ndarray:
        """Least widths where a group keeps anything, int64 [groups]."""
        return np.array([g.least for g in self.groups], dtype=np.int64)

    @property
    def stuck(self) -> tuple[ChannelGroup, ...]:
        """Groups of one channel: dropping it would remove the whole path, so it stays."""
        return tuple(g for g in self.groups if g.width == 1)

    def match(self, patterns: Sequence[str], kind: str = "ignore", readers: bool | None = None) -> set[int]:
        """Indices of the groups that any pattern names; NAME:branch names all groups of a branch.

        kind: the constraint that the patterns are of. What protects (`ignore`, `whole`) names readers of channels as
            well; all others name the layers that make them (`ChannelGroup.matches`).
        readers: whether readers are named, whatever the kind; as where the patterns are of single weights.

        Raises:
            PlanError: a pattern that matches nothing, with the closest name.
        """
        readers = kind in PROTECTING if readers is None else readers
        indices: set[int] = set()
        names = list(dict.fromkeys(n for g in self.groups for n in (g.name, *(m.parameter for m in g.members))))
        modules = list(dict.fromkeys(".".join(n.split(".")[:i]) for n in names for i in range(1, n.count(".") + 2)))
        locked = {d.parameter for d in self.locked}
        locked |= {other for other, name in self.aliases.items() if name in locked}
        for pattern in patterns:
            hits = self._hits(pattern, readers)
            if not hits and (touched := [g.name for g in self.groups if g.matches(pattern, self.aliases)]):
                some = ", ".join(touched[:3]) + (f" and {len(touched) - 3} more" if len(touched) > 3 else "")
                raise PlanError(
                    f"{kind} pattern {pattern!r} names no layer that makes a group by itself, only what reads or "
                    f"adds to {some}: name that"
                )
            if not hits and not any(fnmatch.fnmatchcase(n, pattern) or n.startswith(pattern + ".") for n in locked):
                near = closest(pattern, modules)
                raise PlanError(
                    f"{kind} pattern {pattern!r} matches no group, module or parameter.{near} See net.explain()"
                )
            indices |= hits
        return indices

    def _hits(self, pattern: str, readers: bool) -> set[int]:
        hits = {i for i, g in enumerate(self.groups) if g.matches(pattern, self.aliases, readers)}
        whole = (groups for b, groups in zip(self.branches, self.branch_groups, strict=True) if b.matches(pattern))
        return hits.union(*whole)

    def named_by(self, constraints: Constraints) -> dict[str, list[str]]:
        """Which groups every pattern of the constraints names: `only conv1` -> [`conv1`].

        Raises:
            PlanError: a pattern that matches nothing.
        """
        kinds = {
            "ignore": constraints.ignore,
            "only": constraints.only,
            "whole": constraints.whole,
            "ratio": tuple(constraints.ratios),
            "tie": tuple(pattern for tie in constraints.ties for pattern in tie),
            "min_keep": tuple(constraints.min_keep) if isinstance(constraints.min_keep, Mapping) else (),
        }
        named = {}
        for kind, pattern in ((kind, pattern) for kind, patterns in kinds.items() for pattern in patterns):
            self.match([pattern], kind, readers=True)  # a reader alone is none of these groups, and is there
            named[f"{kind} {pattern}"] = [self.groups[i].name for i in sorted(self._hits(pattern, kind in PROTECTING))]
        return named

    def digest(self) -> str:
        """Hash the space: networks of equal groups in equal parameters have equal digests."""
        text = json.dumps([(g.name, g.width, [(m.parameter, m.dim) for m in g.members]) for g in self.groups])
        return hashlib.sha256(text.encode()).hexdigest()[:16]
