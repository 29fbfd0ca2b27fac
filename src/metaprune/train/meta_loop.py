"""The loop of meta-training: numbered steps, saved as they go, that continue after a kill to the same numbers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from metaprune.train.checkpoint import load_checkpoint, restore, save_checkpoint
from metaprune.train.processes import ALONE, Processes
from metaprune.train.progress import TrainProgress


@dataclass
class MetaHistory:
    """What a meta-training reports, JSON-able.

    Attributes:
        rows: figures of every step.
        evaluations: figures of what was judged on the way; empty where nothing is.
        seconds: wall time of steps and evaluations, those of killed starts that were saved included.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as a checkpoint holds it."""
        return {"rows": self.rows, "evaluations": self.evaluations, "seconds": self.seconds}


@dataclass(frozen=True, kw_only=True)
class MetaLoop:
    """Steps of meta-training.

    Attributes:
        state: all that the steps change, as one module; saved with `optimizer`.
        steps: how many there are.
        save_every: steps between checkpoints; the last one is saved, too.
        folder: where checkpoints are; None keeps none.
        identity: what two runs have to share for one to continue the other's checkpoint.
        processes: those that walk the same steps; the main one writes.
    """

    label: str
    state: nn.Module
    optimizer: torch.optim.Optimizer
    steps: int
    save_every: int
    folder: Path | None
    identity: Mapping[str, Any]
    progress: bool
    processes: Processes = ALONE

    def resume(self) -> MetaHistory:
        """Restore state and optimiser from the newest checkpoint; the history up to it."""
        if self.folder is None or (checkpoint := load_checkpoint(self.folder, self.identity)) is None:
            return MetaHistory()
        restore(checkpoint, model=self.state, optimizer=self.optimizer)
        with checkpoint.understood():
            return MetaHistory(**checkpoint.numbers["history"])

    def run(
        self,
        history: MetaHistory,
        step: Callable[[int], dict[str, Any]],
        has_ended: Callable[[int, MetaHistory], bool] | None = None,
    ) -> MetaHistory:
        """Do the steps that `history` lacks.

        Args:
            step: number from 0 -> its row.
            has_ended: called after every step with its number; may evaluate, and ends the loop with True.
        """
        done, show = len(history.rows), self.progress and self.processes.is_main
        with TrainProgress(self.label, total_steps=self.steps, done_steps=done, show=show) as bar:
            for number in range(done, self.steps):
                began = time.perf_counter()
                history.rows.append(step(number))
                bar.step()
                ended = has_ended is not None and has_ended(number, history)
                history.seconds += time.perf_counter() - began
                if ended or number + 1 == self.steps or (number + 1) % self.save_every == 0:
                    self._save(history)
                if ended:
                    break
        return history

    def _save(self, history: MetaHistory) -> None:
        if self.folder is None:
            return
        if self.processes.is_main:
            save_checkpoint(
                self.folder,
                model=self.state,
                optimizer=self.optimizer,
                scaler=None,
                history=history,
                identity=self.identity,
            )
        self.processes.wait()
