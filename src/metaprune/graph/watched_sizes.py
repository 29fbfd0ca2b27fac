"""Sizes that note how Python uses them: a forward may branch on the batch, and what was captured is one branch."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any


@dataclass
class Branches:
    """What Python asked of sizes in a run at `batch`.

    others: batch sizes at which a comparison would have come out otherwise, the nearest on either side.
    curved: whether a size was used in a way that follows the batch in no straight line, or perhaps not.
    """

    batch: int
    others: set[int] = field(default_factory=set)
    curved: bool = False

    def compared(self, gap: float, slope: int, compare: Callable[[Any, Any], bool]) -> None:
        """Note a comparison of `gap` with 0, where the gap grows by `slope` with every sample."""
        if not slope or not math.isfinite(gap):
            return
        result, root = compare(gap, 0), self.batch - Fraction(gap) / slope
        around = range(math.floor(root) - 1, math.ceil(root) + 2)
        flipped = [b for b in around if b > 0 and compare(gap + slope * (b - self.batch), 0) != result]
        if flipped:
            self.others.add(min(flipped, key=lambda b: abs(b - self.batch)))


class WatchedSize(int):
    """A size that grows by `slope` with every sample of the batch."""

    slope: int
    branches: Branches

    def __new__(cls, value: int, slope: int, branches: Branches) -> WatchedSize:
        size = super().__new__(cls, value)
        size.slope, size.branches = slope, branches
        return size

    def __reduce__(self) -> Any:  # copies are plain numbers
        return int, (int(self),)

    __hash__ = int.__hash__

    def __neg__(self) -> WatchedSize:
        return WatchedSize(-int(self), -self.slope, self.branches)


def _slope(value: Any) -> int:
    return value.slope if isinstance(value, WatchedSize) else 0


def _linear(name: str, turned: bool) -> Callable[[WatchedSize, Any], Any]:
    compute = getattr(operator, name)

    def method(self: WatchedSize, other: Any) -> Any:
        if not isinstance(other, int):
            return getattr(int, f"__{'r' if turned else ''}{name}__")(int(self), other)
        a, b = (other, self) if turned else (self, other)
        value = compute(int(a), int(b))
        if name == "mul":
            self.branches.curved |= bool(_slope(a) and _slope(b))
            return WatchedSize(value, _slope(a) * int(b) + int(a) * _slope(b), self.branches)
        return WatchedSize(value, compute(_slope(a), _slope(b)), self.branches)

    return method


def _floor_divided(self: WatchedSize, other: Any) -> Any:
    value = int(self).__floordiv__(other)
    if isinstance(other, int) and other and not _slope(other) and not self.slope % other and not int(self) % other:
        return WatchedSize(value, self.slope // other, self.branches)
    self.branches.curved = True
    return value


def _curved(name: str) -> Callable[[WatchedSize, Any], Any]:
    compute = getattr(int, name)

    def method(self: WatchedSize, other: Any) -> Any:
        self.branches.curved = True
        return compute(int(self), other)

    return method


def _comparison(name: str) -> Callable[[WatchedSize, Any], Any]:
    compare = getattr(operator, name)

    def method(self: WatchedSize, other: Any) -> Any:
        if not isinstance(other, (int, float)):
            return NotImplemented
        self.branches.compared(int(self) - other + 0, self.slope - _slope(other), compare)
        return compare(int(self), other + 0 if not isinstance(other, WatchedSize) else int(other))

    return method


for _name in ("add", "sub", "mul"):
    setattr(WatchedSize, f"__{_name}__", _linear(_name, turned=False))
    setattr(WatchedSize, f"__r{_name}__", _linear(_name, turned=True))
for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    setattr(WatchedSize, f"__{_name}__", _comparison(_name))
for _name in ("truediv", "rtruediv", "rfloordiv", "mod", "rmod", "pow", "rpow", "divmod", "rdivmod"):
    setattr(WatchedSize, f"__{_name}__", _curved(f"__{_name}__"))
WatchedSize.__floordiv__ = _floor_divided  # type: ignore[method-assign]
