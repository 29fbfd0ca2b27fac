"""BatchNorm statistics of the pruned network: means and variances move when channels go (Yu & Huang 2019)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from metaprune.core.errors import DataError, NoEffectWarning
from metaprune.core.modes import device_of, modes_restored
from metaprune.core.rng import Rng
from metaprune.core.side_effects import copy_model
from metaprune.core.tensors import named_tensors
from metaprune.data.types import NO_SAMPLES
from metaprune.elastic.batchnorm import moved_mean, moved_variance
from metaprune.objective import Split
from metaprune.objective.batch import batch_size_of, call_model
from metaprune.recover.task import RecoverTask, ToSize
from metaprune.train.history import History

HOOK = "batchnorm_statistics_mode"
"""Method of graph-form modules: a context manager that, given a momentum, lets BatchNorm nodes (and nothing else) use
and record batch statistics with that momentum, and restores the former behaviour on exit."""


def recalibrate_batchnorm(
    model: nn.Module,
    split: Split | Iterable[Any],
    *,
    num_batches: int = 16,
    batch_size: int = 128,
    device: torch.device | str | None = None,
    rng: Rng | None = None,
    dense: nn.Module | None = None,
    to_size: ToSize | None = None,
) -> int:
    """Replace running statistics by their plain average over `num_batches` equal, un-augmented batches.

    With the `dense` network that the model was cut from, its running statistics are moved by what differs between the
    two on these batches (see `metaprune.elastic.batchnorm`): an uncut network keeps its own. `to_size` cuts dense
    tensors by name to the model's shapes. BatchNorm of other names, or behind a hook, gets the plain average.

    `split` is a split, or an iterable of (inputs, labels) batches that are already on the device. `rng` shuffles a
    split: pass it where samples may be sorted by class. Everything but BatchNorm runs in evaluation mode (no dropout);
    modes and momenta are restored, and the old statistics too if something fails. Variances are averages of the
    unbiased batch variances, as in training. Modules with a method `batchnorm_statistics_mode` (see `HOOK`) are asked
    instead of searched.

    Returns the number of batches used, 0 with a `NoEffectWarning` if there is nothing to recalibrate. Raises
    `DataError` if there is no batch or a statistic comes out non-finite.
    """
    hooks, norms = _statistics_holders(model)
    if not hooks and not norms:
        warnings.warn("the model has no BatchNorm running statistics: recalibration does nothing", NoEffectWarning, 2)
        return 0
    done = 0
    models = [model] if dense is None else [model, copy_model(dense).to(device_of(model)).eval()]
    norms = [norm for m in models for norm in _statistics_holders(m)[1]]
    seeded = (rng or Rng(0)).torch_global()  # a user's DataLoader shuffles by the global generator
    with _buffers_restored_on_error(model) as before, modes_restored(model), seeded, torch.no_grad():
        model.eval()
        with _cumulative(norms):
            for inputs in islice(_inputs(model, split, batch_size, device, rng), num_batches):
                done += 1
                with ExitStack() as stack:
                    for hook in hooks:  # momentum 1/k makes the k-th update a plain average, and the first one a reset
                        stack.enter_context(hook(1.0 / done))
                    for m in models:
                        call_model(m, inputs)
        if dense is not None and done:
            running, measured = (named_tensors(m)[0] for m in (dense, models[1]))
            _move(model, *(running, measured) if to_size is None else (to_size(running), to_size(measured)))
        if done == 0:
            raise DataError("no batch to recalibrate BatchNorm with: the split is empty")
        # constants may be infinite by design (attention masks): only what has changed is a statistic
        broken = [n for n, b in model.named_buffers() if not (b.isfinite().all() or torch.equal(b, before[n]))]
        if broken:
            raise DataError(
                f"recalibrated statistics are not finite ({', '.join(broken[:4])}); the old ones are kept: check the "
                "inputs and weights for NaN and infinity"
            )
    return done


def _move(model: nn.Module, running: Mapping[str, Tensor], measured: Mapping[str, Tensor]) -> None:
    """Replace the measured statistics of `model` by dense running ones, moved by what differs from those measured."""
    for path, norm in model.named_modules():
        m, v = f"{path}.running_mean", f"{path}.running_var"
        if isinstance(norm, _BatchNorm) and norm.running_mean is not None and m in running:
            mean, variance = cast("Tensor", norm.running_mean), cast("Tensor", norm.running_var)
            mean.copy_(moved_mean(running[m], measured[m], mean))
            variance.copy_(moved_variance(running[v], measured[v], variance, norm.eps))


def recover_batchnorm(task: RecoverTask) -> History:
    """Recalibrate `task.model` with training batches, on `task.device` (where the model is, unless given).

    With `task.to_size`, the statistics of the original are moved by what the cut changed.
    """
    split = task.data.train
    if split is NO_SAMPLES:
        raise DataError(f"data {task.data.name!r} has no train split: BatchNorm is recalibrated on training samples")
    if task.device is not None:
        task.model.to(task.device)
    recalibrate_batchnorm(
        task.model,
        split,
        num_batches=task.config.bn_batches,
        rng=task.rng.child("bn"),
        dense=None if task.to_size is None else task.original,
        to_size=task.to_size,
    )
    return History()


def _statistics_holders(model: nn.Module) -> tuple[list[Callable[[float | None], Any]], list[_BatchNorm]]:
    """Hooks of modules that have one (not of modules inside them), and BatchNorm modules elsewhere."""
    hooks: list[Callable[[float | None], Any]] = []
    norms: list[_BatchNorm] = []
    covered: set[int] = set()
    for module in model.modules():  # parents come first
        if id(module) in covered:
            continue
        if hasattr(module, HOOK):
            hooks.append(getattr(module, HOOK))
            covered.update(id(inner) for inner in module.modules())
        elif isinstance(module, _BatchNorm) and module.running_mean is not None:
            norms.append(module)
    return hooks, norms


@contextmanager
def _cumulative(norms: list[_BatchNorm]) -> Iterator[None]:
    """Reset the statistics, average cumulatively (momentum None), restore the momenta."""
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


@contextmanager
def _buffers_restored_on_error(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Yields copies of all buffers by name, and puts them back if the block fails."""
    before = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    try:
        yield before
    except BaseException:
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(before[name])
        raise


def _inputs(
    model: nn.Module,
    split: Split | Iterable[Any],
    batch_size: int,
    device: torch.device | str | None,
    rng: Rng | None,
) -> Iterator[Any]:
    if not isinstance(split, Split):
        for inputs, _ in split:
            yield inputs
        return
    if len(split) == 0:
        return
    device = device_of(model) if device is None else torch.device(device)
    first: int | None = None
    for inputs, _ in split.batches(min(batch_size, len(split)), device=device, rng=rng, drop_last=True):
        first = first or batch_size_of(inputs)
        if batch_size_of(inputs) == first:  # a user's DataLoader may end with a smaller one, which would weigh too much
            yield inputs
