"""What stays of a space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from metaprune.core.errors import PlanError
from metaprune.values.space import Space

_MOST_CHANNELS = 2**31  # arrays hold channels


@dataclass(frozen=True)
class Plan:
    """What stays: group name -> sorted kept channels. A group that is not named keeps all."""

    keep: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, space: Space, masks: Sequence[np.ndarray]) -> Plan:
        """Make a plan from one boolean mask [width] per group, in the order of the space."""
        keep = {g.name: tuple(int(i) for i in np.flatnonzero(m)) for g, m in zip(space, masks, strict=True)}
        return cls({name: k for name, k in keep.items() if len(k) < space[name].width})

    def check(self, space: Space) -> None:
        """Raises PlanError if the plan does not fit the space."""
        for name, channels in self.keep.items():
            group = space[name]
            if not channels:
                raise PlanError(f"group {name!r} would keep nothing; at least one of its {group.width} channels stays")
            if list(channels) != sorted(set(channels)) or channels[0] < 0 or channels[-1] >= group.width:
                raise PlanError(
                    f"group {name!r} has channels 0..{group.width - 1}; kept must be sorted and unique: {channels[:8]}"
                )

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
        return {"keep": {name: list(channels) for name, channels in self.keep.items()}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """Read what `to_dict` gave.

        Raises:
            PlanError: it is no table of channel lists; numbers are not rounded, and no text is one.
        """
        keep = data.get("keep") if isinstance(data, Mapping) else None
        if not isinstance(keep, Mapping):
            raise PlanError(f"a plan is {{'keep': {{group: [channels]}}}}, not {str(data)[:80]}")
        for name, channels in keep.items():
            plain = isinstance(channels, (list, tuple)) and all(type(i) is int for i in channels)
            if not isinstance(name, str) or not plain or not all(0 <= i < _MOST_CHANNELS for i in channels):
                raise PlanError(f"group {name!r} of a plan keeps a list of channels, not {str(channels)[:60]}")
        return cls({name: tuple(channels) for name, channels in keep.items()})
