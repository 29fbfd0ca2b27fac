"""Exported files, timed in turns in the runtime of their format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from metaprune.core.batches import batch_size, with_batch
from metaprune.core.errors import ConfigError
from metaprune.export.exporters import ExportReport
from metaprune.latency.side_by_side import calls_ms

RUNTIMES = {"onnx": "ONNX Runtime", "pt2": "PyTorch"}
"""What runs the files of a format."""


def time_exports(
    exported: Sequence[ExportReport],
    args: tuple,
    kwargs: Mapping[str, Any] | None = None,
    *,
    batch: int | None = None,
    repeats: int = 20,
) -> list[dict[str, Any]]:
    """Time files that `export_model` wrote, on the CPU; they take turns, so that a busy machine slows all alike.

    Args:
        exported: what `export_model` returned.
        args, kwargs: example inputs.
        batch: samples per forward pass; by default those of the example.
        repeats: a time is the median of so many runs, after 3 that do not count.

    Returns:
        Of each file the `median`, `quartiles` (ms of one forward pass), `repeats`, `batch` and `threads`.

    Raises:
        ConfigError: numbers below one, or a batch that a file was not made for.
    """
    kwargs, own = dict(kwargs or {}), batch_size(args, dict(kwargs or {}))
    batch = own if batch is None else batch
    if repeats < 1 or (batch < 1 and batch != own):
        raise ConfigError(f"batch={batch} and repeats={repeats} are no counts: give 1 or more")
    if batch != own and not all(e.dynamic_batch for e in exported):
        raise ConfigError(f"a file runs at the batch size of the example only, {own}: leave batch out, or give {own}")
    args, kwargs = with_batch(args, kwargs, batch)
    times = calls_ms([partial(e.run, args, kwargs) for e in exported], torch.device("cpu"), repeats=repeats)
    return [{**each, "batch": batch, "threads": torch.get_num_threads()} for each in times]
