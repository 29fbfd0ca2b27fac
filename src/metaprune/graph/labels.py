"""The channel algebra: which indices of which tensor dimensions live and die together.

Every index of a tensor dimension carries a *set of atoms* and survives iff all its atoms survive. A label is `None`
(every index carries the empty set: it always survives) or an int64 array of shape [n, k]: row i holds the atoms of
index i, padded with -1. The empty set is at once "free" and "locked", so one primitive, `Atoms.equate`, carries every
rule, locks included. It never refuses: where two labels cannot be made equal precisely it over-constrains, which is
always sound (fewer structures, never wrong ones), and counts the rows in `over_merged`.
"""

from __future__ import annotations

import itertools

import numpy as np

Label = np.ndarray | None


def merge_labels(parts: list[tuple[Label, int]]) -> Label:
    """Label of the row-major flattening of dimensions given as (label, size): the union of the index sets."""
    total = int(np.prod([n for _, n in parts])) if parts else 1
    columns = []
    inner = total
    outer = 1
    for label, n in parts:
        inner //= max(n, 1)
        if label is not None:
            columns.append(np.tile(np.repeat(label, inner, axis=0), (outer, 1)))
        outer *= n
    return np.hstack(columns) if columns else None


def stack_labels(parts: list[tuple[Label, int]]) -> Label:
    """Label of a concatenation; free parts become rows of empty sets."""
    if all(label is None for label, _ in parts):
        return None
    k = max(label.shape[1] for label, _ in parts if label is not None)
    rows = []
    for label, n in parts:
        block = np.full((n, k), -1, dtype=np.int64)
        if label is not None:
            block[:, : label.shape[1]] = label
        rows.append(block)
    return np.vstack(rows)


def _padded(label: np.ndarray, k: int) -> np.ndarray:
    """`label` with k columns (np.pad takes ten times as long)."""
    if label.shape[1] == k:
        return label
    out = np.full((len(label), k), -1, dtype=np.int64)
    out[:, : label.shape[1]] = label
    return out


def _pattern(column: np.ndarray) -> np.ndarray:
    """Canonical form of the partition that a column makes of its rows (numbered by first occurrence)."""
    _, first, inverse = np.unique(column, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse.reshape(-1)]


