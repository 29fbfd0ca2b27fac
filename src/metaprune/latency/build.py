"""Measuring a table: which structures are run, the fit of the grids, and the table's error end to end."""

from __future__ import annotations

import dataclasses
import platform
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from metaprune.core.batches import batch_size
from metaprune.core.errors import ConfigError
from metaprune.core.files import digest_of
from metaprune.core.modes import modes_restored
from metaprune.core.rng import Rng
from metaprune.latency.grid import BLOCKS, Grid, fit_grid
from metaprune.latency.kept import Kept
from metaprune.latency.runtimes import Timer, make_timer
from metaprune.latency.segments import Segment, Sizes, axis_values, segments_of
from metaprune.latency.table import LatencyTable
from metaprune.latency.timing import Repeats, medians
from metaprune.network import Network
from metaprune.search.units import Unit, units_of
from metaprune.values import Constraints

CALIBRATION = 12  # structures that scale and offset are fitted to (half where each costs a build)
CHECKED = 10  # structures whose segments tell the interpolation's error (2 where each costs builds)
REPEATS, MOST_REPEATS, SPENT_MS = 7, 128, 150.0  # of one time, where the caller does not say how many
Progress = Callable[[str], None]


def build_table(
    network: Network,
    args: tuple,
    kwargs: dict[str, Any] | None = None,
    *,
    runtime: str = "eager",
    points: int = 5,
    samples: int | None = None,
    repeats: int | None = None,
    warmup: int = 2,
    structures: int = 30,
    clock: str = "wall",
    rng: Rng | None = None,
    constraints: Constraints | None = None,
    timer: Timer | None = None,
    progress: Progress | None = None,
    keep: str | Path | None = None,
) -> LatencyTable:
    """Measure a latency table and its error.

    Args:
        args, kwargs: inputs at the table's batch size, on the network's device.
        runtime: `eager`, `compile` or `onnxruntime`.
        points: grid points per size (more where a runtime works in blocks of channels); the other runtimes than eager
            are measured at that many widths per group.
        samples: structures whose segments are measured; by default enough for the grid.
        repeats, warmup: a time is the median of `repeats` runs after `warmup`; None: 7, and more of a network that
            takes less than 20 ms, which single runs say little about.
        structures: random structures, others than those above, on which the table's error is measured.
        clock: `wall`, or `cpu`: processor time of the calling thread, for a CPU with one thread on a busy machine.
        constraints: which widths the structures may have.
        timer: measures instead of `runtime` (see `runtimes.Timer`); what it measures is not kept.
        progress: is told how far it is.
        keep: file that holds what was measured so far, so that a start after a kill goes on from there. It stays:
            delete it once the table is saved.

    Raises:
        ConfigError: unknown runtime, numbers below one, nothing that can be pruned, or other settings in `keep`.
        MissingDependencyError, NotAvailableError: the runtime is not installed, or cannot run this network.
    """
    say, rng, kwargs = progress or (lambda _: None), rng or Rng(0), kwargs or {}
    constraints = constraints or Constraints()
    numbers = {"points": points, "samples": samples, "repeats": repeats, "structures": structures}
    _check_numbers(**numbers)
    units, batch = _shrinking(network, constraints), batch_size(args, kwargs) or 1
    segments, sizes = segments_of(network, batch)
    circumstances = _circumstances(network, args, kwargs, runtime, batch)
    settings = {**numbers, "warmup": warmup, "clock": clock, "constraints": str(constraints), "rng": str(rng)}
    kept = Kept(keep, {**circumstances, **settings, **_identity(network, segments)})
    timing = Repeats(warmup, repeats or REPEATS, clock)
    if timer is None and repeats is None:
        count = kept.once("repeats", lambda: _enough(network, args, kwargs, timing))
        timing = dataclasses.replace(timing, repeats=count)
    timer = timer or make_timer(runtime, network, segments, sizes, args, kwargs, timing, kept, say)
    design = Design(network.space.widths, units, points if timer.few_widths else None, rng)
    count = samples or (3 * points if timer.few_widths else 24 * points)
    say(f"{len(segments)} segments, {len({s.key for s in segments})} tables; {count} structures to measure")
    train, held = design.training(count), design.random(2 if timer.few_widths else CHECKED, "held out")
    both = timer.segments(np.vstack([train, held]))
    grids = _fit(segments, sizes, train, both[: len(train)], points, (1,) if timer.few_widths else BLOCKS)
    table = LatencyTable(network.space.digest(), sizes, segments, grids)
    fitted, error = _end_to_end(table, timer, design, structures, say)
    table.info = {
        **circumstances,
        "protocol": _protocol(timing, points, len(train), fitted),
        **_quality(table, network, held, both[len(train) :], error),
        "seconds": kept.seconds,
    }
    return table


