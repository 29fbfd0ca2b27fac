"""Which samples a calibration reads, and how many of them fit into memory."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

from metaprune.core.errors import DataError
from metaprune.core.rng import Rng
from metaprune.data.loader_split import replayed
from metaprune.graph.shapes import TensorValue
from metaprune.network import Network
from metaprune.objective import Split
from metaprune.objective.batch import batch_size_of, call_arguments, share_of

Calls = list[tuple[tuple, dict[str, Any]]]
"""Batches as (args, kwargs) of the network."""

HELD_OUT = 4  # every fourth batch judges what the others say


def calibration_batches(network: Network, split: Split, samples: int, rng: Rng, batch_size: int = 64) -> Calls:
    """Draw `samples` samples of a split, shuffled by `rng`, in at least `HELD_OUT` batches on the network's device.

    Raises:
        DataError: fewer samples than `HELD_OUT`.
    """
    with suppress(TypeError):  # a stream has no length
        samples = min(samples, len(split))
    size = min(batch_size, max(1, samples // HELD_OUT))
    batches: list[Any] = []
    seen = 0
    with replayed(split, rng), rng.torch_global():
        for inputs, _ in split.batches(size, device=network.device, rng=rng):
            inputs = share_of(inputs, 0, samples - seen)
            batches.append(inputs)
            seen += batch_size_of(inputs)
            if seen >= samples:
                break
    if seen < HELD_OUT:
        raise DataError(f"{seen} samples are too few to calibrate with: give {HELD_OUT} or more")
    if len(batches) < HELD_OUT:  # a loader's batches are as large as they are
        part = seen // HELD_OUT
        batches = [share_of(i, k, k + part) for i in batches for k in range(0, batch_size_of(i), part)]
    return [call_arguments(inputs) for inputs in batches]


def judged_batches(
    network: Network, split: Split, judging: int, solving: int, rng: Rng, batch_size: int = 64
) -> tuple[tuple[Any, Any], Calls]:
    """Draw a batch (inputs, target) that judges, and other samples to solve with; a quarter judges at most.

    What is solved on the samples that judge it looks right whatever is missing: with fewer samples than inputs, a
    linear layer is fitted to them exactly.

    Raises:
        DataError: fewer samples than `HELD_OUT`.
    """
    with suppress(TypeError):  # a stream has no length
        judging = max(1, min(judging, len(split) // HELD_OUT))
    drawn: list[tuple[Any, Any]] = []
    seen = 0
    with replayed(split, rng), rng.torch_global():
        for inputs, target in split.batches(judging, device=network.device, rng=rng):
            drawn.append((inputs, target))
            seen += batch_size_of(inputs)
            if len(drawn) > 1 and seen >= judging + solving:
                break
    if seen < HELD_OUT:
        raise DataError(f"{seen} samples are too few to calibrate with: give {HELD_OUT} or more")
    if len(drawn) == 1:  # a loader's batches are as large as they are
        drawn = [share_of(drawn[0], 0, seen // HELD_OUT), share_of(drawn[0], seen // HELD_OUT, None)]
    judge, *others = drawn
    pieces = [share_of(x, k, k + batch_size) for x, _ in others for k in range(0, batch_size_of(x), batch_size)]
    return judge, [call_arguments(inputs) for inputs in pieces]


def affordable_samples(network: Network, wanted: int, sides: int, memory_bytes: int) -> int:
    """`wanted` samples, or as many as `sides` runs of the network can keep alive at once; `HELD_OUT` at least."""
    return max(HELD_OUT, min(wanted, memory_bytes // max(1, sides * live_bytes(network))))


def live_bytes(network: Network) -> int:
    """Most bytes of activations that one sample keeps alive in a pass of the full network; views count as copies."""
    held: dict[int, int] = {}
    most = 0
    for step in network.at().program().steps:
        value = step.node.meta.get("val")
        values = value if isinstance(value, (list, tuple)) else [value]
        tensors = [v for v in values if isinstance(v, TensorValue)]
        held[step.slot] = sum(math.prod(network.captured.concrete(v, 1)) * v.dtype.itemsize for v in tensors)
        most = max(most, sum(held.values()))
        for slot in step.free:
            held.pop(slot, None)
    return most
