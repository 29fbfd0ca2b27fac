"""One segment's table: milliseconds on a grid of sizes, fitted to samples anywhere and interpolated in between.

Convolutions run in blocks of channels (8 or 16): their time is a staircase, with another price for sizes that fill
their last block. So an axis may count in blocks: a grid of block numbers times three phases (the first size of a
block, the last but one, the full block), linear in between. With a block of one it is a plain grid.

Values are least squares on the samples plus a small penalty on bends (second differences along every axis). A function
that is linear in every size has no bends: it is reproduced exactly, and cells without samples continue their
neighbours.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

MAX_CELLS = 2**20  # of the looked-up array of one segment
BLOCKS = (16, 8, 1)  # the first unless another predicts better
PENALTIES = (0.003, 0.03, 0.3)
MIN_SAMPLES = 12  # to choose a block size by cross-validation
EXACT = 1e-6  # a relative error that needs no better


@dataclass(frozen=True)
class Axis:
    """Grid over the sizes 0..full. nodes: block numbers (sizes if block is 1)."""

    full: int
    block: int
    nodes: tuple[int, ...]

    @classmethod
    def of(cls, full: int, points: int, block: int = 1) -> Axis:
        last = -(-full // block)
        count = points if block == 1 else points + 3  # whole staircases while they are short
        return cls(full, block, tuple(int(n) for n in np.unique(np.linspace(1, last, min(count, last)).round())))

    @property
    def phases(self) -> int:
        return 1 if self.block == 1 else 3

    @property
    def points(self) -> list[int]:
        """The sizes of the grid."""
        if self.block == 1:
            return list(self.nodes)
        return [self.block * n + shift for n in self.nodes for shift in (1 - self.block, -1, 0)]

    def weights(self, sizes: np.ndarray) -> np.ndarray:
        """sizes: [n] -> what each grid point counts, float64 [n, points]."""
        sizes = np.asarray(sizes, dtype=np.float64)
        number = np.maximum(np.ceil(sizes / self.block), 1)
        along = _hats(number if self.block > 1 else sizes, np.array(self.nodes, dtype=np.float64))
        if self.block == 1:
            return along
        position = (sizes - self.block * (number - 1) - 1) / max(self.block - 2, 1)  # 0 first, 1 last but one
        filled = sizes == self.block * number
        phase = np.stack([np.where(filled, 0, 1 - position), np.where(filled, 0, position), filled], axis=1)
        return (along[:, :, None] * phase[:, None, :]).reshape(len(sizes), -1)

    def bends(self) -> np.ndarray:
        """Second differences of the grid's values, [differences, points]; zero for a linear function."""
        count, rows = len(self.nodes), []
        for k, p in itertools.product(range(1, count - 1), range(self.phases)):
            share = (self.nodes[k] - self.nodes[k - 1]) / (self.nodes[k + 1] - self.nodes[k - 1])
            rows.append({(k - 1, p): share - 1, (k, p): 1.0, (k + 1, p): -share})
        for k, p in itertools.product(range(count - 1), range(self.phases - 1)):
            rows.append({(k, p): 1.0, (k + 1, p): -1.0, (k, p + 1): -1.0, (k + 1, p + 1): 1.0})
        if self.phases == 3:  # weakly: it only decides for phases that no sample is in
            step = 1 / (self.block - 2)
            rows += [{(k, 0): 0.1 * step, (k, 1): -0.1 * (1 + step), (k, 2): 0.1} for k in range(count)]
        matrix = np.zeros((len(rows), count * self.phases))
        for row, entries in zip(matrix, rows, strict=True):
            for (k, p), value in entries.items():
                row[k * self.phases + p] = value
        return matrix