def _identity(network: Network, segments: list[Segment]) -> dict[str, Any]:
    """What is measured, for who goes on with it: the network by its groups and operators, and the threads."""
    operators = digest_of([segment.key for segment in segments])
    return {"network": network.space.digest(), "operators": operators, "threads": torch.get_num_threads()}


def _quality(
    table: LatencyTable, network: Network, held: np.ndarray, ms: np.ndarray, error: dict[str, Any]
) -> dict[str, Any]:
    """What the table says of the full network, and how far off it is."""
    return {
        "scale": table.scale,
        "offset_ms": table.offset_ms,
        "interpolation": _interpolation(table, held, ms),
        "error": error,
        "full_ms": float(table.predict_ms(network.space.widths[None])[0]),
    }


def _enough(network: Network, args: tuple, kwargs: dict[str, Any], repeats: Repeats) -> int:
    with modes_restored(network.model):
        network.model.eval()
        (full_ms,) = medians([lambda: network.model(*args, **kwargs)], repeats, network.device)
    return int(np.clip(SPENT_MS / full_ms, REPEATS, MOST_REPEATS))


def _shrinking(network: Network, constraints: Constraints) -> list[Unit]:
    """Raises ConfigError where nothing can shrink."""
    units = units_of(network.space, constraints)
    if not any(len(u.levels) > 1 for u in units):
        raise ConfigError(
            "the network has no channel group that can shrink under these constraints, so its latency is one number: "
            "`metaprune inspect MODEL` says what is locked and why"
        )
    return units


