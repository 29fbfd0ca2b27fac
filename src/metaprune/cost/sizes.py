"""How many indices of a dimension survive, as a polynomial in the group widths.

Rows that carry one atom of group g give c * w_g, rows that carry one atom each of g and h give c * w_g * w_h, and so
on.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from metaprune.graph.labelling import Labelled
from metaprune.values import Space

Polynomial = tuple[tuple[tuple[int, ...], int], ...]  # ((group indices of one combination, number of rows), ...)


def owners(space: Space, labelled: Labelled) -> np.ndarray:
    """Map every atom to its group, -1 for none; the padding -1 of a label reads the last entry."""
    group_of_atom = np.full(len(labelled.atoms) + 1, -1, dtype=np.int64)
    for g, group in enumerate(space):
        group_of_atom[group.atoms] = g
    return group_of_atom


def polynomial_of(rows: np.ndarray) -> Polynomial:
    """rows: int64 [n, k], the owners of every row's atoms."""
    coefficients: dict[tuple[int, ...], int] = defaultdict(int)
    for combination, count in zip(*np.unique(np.sort(rows, axis=1), axis=0, return_counts=True), strict=True):
        coefficients[tuple(int(g) for g in combination if g >= 0)] += int(count)
    return tuple(sorted(coefficients.items()))


def sizes_at(polynomials: Sequence[Polynomial], full: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """full: [groups], widths: int64 [n, groups] -> int64 [polynomials, n]; what is no whole number is rounded up."""
    columns = np.ascontiguousarray(widths.T)
    sizes = np.zeros((len(polynomials), len(widths)), dtype=np.int64)
    for size, polynomial in zip(sizes, polynomials, strict=True):
        for groups, rows in polynomial:
            most = math.prod(int(full[g]) for g in groups)
            product: Any = math.prod(columns[g] for g in groups)  # 1 without groups
            size += product * (rows // most) if rows % most == 0 else -(-rows * product // most)
    return sizes


@dataclass(frozen=True)
class Size:
    """How many indices of one dimension survive.

    polynomial: in the group widths. label: the dimension's, which counts exactly for given survivors.
    """

    polynomial: Polynomial
    label: np.ndarray


@dataclass(frozen=True)
class Switch:
    """1 or 0: whether a branch is there, or whether it is empty. groups: its groups, by number."""

    groups: tuple[int, ...]
    present: bool

    def at(self, widths: np.ndarray) -> np.ndarray:
        """widths: int64 [n, groups] -> int64 [n]."""
        there = (widths[:, list(self.groups)] > 0).any(axis=1)
        return np.asarray(there == self.present, dtype=np.int64)
