"""What a latency table, or the runtime that it is of, says of widths that fill no whole blocks of channels."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from metaprune.core.rng import Rng
from metaprune.graph.captured import op_name
from metaprune.network import Network
from metaprune.search.units import units_of, widths_of
from metaprune.values import Constraints

BLOCK = 8  # channels that kernels work in
ONNX_RUNTIME_BLOCK = 4  # channels that its fast convolutions come in; measured in docs/how-to/milliseconds.md
STRUCTURES = 64
SLOWER = 1.05  # what a table's own error does not explain


def block_advice(network: Network, constraints: Constraints, runtime: str) -> str:
    """Say in a line that the widths which `constraints` allow are slower than multiples of 8; empty where they are not.

    Random structures are compared with themselves, every width rounded up: less time for more channels is sure loss.
    A table of ONNX Runtime holds a few widths only, and cannot tell; of that runtime it is known.

    Args:
        network: knows milliseconds, by `Network.with_latency`.
        runtime: that the table was measured with.
    """
    if runtime == "onnxruntime":
        if constraints.round_to % ONNX_RUNTIME_BLOCK == 0 or not _convolves(network):
            return ""
        return (
            f"convolutions whose channels are no multiple of {ONNX_RUNTIME_BLOCK} are slow in ONNX Runtime, which a "
            f"table of few widths cannot tell: set round_to={BLOCK}"
        )
    if constraints.round_to % BLOCK == 0:
        return ""
    rounded = replace(constraints, round_to=math.lcm(constraints.round_to, BLOCK))
    some, wider = _structures(network, constraints, rounded)
    metric = network.cost_model().metric
    slower = float(np.median(metric("latency_ms", some) / metric("latency_ms", wider)))
    if slower < SLOWER:
        return ""
    return (
        f"by the latency table, structures under round_to={constraints.round_to} take {slower:.2f} times as long as "
        f"with every width rounded up to a multiple of {BLOCK}: set round_to={BLOCK}"
    )


def _structures(network: Network, constraints: Constraints, rounded: Constraints) -> tuple[np.ndarray, np.ndarray]:
    """Random widths under `constraints`, and the next wider ones under `rounded`: int64 [structures, groups] each."""
    units, wide_units = units_of(network.space, constraints), units_of(network.space, rounded)
    draw = Rng(0).child("block advice").numpy()
    most = [max(len(u.levels) - 1, 1) for u in units]  # full widths need no advice
    level = draw.integers(0, most, (STRUCTURES, len(units)))
    wide_level = np.zeros_like(level)
    for u, (unit, wide) in enumerate(zip(units, wide_units, strict=True)):
        at = np.searchsorted(wide.levels[:, 0], unit.levels[level[:, u], 0])
        wide_level[:, u] = np.minimum(at, len(wide.levels) - 1)
    some = widths_of(network.space, units, level)
    return some, np.maximum(some, widths_of(network.space, wide_units, wide_level))


def _convolves(network: Network) -> bool:
    nodes = network.captured.graph.nodes
    return any(n.op == "call_function" and op_name(n.target).startswith("conv") for n in nodes)
