"""Second moments of rows, additive over batches, and the ridge regression that reads nothing else."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

RIDGES = (1e-3, 1e-2, 1e-1, 1.0)
"""Tried ridges, as shares of the mean of the Gram matrix's diagonal."""


@dataclass(frozen=True)
class Moments:
    """Sums in float64 over rows of inputs [groups, n, K] and targets [groups, n, O].

    Attributes:
        rows: how many there are.
        inputs, targets: sums [groups, K] and [groups, O].
        gram, cross: sums of products [groups, K, K] and [groups, K, O].
        energy: sums of squared targets [groups, O].
    """

    rows: int
    inputs: Tensor
    targets: Tensor
    gram: Tensor
    cross: Tensor
    energy: Tensor

    @classmethod
    def of(cls, inputs: Tensor, targets: Tensor) -> Moments:
        """Sum over rows: inputs [groups, n, K], targets [groups, n, O]."""
        gram, cross = inputs.mT @ inputs, inputs.mT @ targets  # in the rows' own precision, which is faster
        sums = [inputs.sum(1), targets.sum(1), gram, cross, targets.square().sum(1)]
        return cls(inputs.shape[1], *(s.double() for s in sums))

    def __add__(self, other: Moments) -> Moments:
        return Moments(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    def intercept(self, matrix: Tensor) -> Tensor:
        """Best constant [groups, O] beside a matrix [groups, O, K]."""
        return (self.targets - (matrix @ self.inputs[..., None])[..., 0]) / self.rows

    def error(self, matrix: Tensor, constant: Tensor) -> float:
        """Mean squared error per row of `inputs @ matrix.T + constant`, summed over all outputs."""
        predicted = (matrix @ self.inputs[..., None])[..., 0]
        squares = (matrix @ self.gram * matrix).sum() - 2 * (matrix * self.cross.mT).sum() + self.energy.sum()
        constants = 2 * (constant * (predicted - self.targets)).sum() + self.rows * constant.square().sum()
        return max(0.0, float(squares + constants) / self.rows)

    @property
    def spread(self) -> float:
        """Variance of the targets, summed over all outputs."""
        return max(0.0, float((self.energy - self.targets.square() / self.rows).sum()) / self.rows)

    def ridge(self, old: Tensor, share: float, with_constant: bool) -> Tensor:
        """Solve for the matrix [groups, O, K] of least squared error, drawn towards `old`.

        share: of the mean diagonal of the Gram matrix (Hoerl & Kennard, Technometrics 1970).
        """
        gram, cross = self.gram, self.cross
        if with_constant:
            gram = gram - self.inputs[:, :, None] * self.inputs[:, None] / self.rows
            cross = cross - self.inputs[:, :, None] * self.targets[:, None] / self.rows
        diagonal = gram.diagonal(dim1=-2, dim2=-1).mean(-1).clamp(min=1e-30)  # dead inputs: the old weights stay
        eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        change = torch.linalg.solve(gram + share * diagonal[:, None, None] * eye, cross - gram @ old.mT)
        return old + change.mT


@dataclass(frozen=True)
class Solution:
    """A matrix [groups, O, K] and a constant [groups, O], and why they were chosen.

    Attributes:
        ridge: the share that was best on held-out rows; None where the old matrix was no worse.
        before, after: errors on held-out rows, as shares of the targets' variance.
    """

    matrix: Tensor
    constant: Tensor
    ridge: float | None
    before: float
    after: float


def solve(fit: Moments, held: Moments, old: Tensor, with_constant: bool, ridges: tuple[float, ...]) -> Solution:
    """Choose the ridge on held-out rows, then solve with all rows; no ridge leaves the old matrix."""

    def constant(moments: Moments, matrix: Tensor) -> Tensor:
        return moments.intercept(matrix) if with_constant else torch.zeros_like(moments.targets)

    both, scale = fit + held, held.spread or 1.0
    before = best = held.error(old, constant(fit, old)) / scale
    chosen = None
    for share in ridges:
        matrix = fit.ridge(old, share, with_constant)
        error = held.error(matrix, constant(fit, matrix)) / scale
        if error < 0.999 * best:
            best, chosen = error, share
    matrix = old if chosen is None else both.ridge(old, chosen, with_constant)
    return Solution(matrix, constant(both, matrix), chosen, before, best)
