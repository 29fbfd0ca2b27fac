"""OBS by channel: what the readers lose when a channel goes and the other ones make up for it.

A reader with weights W and inputs x errs by E|W x - W' x|^2. Without the inputs S of a channel, its least error is
trace(W_S ([H^-1]_SS)^-1 W_S^T) with H = E[x x^T] and a ridge (Hassibi & Stork, NIPS 1992; by structure in ZipLM,
Kurtic et al., NeurIPS 2023, and SlimGPT, Ling et al., NeurIPS 2024). The channel of least error goes, W and H^-1 become
those of what is left, and so on to the last channel.

The error is quadratic, so each step adds what least squares leaves unexplained beyond the last one: it is backward
elimination on the objective of channel pruning (He et al., ICCV 2017) and OSSCAR (Meng et al., ICML 2024), which search
otherwise. Moments about the mean stand for E[x x^T] where a bias or a BatchNorm behind the reader takes up the mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from metaprune.methods.criteria.calibrated import CalibratedMethod, mean_share
from metaprune.methods.criteria.config import OBSConfig
from metaprune.methods.criteria.readers import Reader
from metaprune.methods.criteria.scores import require_finite

RIDGE = 1e-3  # of the mean diagonal of the Gram matrix
ROUNDS = 64
CANDIDATES = 4  # times as many as go in a round


@dataclass(frozen=True, kw_only=True)
class OBS(OBSConfig, CalibratedMethod):
    """Error that a channel's going adds, as a share of its readers' outputs, all cheaper channels being gone."""

    gram_mb: ClassVar[float] = 1024

    def channel_scores(self, readers: Sequence[Reader]) -> Tensor:
        return elimination(readers, RIDGE)


def unexplained(readers: Sequence[Reader], ridge: float) -> Tensor:
    """Error that each channel adds if it goes alone, and the others are solved anew: float64 [channels].

    Mean over readers of the share of the outputs' energy; `ridge` as in `elimination`.
    """
    layers, apart = _layers(readers, ridge)
    return _costs(layers, apart, torch.arange(len(readers[0].rows), device=readers[0].rows.device))


def elimination(readers: Sequence[Reader], ridge: float) -> Tensor:
    """Drop one channel after the other, each time the one that adds least error.

    Beyond `ROUNDS` channels several go per round, still one by one, chosen among the cheapest of the round's start.

    Args:
        ridge: share of the mean diagonal of the Gram matrix.

    Returns:
        float64 [channels]: the error that a channel adds in its turn, mean over readers of the share of the outputs'
        energy; no less than those before it, so that the order of the scores is that of the elimination.
    """
    layers, apart = _layers(readers, ridge)
    left = torch.arange(len(readers[0].rows), device=readers[0].rows.device)
    scores = torch.zeros(len(left), dtype=torch.float64, device=left.device)
    together = -(-len(left) // ROUNDS)
    highest = 0.0
    while len(left):
        near = left[_costs(layers, apart, left).argsort(stable=True)[: CANDIDATES * together]]
        parts, among, gone = [layer.part(near) for layer in layers], [a[near] for a in apart], []
        while len(gone) < min(together, len(near)):
            still = torch.tensor([c for c in range(len(near)) if c not in gone], device=near.device)
            costs = _costs(parts, among, still)
            gone.append(int(still[costs.argmin()]))
            scores[near[gone[-1]]] = highest = max(highest, float(costs.min()))
            for part in parts:
                part.drop(still[costs.argmin()][None])
        for layer in layers:
            layer.drop(near[gone])
        left = left[~torch.isin(left, near[gone])]
    return scores


def _layers(readers: Sequence[Reader], ridge: float) -> tuple[list[_Layer], list[Tensor]]:
    """Readers with a Gram matrix, and what channels cost those without."""
    with_gram = [_Layer.of(reader, ridge) for reader in readers if reader.seen.gram is not None]
    return with_gram, [_uncorrelated(reader) for reader in readers if reader.seen.gram is None]


def _costs(layers: Sequence[_Layer], apart: Sequence[Tensor], channels: Tensor) -> Tensor:
    """What each of `channels` adds to the error if it goes next: mean over readers."""
    return torch.stack([*(layer.costs(channels) for layer in layers), *(a[channels] for a in apart)]).mean(0)


def _uncorrelated(reader: Reader) -> Tensor:
    """What channels cost where no Gram matrix says that others could make up for them."""
    moment = reader.seen.variance if reader.takes_mean else reader.seen.second
    return mean_share([reader.by_channel(reader.by_input(moment) * reader.matrix.square().sum((1, 3)))])


@dataclass
class _Layer:
    """One reader as channels go.

    Attributes:
        inverse: of its Gram matrix [conv groups, K + 1, K + 1]. Entries of inputs that are gone are zero. The last one
            is none: it fills up channels of fewer inputs than others.
        outer: W^T W of its weights as shares of the outputs' energy, of the same shape; all that the error reads.
        inputs: of every channel, int64 [channels, n].
        gone: whether an input is gone, bool [K + 1].
    """

    inverse: Tensor
    outer: Tensor
    inputs: Tensor
    gone: Tensor

    @classmethod
    def of(cls, reader: Reader, ridge: float) -> _Layer:
        kernel, weight, gram = reader.matrix.shape[3], reader.matrix.flatten(2), _gram(reader)
        require_finite(bool(gram.isfinite().all()))
        least, size = torch.finfo(gram.dtype).tiny, gram.shape[-1]
        outer = weight.mT @ weight
        damping = (ridge * gram.diagonal(dim1=-2, dim2=-1).mean(-1)).clamp(min=least)
        inverse = _inverse(gram, damping)
        inputs = (reader.rows[..., None] * kernel + torch.arange(kernel, device=gram.device)).flatten(1)
        return cls(
            functional.pad(inverse, (0, 1, 0, 1)),
            functional.pad(outer / (outer * gram).sum().clamp(min=least), (0, 1, 0, 1)),
            torch.where(inputs < 0, size, inputs),
            torch.arange(size + 1, device=gram.device) == size,
        )

    def costs(self, channels: Tensor) -> Tensor:
        """Error that each of the channels adds if it goes next: trace(B^-1 W_S^T W_S), B its block of the inverse."""
        inputs = self.inputs[channels]
        outer = _blocks(self.outer, inputs)
        solved = torch.linalg.solve(self._inverse_blocks(inputs), outer)
        return solved.diagonal(dim1=-2, dim2=-1).sum((0, -1))

    def drop(self, channels: Tensor) -> None:
        """Drop channels together; the weights of the others make up for them: W becomes W - W_S `share`."""
        inputs = self.inputs[channels].flatten().unique()
        columns = self.inverse[:, :, inputs]
        share = torch.linalg.solve(self._inverse_blocks(inputs[None])[:, 0], columns.mT)
        self.inverse = self.inverse - columns @ share
        half = self.outer[:, :, inputs] - 0.5 * share.mT @ self.outer[:, inputs[:, None], inputs]
        crossed = half @ share
        self.outer = self.outer - crossed - crossed.mT
        for matrix in (self.inverse, self.outer):
            matrix[:, inputs] = matrix[:, :, inputs] = 0
        self.gone = self.gone.index_fill(0, inputs, True)

    def part(self, channels: Tensor) -> _Layer:
        """Return the layer as far as it concerns some channels, among which it can go on alone."""
        kept, inputs = self.inputs[channels].unique(return_inverse=True)
        both = kept[:, None], kept
        return _Layer(self.inverse[:, *both], self.outer[:, *both], inputs, self.gone[kept])

    def _inverse_blocks(self, inputs: Tensor) -> Tensor:
        """Blocks of the inverse; of one for inputs that are gone."""
        return _blocks(self.inverse, inputs) + torch.diag_embed(self.gone[inputs].to(self.inverse.dtype))


def _blocks(matrix: Tensor, inputs: Tensor) -> Tensor:
    """Blocks [conv groups, channels, n, n] of a matrix [conv groups, K, K] at inputs [channels, n]."""
    return matrix[:, inputs[:, :, None], inputs[:, None, :]]


def _inverse(gram: Tensor, damping: Tensor) -> Tensor:
    """Invert finite `gram` [conv groups, K, K] with `damping` [conv groups] on the diagonal, or with what it needs.

    Where inputs hardly vary, moments about their mean are round-off, of either sign.
    """
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    while True:
        factor, failed = torch.linalg.cholesky_ex(gram + damping[:, None, None] * eye)
        if not failed.any():
            return torch.cholesky_inverse(factor)
        damping = torch.where(failed > 0, 10 * damping, damping)


def _gram(reader: Reader) -> Tensor:
    """Second moments of the inputs [conv groups, K, K]: about their mean, where something behind makes up for that."""
    gram, mean = reader.seen.gram, reader.seen.inputs
    assert gram is not None and mean is not None
    return gram - mean[:, :, None] * mean[:, None] if reader.takes_mean else gram
