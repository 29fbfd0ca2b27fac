"""The one entry to recovery."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from metaprune.recover.bn_recalibrate import recover_batchnorm
from metaprune.recover.config import RecoverConfig, RecoverKind, parse_recover
from metaprune.recover.distil import distil
from metaprune.recover.finetune import finetune
from metaprune.recover.scratch import train_from_scratch
from metaprune.recover.task import RecoverTask, Recovery
from metaprune.rng import Rng
from metaprune.train.batch import Data
from metaprune.train.history import EpochRow, History


def _leave_as_is(task: RecoverTask) -> History:
    return History()


RECOVERIES: dict[RecoverKind, Recovery] = {
    "none": _leave_as_is,
    "bn": recover_batchnorm,
    "finetune": finetune,
    "distil": distil,
    "scratch": train_from_scratch,
}


def recover(
    model: nn.Module,
    original: nn.Module | None,
    data: Data,
    config: RecoverConfig | str | None,
    *,
    rng: Rng,
    device: torch.device | str | None = None,
    checkpoint_dir: Path | None = None,
    progress: bool = True,
    on_epoch: Callable[[EpochRow], None] | None = None,
    initialise: Callable[[nn.Module], None] | None = None,
) -> History:
    """Recover `model` in place and return what training reports (empty for none and bn).

    `original` is the teacher of distil and is never changed; other kinds do not need it. `initialise(model)` replaces
    the modules' own initialisation in scratch. `checkpoint_dir` resumes as in `metaprune.train.loop.train`.

    Raises what `parse_recover` and `train` raise; `ConfigError` for distil without `original`; `NotAvailableError` for
    scratch on modules that cannot initialise themselves.
    """
    parsed = parse_recover(config)
    task = RecoverTask(
        model=model,
        original=original,
        data=data,
        config=parsed,
        rng=rng,
        device=device,
        checkpoint_dir=checkpoint_dir,
        progress=progress,
        on_epoch=on_epoch,
        initialise=initialise,
    )
    return RECOVERIES[parsed.kind](task)
