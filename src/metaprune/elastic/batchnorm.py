"""BatchNorm statistics of one structure: those of a supernet's training are of all structures at once and fit none.

Where a dense network has statistics, a cut one gets those, moved by what the cut changed on the same batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metaprune.elastic.program import CallStep, Program, ProgramAtWidths, Step, Tensors, Weight
from metaprune.graph.captured import op_name

_SCALE, _MEAN, _VARIANCE, TRAINING, _MOMENTUM, _EPS = 1, 3, 4, 5, 6, 7  # arguments of aten.batch_norm


@dataclass(frozen=True)
class DenseStatistics:
    """BatchNorm statistics of the dense network, by buffer name, at the widths of the structure that is calibrated.

    running: what training left.
    measured: the averages over the calibration batches.
    """

    running: Mapping[str, Tensor]
    measured: Mapping[str, Tensor]


def moved_mean(running: Tensor, dense: Tensor, cut: Tensor) -> Tensor:
    """Move a dense running mean by what the cut changed; `dense` and `cut` are means over the same batches."""
    return running + (cut - dense)


def moved_variance(running: Tensor, dense: Tensor, cut: Tensor, eps: float) -> Tensor:
    """Move a dense running variance by what the cut changed; `dense` and `cut` are variances over the same batches.

    It shrinks in proportion, so that it stays positive. It grows by the difference at most: in proportion, a channel
    that is silent on these batches and not in training would explode. `eps` is the layer's own.
    """
    share = (running + eps) / (dense + eps)
    share = torch.where(cut > dense, share.clamp(max=1), share)
    return (running + (cut - dense) * share).clamp(min=0)


def spread_of(value: Tensor, dim: int = 1) -> tuple[Tensor, Tensor]:
    """Mean and variance of a value over all dimensions but one, without gradients."""
    if dim == 1:  # what training BatchNorm measures with: a third of var_mean's time
        return torch.batch_norm_update_stats(value.detach(), None, None, 0.0)
    others = [d for d in range(value.dim()) if d != dim % value.dim()]
    variance, mean = torch.var_mean(value, others, correction=0)
    return mean, variance


@dataclass(frozen=True)
class Norm:
    """A step of BatchNorm over running statistics: the names of its tensors."""

    mean: str
    variance: str
    scale: str | None
    eps: float

    @classmethod
    def of(cls, step: Step) -> Norm | None:
        """Read a step; None where it is no batch_norm over statistics that are tensors of the model."""
        if op_name(step.target) != "batch_norm":
            return None
        scale, mean, variance = step.args[_SCALE], step.args[_MEAN], step.args[_VARIANCE]
        if not isinstance(mean, Weight) or not isinstance(variance, Weight):
            return None
        return cls(mean.name, variance.name, scale.name if isinstance(scale, Weight) else None, step.args[_EPS])

    def factor(self, tensors: Tensors) -> Tensor:
        """What a channel is multiplied by, [channels]."""
        root = (tensors[self.variance] + self.eps).rsqrt()
        return root if self.scale is None else root * tensors[self.scale]

    def move(self, running: Tensors, dense: tuple[Tensor, Tensor], cut: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Move dense running statistics by what differs between two (mean, variance) over the same batches; by name."""
        return {
            self.mean: moved_mean(running[self.mean], dense[0], cut[0]),
            self.variance: moved_variance(running[self.variance], dense[1], cut[1], self.eps),
        }


class OneBatch:
    """Statistics of cut networks from a single batch, while they run on it: dense ones, moved layer by layer.

    `dense` records a run of the full network, `cut` moves in runs of others: both are given to `execute` as its `call`.
    """

    def __init__(self) -> None:
        self._measured: dict[str, tuple[Tensor, Tensor]] = {}  # by node: a module may be called several times

    def dense(self, step: Step, args: list, kwargs: dict) -> Any:
        """Run a step of the full network; what enters BatchNorm is recorded."""
        if Norm.of(step) is not None:
            self._measured[step.node.name] = spread_of(args[0])
        return step.target(*args, **kwargs)

    def cut(self, sliced: Callable[[Tensors], Tensors], running: Tensors) -> CallStep:
        """Make the `call` of a cut network; `sliced` cuts tensors by name to its widths, `running` are cut already."""

        def call(step: Step, args: list, kwargs: dict) -> Any:
            if (norm := Norm.of(step)) is not None:
                kept = sliced(dict(zip((norm.mean, norm.variance), self._measured[step.node.name], strict=True)))
                moved = norm.move(running, (kept[norm.mean], kept[norm.variance]), spread_of(args[0]))
                args[_MEAN], args[_VARIANCE] = moved[norm.mean], moved[norm.variance]
            return step.target(*args, **kwargs)

        return call


def calibrated(
    program: Program,
    at_widths: ProgramAtWidths,
    tensors: Mapping[str, Tensor],
    batches: Iterable[tuple[tuple, dict[str, Any]]],
    switchable: frozenset[str],
    dense: DenseStatistics | None = None,
) -> dict[str, Tensor]:
    """Return `tensors` (of the shapes at these widths) with the mean of the batches' statistics as running statistics.

    Every batch counts the same, whatever the order: an exponential average from reset values would leave 0.9^n of
    them (the 2019 code: 12% after 20 batches). Dropout stays off. Networks without BatchNorm come back as they are.

    With `dense`, its running statistics are moved by what differs from the dense network on the same batches. These
    need not be augmented as in training, one is enough, and the dense network itself comes back as it is.

    Args:
        batches: (args, kwargs) of the network; those of `dense.measured`, where it is given.
        switchable: nodes that follow the training flag (`Network.switchable`).
    """
    norms = [s for s in at_widths.steps if s.node.name in switchable and op_name(s.target) == "batch_norm"]
    updated = dict(tensors)
    for step in norms:
        for argument in (step.args[_MEAN], step.args[_VARIANCE]):
            if isinstance(argument, Weight):
                updated[argument.name] = updated[argument.name].detach().clone()
    chosen, count = {id(s) for s in norms}, 0

    def call(step: Step, args: list, kwargs: dict) -> Any:
        if id(step) in chosen:
            args[TRAINING], args[_MOMENTUM] = True, 1 / count
        return step.target(*args, **kwargs)

    with torch.no_grad():
        for args, kwargs in batches if norms else ():
            count += 1
            program.run(at_widths, updated, args, kwargs, call)
    return updated if dense is None else {**updated, **_moved(norms, updated, dense)}


def _moved(norms: list[Step], measured: Mapping[str, Tensor], dense: DenseStatistics) -> dict[str, Tensor]:
    moved: dict[str, Tensor] = {}
    for norm in filter(None, map(Norm.of, norms)):
        before, after = ((of[norm.mean], of[norm.variance]) for of in (dense.measured, measured))
        moved |= norm.move(dense.running, before, after)
    return moved
