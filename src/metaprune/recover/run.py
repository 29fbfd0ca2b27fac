"""The one entry to recovery."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from metaprune.core.errors import ConfigError
from metaprune.core.plugins import PYTHON
from metaprune.core.rng import Rng
from metaprune.data.types import Data
from metaprune.recover.config import NOTHING, RECOVERIES, RecoverConfig, parse_recover
from metaprune.recover.task import RecoverTask, ToSize
from metaprune.surgery.cut import Pruned
from metaprune.train.checkpoint import shapes_digest
from metaprune.train.history import EpochRow, History


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
    to_size: ToSize | None = None,
    pruned: Pruned | None = None,
) -> History:
    """Recover `model` in place and return what training reports (empty for none and bn).

    `original` is the teacher of distil and is never changed; other kinds do not need it. `initialise(model)` replaces
    the modules' own initialisation in scratch. `checkpoint_dir` resumes as in `metaprune.train.loop.train`;
    a checkpoint is known by options, seed, data and shapes, not by the weights it began with, so name the plan and the
    original's weights in `identity` (JSON-able) where one folder could meet several. `to_size` cuts tensors of the
    original to the model's shapes; with it, bn moves the original's statistics by what the cut changed.
    `pruned` is the cut that made `model`, which reconstruct reads.

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
        to_size=to_size,
        pruned=pruned,
    )
    if parsed.kind in NOTHING:
        return History()
    recovery = RECOVERIES.get(parsed.kind)
    return run_own(recovery, model, data) if parsed.kind.startswith(PYTHON) else recovery(task)


def run_own(loop: Callable[[nn.Module, Any], None], model: nn.Module, data: Any) -> History:
    """Recover `model` in place by a loop of the user's own; what it returns is left out.

    Raises:
        ConfigError: it gave parameters or buffers another shape, which the proof of the cut would not hold for.
    """
    before = shapes_digest(model)
    loop(model, data)
    if shapes_digest(model) != before:
        raise ConfigError(
            "your recovery changed the shapes or names of the network's tensors: it trains the network it is given, in "
            "place; what else changes it goes after prune, on result.model"
        )
    return History()
