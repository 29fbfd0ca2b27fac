"""Progress of a training run: a bar on a terminal, log lines elsewhere."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from metaprune.objective import Metric
from metaprune.train.history import EpochRow

logger = logging.getLogger("metaprune")


class TrainProgress:
    """Context manager; shows a bar with rate and time left only when `show` and standard error is a terminal."""

    def __init__(self, label: str, metric: Metric | None = None, *, total_steps: int, done_steps: int, show: bool):
        self.label, self.metric = label, metric
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        if show and sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}%"),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(label, total=total_steps, completed=done_steps, rate="")

    def __enter__(self) -> TrainProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(self, samples_per_s: float | None = None) -> None:
        """Show that one update is done."""
        if self._bar is not None and self._task is not None:
            rate = "" if samples_per_s is None else f"{samples_per_s:,.0f} samples/s"
            self._bar.update(self._task, advance=1, rate=rate)

    def epoch(self, row: EpochRow, num_epochs: int) -> None:
        """Show that one epoch is done."""
        val = "" if row.val is None else f", val {self._figures(row.val)}"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=f"{self.label} {row.epoch}/{num_epochs}{val}")
            return
        logger.info(
            "%s epoch %d/%d: %s%s, %.0f samples/s",
            *(self.label, row.epoch, num_epochs, self._figures(row.train), val, row.samples_per_s),
        )

    def _figures(self, metrics: Mapping[str, float]) -> str:
        """`loss 0.4021 accuracy 86.12%`; a score that is taken after an epoch only is left out of its training part."""
        text, metric = f"loss {metrics['loss']:.4f}", self.metric
        if metric is not None and metric.name != "loss" and metric.name in metrics:
            text += f" {metric.label.lower()} {metric.text(metrics[metric.name])}"
        return text
