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

RIDGE = 1e-3  # of the mean diagonal of the Gram matrix


@dataclass(frozen=True, kw_only=True)
class OBS(OBSConfig, CalibratedMethod):
    """Error that a channel's going adds, as a share of its readers' outputs, all cheaper channels being gone."""

    gram_mb: ClassVar[float] = 1024

    def channel_scores(self, readers: Sequence[Reader]) -> Tensor:
        return elimination(readers, RIDGE)


def elimination(readers: Sequence[Reader], ridge: float) -> Tensor:
    """Drop one channel after the other, each time the one that adds least error.

    Args:
        ridge: share of the mean diagonal of the Gram matrix.

    Returns:
        float64 [channels]: the error that a channel adds in its turn, mean over readers of the share of the outputs'
        energy; no less than those before it, so that the order of the scores is that of the elimination.
    """
    layers = [_Layer(reader, ridge) for reader in readers if reader.seen.gram is not None]
    apart = [_uncorrelated(reader) for reader in readers if reader.seen.gram is None]
    left = torch.arange(len(readers[0].rows), device=readers[0].rows.device)
    scores = torch.zeros(len(left), dtype=torch.float64, device=left.device)
    highest = scores.new_zeros(())
    while len(left):
        costs = torch.stack([*(layer.costs(left) for layer in layers), *(a[left] for a in apart)]).mean(0)
        at = int(costs.argmin())
        highest = torch.maximum(highest, costs[at])
        scores[left[at]] = highest
        for layer in layers:
            layer.drop(int(left[at]))
        left = torch.cat([left[:at], left[at + 1 :]])
    return scores


def _uncorrelated(reader: Reader) -> Tensor:
    """What channels cost where no Gram matrix says that others could make up for them."""
    moment = reader.seen.variance if reader.takes_mean else reader.seen.second
    return mean_share([reader.by_channel(reader.by_input(moment) * reader.matrix.square().sum((1, 3)))])


class _Layer:
    """Weights [conv groups, outputs or less, K + 1] of one reader as channels go, and the inverse of its Gram matrix.

    Inputs that are gone have weights and entries of the inverse of zero. The last one always is: it fills up channels
    of fewer inputs than others.
    """

    def __init__(self, reader: Reader, ridge: float):
        kernel, weight = reader.matrix.shape[3], reader.matrix.flatten(2)
        if weight.shape[1] > weight.shape[2]:  # a factor of W^T W says the same of the error, by fewer rows
            weight = torch.linalg.qr(weight, mode="r").R
        gram = _gram(reader)
        least = torch.finfo(gram.dtype).tiny
        self._energy = (weight @ gram * weight).sum().clamp(min=least)
        damping = (ridge * gram.diagonal(dim1=-2, dim2=-1).mean(-1)).clamp(min=least)
        eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram + damping[:, None, None] * eye))
        self._inverse, self._weight = functional.pad(inverse, (0, 1, 0, 1)), functional.pad(weight, (0, 1))
        inputs = (reader.rows[..., None] * kernel + torch.arange(kernel, device=gram.device)).flatten(1)
        self._inputs = torch.where(inputs < 0, gram.shape[-1], inputs)
        self._gone = torch.arange(gram.shape[-1] + 1, device=gram.device) == gram.shape[-1]

    def costs(self, left: Tensor) -> Tensor:
        """Share of the outputs' energy that each of the channels `left` adds to the error if it goes next."""
        inputs = self._inputs[left]
        weights = self._weight[:, :, inputs].permute(0, 2, 3, 1)  # [conv groups, channels, inputs, outputs]
        return (weights * torch.linalg.solve(self._blocks(inputs), weights)).sum((0, 2, 3)) / self._energy

    def drop(self, channel: int) -> None:
        """Drop one channel; the weights of the others make up for it."""
        inputs = self._inputs[channel]
        columns = self._inverse[:, :, inputs]
        share = torch.linalg.solve(self._blocks(inputs[None])[:, 0], columns.mT)
        self._weight = self._weight - self._weight[:, :, inputs] @ share
        self._inverse.baddbmm_(columns, share, alpha=-1)
        self._weight[:, :, inputs] = self._inverse[:, inputs] = self._inverse[:, :, inputs] = 0
        self._gone[inputs] = True

    def _blocks(self, inputs: Tensor) -> Tensor:
        """Blocks [conv groups, channels, n, n] of the inverse at inputs [channels, n]; of one for those gone."""
        block = self._inverse[:, inputs[:, :, None], inputs[:, None, :]]
        return block + torch.diag_embed(self._gone[inputs].to(block.dtype))


def _gram(reader: Reader) -> Tensor:
    """Second moments of the inputs [conv groups, K, K]: about their mean, where something behind makes up for that."""
    gram, mean = reader.seen.gram, reader.seen.inputs
    assert gram is not None and mean is not None
    return gram - mean[:, :, None] * mean[:, None] if reader.takes_mean else gram
