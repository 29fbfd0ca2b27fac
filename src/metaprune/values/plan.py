"""What stays of a space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import numpy as np

from metaprune.core.arguments import check_arguments, shown
from metaprune.core.errors import PlanError
from metaprune.values.space import Space

_MOST_CHANNELS = 2**31  # arrays hold channels


@dataclass(frozen=True)
class Plan:
    """What stays: group name -> sorted kept channels. A group that is not named keeps all.

    All groups of a branch may keep nothing: it is dropped whole then (see `Network.branches`).
    """

    keep: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.keep, Mapping):
            raise PlanError(f"a plan is no {shown(self.keep)}: give kept channels by group, as {{'conv1': [0, 2]}}")
        object.__setattr__(self, "keep", {_group(name): _channels(name, c) for name, c in self.keep.items()})

    @classmethod
    def of(cls, space: Space, masks: Sequence[np.ndarray]) -> Plan:
        """Make a plan from one boolean mask [width] per group, in the order of the space."""
        check_arguments(Plan.of, locals())
        if [np.shape(m) for m in masks] != [(g.width,) for g in space]:
            raise PlanError(f"a plan of masks takes one of shape [width] for each of the {len(space)} groups")
        keep = {g.name: tuple(int(i) for i in np.flatnonzero(m)) for g, m in zip(space, masks, strict=True)}
        return cls({name: k for name, k in keep.items() if len(k) < space[name].width})

    def check(self, space: Space) -> None:
        """Raises PlanError if the plan does not fit the space."""
        check_arguments(Plan.check, locals())
        for name, channels in self.keep.items():
            group = space[name]
            if channels and (list(channels) != sorted(set(channels)) or channels[0] < 0 or channels[-1] >= group.width):
                raise PlanError(
                    f"group {name!r} has channels 0..{group.width - 1}; kept must be sorted and unique: {channels[:8]}"
                )
            if 0 < len(channels) < group.least:
                what = "experts" if group.role == "experts" else "channels"
                raise PlanError(
                    f"group {name!r} keeps {len(channels)} of {group.width} {what}, and a topk of the model chooses "
                    f"among them: keep at least {group.least}"
                )
        if not all(self.keep.values()):
            space.require_whole_branches(np.array([len(self.keep.get(g.name, range(g.width))) for g in space]))

    def masks(self, space: Space) -> list[np.ndarray]:
        """Build one boolean mask [width] per group: what stays."""
        self.check(space)
        masks = [np.ones(g.width, dtype=bool) for g in space]
        for name, channels in self.keep.items():
            mask = masks[space.index[name]]
            mask[:] = False
            mask[list(channels)] = True
        return masks

    def widths(self, space: Space) -> np.ndarray:
        """Surviving channels of every group, int64 [groups]."""
        return np.array([m.sum() for m in self.masks(space)], dtype=np.int64)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain data, which `from_dict` reads."""
        return {"keep": {name: list(channels) for name, channels in self.keep.items()}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """Read what `to_dict` wrote; nothing is converted.

        Raises:
            PlanError: anything else.
        """
        if not isinstance(data, Mapping) or "keep" not in data:
            raise PlanError(f"{shown(data)} is no plan: give {{'keep': {{group: channels}}}}, as to_dict writes it")
        return cls(data["keep"])


def _group(name: Any) -> str:
    if not isinstance(name, str):
        raise PlanError(f"a plan names its groups by text, as net.explain() does, not by {shown(name)}")
    return name


def _channels(name: str, given: Any) -> tuple[int, ...]:
    """Channels as plain integers, from a list, a tuple, a range, or an array or tensor of integers."""
    is_array = hasattr(given, "tolist") and not getattr(given, "is_meta", False)
    listed = given.tolist() if is_array else given
    if isinstance(listed, (list, tuple, range)) and all(_is_integer(i) and i < _MOST_CHANNELS for i in listed):
        return tuple(map(int, listed))
    raise PlanError(
        f"group {name!r} keeps a list of channel numbers, as [0, 2, 5], not {shown(given)}; of a mask take "
        "numpy.flatnonzero(mask)"
    )


def _is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
