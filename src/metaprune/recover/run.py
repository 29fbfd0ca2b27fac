"""The one entry to recovery."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from metaprune.core.rng import Rng
from metaprune.recover.bn_recalibrate import recover_batchnorm
from metaprune.recover.config import RecoverConfig, RecoverKind, parse_recover
from metaprune.recover.distil import distil
from metaprune.recover.finetune import finetune
from metaprune.recover.scratch import train_from_scratch
from metaprune.recover.task import RecoverTask, Recovery
from metaprune.train.batch import Data
from metaprune.train.history import EpochRow, History


def _leave_as_is(task: RecoverTask) -> History:
    return History()


RECOVERIES: dict[RecoverKind, Recovery] = {
    "auto": _leave_as_is,
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
    identity: Mapping[str, Any] | None = None,
) -> History:
    """Recover `model` in place and return what training reports (empty for none and bn).

    `original` is the teacher of distil and is never changed; other kinds do not need it. `initialise(model)` replaces
    the modules' own initialisation in scratch. `checkpoint_dir` resumes as in `metaprune.train.loop.train`;
    a checkpoint is known by options, seed, data and shapes, not by the weights it began with, so name the plan and the
    original's weights in `identity` (JSON-able) where one folder could meet several.

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
        identity=identity,
    )
    return RECOVERIES[parsed.kind](task)