def _rank_within(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """Number the values of `inner` anew, from zero, within every value of `outer`, by first occurrence."""
    pairs = _pattern(outer * (inner.max() + 1) + inner)
    _, first = np.unique(pairs, return_index=True)
    order = np.argsort(outer[first], kind="stable")  # pairs of one outer value side by side, in order of occurrence
    values = outer[first][order]
    rank = np.empty(len(first), dtype=np.int64)
    rank[order] = np.arange(len(first)) - np.searchsorted(values, values)
    return rank[pairs]


class Atoms:
    """Store of atoms with union-find and definitions (atom := set of atoms; the empty set is a lock)."""

    def __init__(self) -> None:
        self._parent = np.empty(0, dtype=np.int64)
        self._defined = np.empty(0, dtype=bool)
        self._definition = np.empty((0, 4), dtype=np.int64)
        self._reason = np.empty(0, dtype=np.int64)
        self._n = 0
        self._starts: list[int] = []  # first atom of every call to `fresh`
        self.reasons: list[str] = []
        self._over_merged: list[np.ndarray] = []  # one atom of every row that was merged more than needed
        self._final: dict[int, tuple[np.ndarray, Label]] = {}

    def __len__(self) -> int:
        return self._n

    def fresh(self, n: int) -> np.ndarray:
        """Make a label of n new atoms, shape [n, 1]."""
        need = self._n + n
        if need > len(self._parent):
            size = max(need, 2 * len(self._parent), 1024)
            grow = size - len(self._parent)
            self._parent = np.concatenate([self._parent, np.arange(len(self._parent), size)])
            self._defined = np.concatenate([self._defined, np.zeros(grow, dtype=bool)])
            self._reason = np.concatenate([self._reason, np.full(grow, -1)])
            pad = np.full((grow, self._definition.shape[1]), -1)
            self._definition = np.concatenate([self._definition, pad])
        self._starts.append(self._n)
        label = np.arange(self._n, need, dtype=np.int64)[:, None]
        self._n = need
        return label

    def origin(self, atoms: np.ndarray) -> np.ndarray:
        """Number atoms so that those made as one dimension have the same number."""
        return np.searchsorted(self._starts, atoms, side="right")

    def find(self, atoms: np.ndarray) -> np.ndarray:
        roots = self._parent[atoms]
        if (roots == atoms).all():
            return roots
        while True:
            above = self._parent[roots]
            if (above == roots).all():
                break
            roots = above
        self._parent[atoms] = roots
        return roots

    def norm(self, label: Label) -> Label:
        """Expand definitions and unions: only undefined roots remain, no atom twice in a row, no empty column."""
        if label is None:
            return None
        if label.shape[1] == 1 and len(label) and label.min() >= 0:  # most labels: one atom per index
            roots = self.find(label)
            if not self._defined[roots].any():
                return roots
        while True:
            present = label >= 0
            label = np.where(present, self.find(np.where(present, label, 0)), -1)
            defined = present & self._defined[label]
            if not defined.any():
                break
            label = self._expand(label, defined)
        for j in range(1, label.shape[1]):
            twice = (label[:, :j] == label[:, j : j + 1]).any(axis=1)
            if twice.any():
                label = label.copy()
                label[twice, j] = -1
        label = label[:, (label >= 0).any(axis=0)]
        return label if label.shape[1] else None

    def _expand(self, label: np.ndarray, defined: np.ndarray) -> np.ndarray:
        columns = []
        for j in range(label.shape[1]):
            here = defined[:, j]
            if not here.any():
                columns.append(label[:, j : j + 1])
                continue
            block = np.where(here[:, None], self._definition[label[:, j]], -1)
            block[~here, 0] = label[~here, j]
            columns.append(block[:, (block >= 0).any(axis=0)])
        return np.hstack(columns)

    def final(self, label: np.ndarray) -> Label:
        """Return `norm`, remembered per label object: for use after the last equation."""
        if id(label) not in self._final:
            self._final[id(label)] = (label, self.norm(label))  # holding the label keeps its id from being reused
        return self._final[id(label)][1]

    # ------------------------------------------------------------------------------------------ equations

    def lock(self, label: Label, reason: str) -> None:
        """Equate every row with the empty set: these indices always survive."""
        label = self.norm(label)
        if label is not None:
            atoms = np.unique(label[label >= 0])
            self._define(atoms, np.full((len(atoms), 1), -1))
            if reason not in self.reasons:
                self.reasons.append(reason)
            self._reason[atoms] = self.reasons.index(reason)

    def lock_reason(self, label: Label) -> str | None:
        """Why (some row of) a label is locked: the reason of the first locked atom met, or None."""
        if label is None:
            return None
        seen = np.unique(label[label >= 0])
        for _ in range(16):  # definitions nest a few levels deep at most
            roots = np.unique(self.find(seen))
            locked = roots[self._reason[roots] >= 0]
            if len(locked):
                return self.reasons[self._reason[locked[0]]]
            inner = self._definition[roots[self._defined[roots]]]
            seen = np.unique(inner[inner >= 0])
            if not len(seen):
                break
        return None

    def equate(self, a: Label, b: Label, reason: str) -> None:
        """Make the sets of a and b equal row by row. Both have the same number of rows, or are None."""
        if a is not None and b is not None and len(a) != len(b):
            raise AssertionError(f"equate of {len(a)} and {len(b)} rows in {reason}")
        while True:
            a, b = self.norm(a), self.norm(b)
            if a is None or b is None:
                self.lock(b if a is None else a, f"{reason} (meets a dimension that never changes)")
                return
            k = max(a.shape[1], b.shape[1])
            a, b = _padded(a, k), _padded(b, k)
            rows = (a != b if k == 1 else np.sort(a, axis=1) != np.sort(b, axis=1)).any(axis=1)
            if not rows.any():
                return
            if k == 1 and min(a.min(), b.min()) >= 0:  # most equations: one atom per index on both sides
                a, b = a[rows], b[rows]
                self._union(a[:, 0], b[:, 0])
                continue
            a, b = self._resolve_once(a[rows], b[rows], reason)

    def _resolve_once(self, a: np.ndarray, b: np.ndarray, reason: str) -> tuple[np.ndarray, np.ndarray]:
        """One step on rows that differ, simplest kind of row first; the caller normalises and comes again."""
        empty_a, empty_b = (a < 0).all(axis=1), (b < 0).all(axis=1)
        if (empty_a | empty_b).any():
            self.lock(a[empty_b], reason)
            self.lock(b[empty_a], reason)
            return a, b
        common = self._common(a, b)
        rest_a = np.where((a[:, :, None] == common[:, None, :]).any(axis=2), -1, a)
        rest_b = np.where((b[:, :, None] == common[:, None, :]).any(axis=2), -1, b)
        count_a, count_b = (rest_a >= 0).sum(axis=1), (rest_b >= 0).sum(axis=1)
        subset = (count_a == 0) | (count_b == 0)
        if subset.any():  # {a} = {a, b} asks for a -> b; a = b is the nearest equation the algebra has
            self._over_merge(np.hstack([a[subset], b[subset]]))
            return a, b
        pairs = (count_a == 1) & (count_b == 1)
        if pairs.any():
            self._union(rest_a[pairs].max(axis=1), rest_b[pairs].max(axis=1))
            return a, b
        single_a, single_b = count_a == 1, count_b == 1
        if single_a.any():
            self._define_or_merge(rest_a[single_a].max(axis=1), rest_b[single_a])
        elif single_b.any():
            self._define_or_merge(rest_b[single_b].max(axis=1), rest_a[single_b])
        else:
            self._match_columns(rest_a, rest_b)
        return a, b

    @staticmethod
    def _common(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Atoms on both sides of a row; -2 where there is none (never equal to padding)."""
        return np.where((a[:, :, None] == b[:, None, :]).any(axis=2) & (a >= 0), a, -2)

    def _define_or_merge(self, atoms: np.ndarray, sets: np.ndarray) -> None:
        """atom := set, for the first row of every atom; the other rows are met again after normalisation."""
        unique, first = np.unique(atoms, return_index=True)
        sets = sets[first]
        if np.isin(sets, unique).any():  # a definition must not contain a left side of its batch
            self._over_merge(np.hstack([unique[:, None], sets]))
        else:
            self._define(unique, sets)

    def _match_columns(self, a: np.ndarray, b: np.ndarray) -> None:
        """Both sides have several factors: match factors whose values change along the rows in the same way."""
        a = a[:, (a >= 0).any(axis=0)]
        b = b[:, (b >= 0).any(axis=0)]
        patterns_a = [_pattern(a[:, j]) for j in range(a.shape[1])]
        patterns_b = [_pattern(b[:, j]) for j in range(b.shape[1])]
        for i, j in itertools.product(range(a.shape[1]), range(b.shape[1])):
            both = (a[:, i] >= 0) & (b[:, j] >= 0)
            if np.array_equal(patterns_a[i], patterns_b[j]) and both.any():
                self._union(a[both, i], b[both, j])
                return
        for x, px, y, py in ((a, patterns_a, b, patterns_b), (b, patterns_b, a, patterns_a)):
            if self._refine(x, px, y, py) or self._nest(x, px, y, py):
                return
        if not self._meet_in_blocks(a, b):
            self._over_merge(np.hstack([a, b]))

    def _refine(self, x: np.ndarray, px: list, y: np.ndarray, py: list) -> bool:
        """One factor of x that is exactly a pair of factors of y becomes defined by that pair."""
        for i, (j, k) in itertools.product(range(len(px)), itertools.combinations(range(len(py)), 2)):
            joint = _pattern(py[j] * (py[k].max() + 1) + py[k])
            full = (x[:, i] >= 0).all() and (y[:, [j, k]] >= 0).all()
            if full and np.array_equal(px[i], joint):
                self._define_or_merge(x[:, i], y[:, [j, k]])
                return True
        return False

    def _nest(self, x: np.ndarray, px: list, y: np.ndarray, py: list) -> bool:
        """Two grids of one dimension, one finer than the other, get a common factor between them.

        Groups R x offsets K against more groups S x fewer offsets F: S = R x M and K = M x F, with M new.
        """
        if x.shape[1] != 2 or y.shape[1] != 2 or (x < 0).any() or (y < 0).any():
            return False
        for (r, k), (s, f) in itertools.product(((0, 1), (1, 0)), ((0, 1), (1, 0))):
            middle = _rank_within(px[r], py[s])
            joint = lambda a, b: _pattern(a * (b.max() + 1) + b)  # noqa: E731
            if np.array_equal(joint(px[r], middle), py[s]) and np.array_equal(joint(middle, py[f]), px[k]):
                between = self.fresh(int(middle.max()) + 1)[middle]
                self._define_or_merge(y[:, s], np.hstack([x[:, r : r + 1], between]))
                self._define_or_merge(x[:, k], np.hstack([between, y[:, f : f + 1]]))
                return True
        return False

    def _meet_in_blocks(self, a: np.ndarray, b: np.ndarray) -> bool:
        """Grids that do not nest meet in blocks: the offset within a block is free, which block it is stays.

        A block is as long as the greatest common divisor of all runs in which some factor is constant.
        """
        columns = np.hstack([a, b]).T
        starts = [np.flatnonzero(np.diff(c, prepend=-2)) for c in columns]
        outer = [s for s in starts if len(s) * 2 <= len(a)]  # constant over runs; others change from row to row
        block = int(np.gcd.reduce(np.concatenate([*outer, [len(a)]]))) if outer else 1
        if block < 2:
            return False
        offsets = np.arange(len(a)) % block
        inner = [c for c, s in zip(columns, starts, strict=True) if len(s) * 2 > len(a)]
        if not inner or any(len(np.unique(offsets[c == atom])) > 1 for c in inner for atom in np.unique(c[c >= 0])):
            return False
        for c, s in zip(columns, starts, strict=True):
            if len(s) * 2 <= len(a):
                self.lock(c[:, None], "blocks of two groupings that do not nest")
        shared = self.fresh(block)[offsets, 0]
        for c in inner:
            self._union(c[c >= 0], shared[c >= 0])
        return True

    def _define(self, atoms: np.ndarray, sets: np.ndarray) -> None:
        sets = sets[:, (sets >= 0).any(axis=0)] if sets.size else sets
        extra = sets.shape[1] - self._definition.shape[1]
        if extra > 0:
            self._definition = np.pad(self._definition, ((0, 0), (0, extra)), constant_values=-1)
        self._defined[atoms] = True
        self._definition[atoms] = -1
        self._definition[atoms, : sets.shape[1]] = sets

    def _over_merge(self, rows: np.ndarray) -> None:
        self._over_merged.append(rows.max(axis=1))
        self._union_rows(rows)

    @property
    def over_merged(self) -> int:
        """Rows merged more than was asked for, those left out that are locked for another reason anyway."""
        labels = [self.norm(atoms[:, None]) for atoms in self._over_merged]
        return sum(int((label >= 0).any(axis=1).sum()) for label in labels if label is not None)

    def _union_rows(self, rows: np.ndarray) -> None:
        """All atoms of a row become one."""
        anchor = rows.max(axis=1)
        for j in range(rows.shape[1]):
            here = rows[:, j] >= 0
            self._union(rows[here, j], anchor[here])

    def _union(self, a: np.ndarray, b: np.ndarray) -> None:
        while True:
            ra, rb = self.find(a), self.find(b)
            high, low = np.maximum(ra, rb), np.minimum(ra, rb)
            differ = high != low
            if not differ.any():
                return
            self._parent[high[differ]] = low[differ]

    # ------------------------------------------------------------------------------------------ reshaping

    def split(self, label: Label, sizes: list[int], reason: str) -> list[Label]:
        """Labels of the dimensions `sizes` into which a flat dimension with `label` is viewed.

        A factor that changes along one axis only goes to that axis; a constant factor goes to the longest axis; a
        factor that changes along several gets fresh atoms per axis, and the old atoms are defined by their union.
        """
        label = self.norm(label)
        if label is None:
            return [None] * len(sizes)
        axes = [a for a, n in enumerate(sizes) if n > 1] or [int(np.argmax(sizes))]
        parts: list[list[np.ndarray]] = [[] for _ in sizes]
        for j in range(label.shape[1]):
            column = label[:, j].reshape(sizes)
            varying = [a for a in axes if (column != np.take(column, [0], axis=a)).any()]
            if len(varying) <= 1:
                axis = varying[0] if varying else max(axes, key=lambda a: sizes[a])
                parts[axis].append(np.moveaxis(column, axis, 0).reshape(sizes[axis], -1)[:, :1])
                continue
            fresh = {a: self.fresh(sizes[a]) for a in varying}
            for a, atoms in fresh.items():
                parts[a].append(atoms)
            self.equate(label[:, j : j + 1], merge_labels([(fresh.get(a), n) for a, n in enumerate(sizes)]), reason)
        return [np.hstack(p) if p else None for p in parts]
