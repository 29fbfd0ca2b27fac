"""Which node a channel is: rows of labels by number, and their places in the sites that a value came from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from metaprune.graph.labels import Label


class ChannelIds:
    """One number per set of atoms, the same wherever it occurs; locked rows are -1 - row."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[int, ...], int] = {}

    def of(self, final: Label, n: int) -> np.ndarray:
        """int64 [n] for a label in its final form."""
        locked = -1 - np.arange(n)
        if final is None:
            return locked
        rows, inverse = np.unique(np.sort(final, axis=1), axis=0, return_inverse=True)
        numbers = np.array([self._number(tuple(int(a) for a in row if a >= 0)) for row in rows], dtype=np.int64)
        keys = numbers[inverse.reshape(-1)]
        return np.where(keys < 0, locked, keys)

    def _number(self, atoms: tuple[int, ...]) -> int:
        return self._numbers.setdefault(atoms, len(self._numbers)) if atoms else -1


def occurrence(keys: np.ndarray) -> np.ndarray:
    """int64 [n]: how many times each key came before."""
    order = np.argsort(keys, kind="stable")
    ranked = keys[order]
    new = np.r_[True, ranked[1:] != ranked[:-1]] if len(keys) else np.empty(0, dtype=bool)
    start = np.maximum.accumulate(np.where(new, np.arange(len(keys)), 0))
    occurrences = np.empty(len(keys), dtype=np.int64)
    occurrences[order] = np.arange(len(keys)) - start
    return occurrences


def match_channels(wanted: np.ndarray, offered: Sequence[np.ndarray], flattened: bool = False) -> np.ndarray:
    """Positions of `wanted` keys in the concatenation of `offered` ones; -1 where there is none.

    The last offer that has a key wins. A key that is wanted more often than it is offered (a flattened feature map) has
    its occurrences shared out in order. Locked rows have no name but their number, see `_match_locked`; `flattened`:
    they may be those of a flattened feature map.
    """
    starts = np.cumsum([0, *(len(keys) for keys in offered)])
    if len(wanted) and (wanted < 0).all():
        return _match_locked(len(wanted), offered, starts, flattened)
    positions = np.full(len(wanted), -1, dtype=np.int64)
    for keys, start in zip(offered, starts, strict=False):
        here = _places_in(wanted, keys)
        positions = np.where(here >= 0, start + here, positions)
    return positions


def _match_locked(n: int, offered: Sequence[np.ndarray], starts: np.ndarray, flattened: bool) -> np.ndarray:
    """All locked: the last offer of as many locked rows, or all offers end to end, or, flattened, what divides them."""
    locked = [bool((keys < 0).all()) for keys in offered]
    same = [i for i, keys in enumerate(offered) if locked[i] and len(keys) == n]
    if same:
        return starts[same[-1]] + np.arange(n)
    total = int(starts[-1]) if all(locked) else 0
    if total == n:
        return np.arange(n)
    if flattened:
        divides = [i for i, keys in enumerate(offered) if locked[i] and len(keys) and n % len(keys) == 0]
        if divides:
            return starts[divides[-1]] + np.arange(n) // (n // len(offered[divides[-1]]))
        if total and n % total == 0:
            return np.arange(n) // (n // total)
    return np.full(n, -1, dtype=np.int64)


def _places_in(wanted: np.ndarray, keys: np.ndarray) -> np.ndarray:
    if not len(wanted) or not len(keys):
        return np.full(len(wanted), -1, dtype=np.int64)
    order = np.argsort(keys, kind="stable")
    unique, first, have = np.unique(keys[order], return_index=True, return_counts=True)
    at = np.minimum(np.searchsorted(unique, wanted), len(unique) - 1)
    hit = (unique[at] == wanted) & ((wanted >= 0) | (len(wanted) == len(keys)))
    _, inverse, times = np.unique(wanted, return_inverse=True, return_counts=True)
    step = np.maximum(1, times[inverse.reshape(-1)] // have[at])
    nth = np.minimum(occurrence(wanted) // step, have[at] - 1)
    return np.where(hit, order[first[at] + nth], -1)