def _end_to_end(
    table: LatencyTable, timer: Timer, design: Design, structures: int, say: Progress
) -> tuple[int, dict[str, Any]]:
    """Fit scale and offset to some whole networks; returns how many, and the table's error on `structures` others."""
    fitted = min(CALIBRATION // 2 if timer.few_widths else CALIBRATION, structures)
    say(f"tables fitted; {fitted} + {structures} whole networks to measure")
    widths = design.random(fitted + structures)
    measured = timer.whole(widths)
    table.scale, table.offset_ms = _calibrated(table.predict_ms(widths[:fitted]), measured[:fitted])
    return fitted, _errors(table.predict_ms(widths[fitted:]), measured[fitted:])


def _check_numbers(**numbers: int | None) -> None:
    least = {"points": 2, "structures": 2}
    for name, value in numbers.items():
        if value is not None and value < least.get(name, 1):
            raise ConfigError(f"{name} is {value}; a latency table takes at least {least.get(name, 1)}")


class Design:
    """Structures to measure, as widths int64 [n, groups]. `few`: that many widths per unit instead of any."""

    def __init__(self, full: np.ndarray, units: list[Unit], few: int | None, rng: Rng):
        self._full, self._units, self._few, self._rng = full, units, few, rng

    def training(self, count: int, name: str = "train") -> np.ndarray:
        """Draw widths from small to full, spread evenly; many fill whole blocks of channels, as pruned networks' do."""
        draw = self._rng.child(name).numpy()
        levels = [draw.permutation(np.linspace(0, 1, count)) for _ in self._units]  # a Latin hypercube
        points = np.tile(self._full, (count, 1))
        for unit, shares in zip(self._units, levels, strict=True):
            choices = _spread(len(unit.levels), self._few)
            for row, share in enumerate(shares):
                level = int(choices[round(share * (len(choices) - 1))])
                kind = draw.random()
                if self._few is None and kind < 0.6:
                    level = _filled(unit, level, 16 if kind < 0.4 else 8)
                points[row, unit.groups] = unit.levels[level]
        return points

    def random(self, count: int, name: str = "whole") -> np.ndarray:
        """Draw a keep ratio per structure, even in 10..100%, and one per unit within 0.25 of it."""
        draw = self._rng.child(name).numpy()
        centres = draw.permutation(np.linspace(0.1, 1, count))
        points = np.tile(self._full, (count, 1))
        for row, centre in enumerate(centres):
            for unit in self._units:
                ratio = np.clip(centre + draw.uniform(-0.25, 0.25), 0, 1)
                points[row, unit.groups] = unit.levels[int(np.abs(unit.ratios() - ratio).argmin())]
        return points


def _spread(levels: int, few: int | None) -> np.ndarray:
    return np.arange(levels) if few is None else np.unique(np.linspace(0, levels - 1, min(few, levels)).round())


def _filled(unit: Unit, level: int, block: int) -> int:
    """The nearest level whose widths are whole blocks; the level itself if there is none."""
    whole = np.flatnonzero((unit.levels % block == 0).all(axis=1))
    return int(whole[np.abs(whole - level).argmin()]) if len(whole) else level


def _fit(
    segments: list[Segment], sizes: Sizes, widths: np.ndarray, ms: np.ndarray, points: int, blocks: tuple[int, ...]
) -> dict[str, Grid]:
    """One grid per key, from the samples of all its segments."""
    values, full = sizes.of(widths), sizes.of(sizes.full[None])
    members: dict[str, list[int]] = defaultdict(list)
    for s, segment in enumerate(segments):
        members[segment.key].append(s)
    grids = {}
    for key, places in members.items():
        first = segments[places[0]]
        wanted = blocks if first.contracts else (1,)
        columns = [[axis_values(a, values) for a in segments[s].axes] for s in places]
        at = np.concatenate([np.stack(c, axis=1) if c else np.zeros((len(widths), 0), np.int64) for c in columns])
        fulls = [int(axis_values(a, full)[0]) for a in first.axes]
        seen = np.maximum(np.concatenate([ms[:, s] for s in places]), 1e-6)
        grids[key] = fit_grid(fulls, at, seen, points=points, blocks=wanted)
    return grids


def _calibrated(predicted: np.ndarray, measured: np.ndarray) -> tuple[float, float]:
    """(scale, offset) of least relative squared error; the offset is never negative."""
    rows = np.stack([predicted / measured, 1 / measured], axis=1)
    scale, offset = np.linalg.lstsq(rows, np.ones(len(measured)), rcond=None)[0]
    if offset < 1e-9 or scale <= 0:
        return float(np.median(measured / predicted)), 0.0
    return float(scale), float(offset)


def _errors(predicted: np.ndarray, measured: np.ndarray) -> dict[str, Any]:
    off = np.abs(predicted / measured - 1)
    return {
        "structures": len(measured),
        "median_relative_error": float(np.median(off)),
        "p90_relative_error": float(np.quantile(off, 0.9)),
        "largest_relative_error": float(off.max()),
        "spearman": spearman(predicted, measured),
        "pairs": [[float(p), float(m)] for p, m in zip(predicted, measured, strict=True)],
    }


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation; ties share their mean rank."""
    ranks = []
    for x in (a, b):
        _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(counts) - (counts - 1) / 2)[inverse.reshape(-1)])
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _interpolation(table: LatencyTable, widths: np.ndarray, ms: np.ndarray) -> dict[str, Any]:
    """How far the tables are from segments at widths that no table was fitted to."""
    predicted, ms = table.segments_ms(widths), np.maximum(ms, 1e-6)
    return {
        "structures": len(widths),
        "median_relative_error_of_segments": float(np.median(np.abs(predicted / ms - 1))),
        "time_weighted_relative_error_of_segments": float(np.abs(predicted - ms).sum() / ms.sum()),
        "median_relative_error_of_sums": float(np.median(np.abs(predicted.sum(axis=1) / ms.sum(axis=1) - 1))),
    }


def _protocol(repeats: Repeats, points: int, count: int, fitted: int) -> dict[str, Any]:
    return {
        "warmup": repeats.warmup,
        "repeats": repeats.repeats,
        "statistic": "median; structures take turns, groups of them are scaled to one pace by a common structure",
        "clock": repeats.clock,
        "threads": torch.get_num_threads(),
        "points": points,
        "measured_structures": count,
        "calibration_structures": fitted,
        "random_structures": "a keep ratio per structure, even in 10..100%, and one per unit within 0.25 of it",
    }


def _circumstances(network: Network, args: tuple, kwargs: dict, runtime: str, batch: int) -> dict[str, Any]:
    device = network.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    if runtime == "onnxruntime":
        from metaprune.core.imports import import_optional

        versions["onnxruntime"] = import_optional("onnxruntime", "onnx").__version__
    inputs = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    return {
        "device": device.type,
        "device_name": name,
        "runtime": runtime,
        "batch": batch,
        "inputs": [[list(x.shape), str(x.dtype).removeprefix("torch.")] for x in inputs],
        "model": type(network.model).__name__,
        "versions": versions,
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