def _hats(x: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    """Weights of linear interpolation, [n, nodes]; linear extrapolation outside."""
    weights = np.zeros((len(x), len(nodes)))
    if len(nodes) == 1:
        weights[:] = 1
        return weights
    low = np.clip(np.searchsorted(nodes, x, side="right") - 1, 0, len(nodes) - 2)
    share = (x - nodes[low]) / (nodes[low + 1] - nodes[low])
    rows = np.arange(len(x))
    weights[rows, low], weights[rows, low + 1] = 1 - share, share
    return weights


@dataclass(frozen=True)
class Grid:
    """ms: float64 of the axes' numbers of points. samples, error: how many, and their median relative deviation."""

    axes: tuple[Axis, ...]
    ms: np.ndarray
    samples: int = 0
    error: float = 0.0
    _steps: tuple[int, ...] = field(init=False, default=())

    def __post_init__(self) -> None:
        most = int(MAX_CELLS ** (1 / max(len(self.axes), 1)) + 1e-9)
        object.__setattr__(self, "_steps", tuple(-(-(a.full + 1) // most) for a in self.axes))

    @cached_property
    def dense(self) -> np.ndarray:
        """ms at every size (every few for axes too long), flat in row-major order; never negative."""
        values = self.ms
        for k, (axis, step) in enumerate(zip(self.axes, self._steps, strict=True)):
            sizes = np.minimum(np.arange(0, axis.full + step, step), axis.full)
            values = np.moveaxis(np.tensordot(axis.weights(sizes), values, axes=(1, k)), 0, k)
        return np.maximum(values, 0).reshape(-1)

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        return tuple(len(range(0, a.full + s, s)) for a, s in zip(self.axes, self._steps, strict=True))

    def cell(self, sizes: Sequence[np.ndarray]) -> np.ndarray:
        """Locate each candidate in `dense`; sizes: one int64 [n] per axis."""
        cell = np.int64(0)
        for size, step, length in zip(sizes, self._steps, self.lengths, strict=True):
            cell = cell * length + (size if step == 1 else (size + step // 2) // step)
        return np.asarray(cell)

    def to_dict(self) -> dict[str, Any]:
        axes = [{"full": a.full, "block": a.block, "nodes": list(a.nodes), "sizes": a.points} for a in self.axes]
        return {"axes": axes, "ms": self.ms.tolist(), "samples": self.samples, "median_relative_deviation": self.error}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Grid:
        axes = tuple(Axis(a["full"], a["block"], tuple(a["nodes"])) for a in data["axes"])
        ms = np.array(data["ms"], dtype=np.float64).reshape([len(a.points) for a in axes])
        return cls(axes, ms, data["samples"], data["median_relative_deviation"])


def fit_grid(full: Sequence[int], sizes: np.ndarray, ms: np.ndarray, *, points: int, blocks: Sequence[int]) -> Grid:
    """Fit the grid that is best in cross-validation.

    Args:
        full: full size of every axis.
        sizes: int64 [samples, axes]. ms: [samples].
        points: grid points per axis without blocks.
        blocks: block sizes to choose from; three axes take none.
    """
    if not full:
        level = float(np.median(ms))
        return Grid((), np.array(level), len(ms), float(np.median(np.abs(level / ms - 1))))
    if len(full) > 2:
        points, blocks = min(points, 3), (1,)
    choices = list(dict.fromkeys(tuple(Axis.of(f, points, b if b <= f else 1) for f in full) for b in blocks))
    best, lowest = (choices[0], PENALTIES[1]), np.inf
    for k, axes in enumerate(choices if len(ms) >= MIN_SAMPLES else []):
        if lowest < EXACT:
            break
        error = _held_out_error(axes, sizes, ms, PENALTIES[1])
        if error < (0.97 if k else 1) * lowest:
            best, lowest = (axes, PENALTIES[1]), error
    for penalty in (PENALTIES[0], PENALTIES[2]) if EXACT < lowest < np.inf else ():
        error = _held_out_error(best[0], sizes, ms, penalty)
        if error < lowest:
            best, lowest = (best[0], penalty), error
    axes, penalty = best
    rows = _rows(axes, sizes)
    values = _robust(axes, rows, ms, penalty)
    deviation = float(np.median(np.abs(rows @ values / ms - 1)))
    return Grid(axes, values.reshape([len(a.points) for a in axes]), len(ms), deviation)


def _rows(axes: Sequence[Axis], sizes: np.ndarray) -> np.ndarray:
    """Weights of all grid points for every sample, [samples, points]."""
    rows = np.ones((len(sizes), 1))
    for k, axis in enumerate(axes):
        rows = (rows[:, :, None] * axis.weights(sizes[:, k])[:, None, :]).reshape(len(sizes), -1)
    return rows


def _bends(axes: Sequence[Axis]) -> np.ndarray:
    """Second differences of the whole grid along every axis."""
    counts = [len(a.points) for a in axes]
    parts = []
    for k, axis in enumerate(axes):
        before, after = int(np.prod(counts[:k])), int(np.prod(counts[k + 1 :]))
        parts.append(np.kron(np.kron(np.eye(before), axis.bends()), np.eye(after)))
    return np.vstack(parts)


def _importance(ms: np.ndarray) -> np.ndarray:
    return 1 / (0.3 * ms.mean() + ms)  # between absolute and relative errors


def _solve(axes: Sequence[Axis], rows: np.ndarray, ms: np.ndarray, penalty: float) -> np.ndarray:
    """Least squares by the normal equations: fast, for choosing."""
    important, bends = _importance(ms), penalty / ms.mean() * _bends(axes)
    scaled = rows * important[:, None]
    square = scaled.T @ scaled + bends.T @ bends
    ridge = 1e-10 * np.trace(square) / len(square)
    return np.linalg.solve(square + ridge * np.eye(len(square)), scaled.T @ (ms * important))


def _robust(axes: Sequence[Axis], rows: np.ndarray, ms: np.ndarray, penalty: float, rounds: int = 3) -> np.ndarray:
    """Least squares to full precision; samples far off (something else ran) count less in the next round."""
    important, bends = _importance(ms), penalty / ms.mean() * _bends(axes)
    trust = np.ones(len(ms))
    values = np.zeros(rows.shape[1])
    for _ in range(rounds):
        a = np.vstack([rows * (trust * important)[:, None], bends])
        values = np.linalg.lstsq(a, np.append(ms * trust * important, np.zeros(len(bends))), rcond=1e-12)[0]
        off = np.abs(rows @ values - ms) * important
        trust = np.minimum(1, (2 * np.median(off) + 1e-12) / np.maximum(off, 1e-12))
    return values


def _held_out_error(axes: Sequence[Axis], sizes: np.ndarray, ms: np.ndarray, penalty: float, folds: int = 4) -> float:
    """Mean absolute error on samples that were left out, relative to the mean. Equal sizes share a fold."""
    _, cell = np.unique(sizes, axis=0, return_inverse=True)
    fold, rows, missed = cell.reshape(-1) % folds, _rows(axes, sizes), 0.0
    for k in range(folds):
        out = fold == k
        if out.any() and not out.all():
            missed += np.abs(rows[out] @ _solve(axes, rows[~out], ms[~out], penalty) - ms[out]).sum()
    return missed / ms.sum()
