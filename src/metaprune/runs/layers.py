"""What every layer costs before and after a cut, for the record."""

from __future__ import annotations

from typing import Any

import numpy as np

from metaprune.graph.captured import module_of
from metaprune.latency import LatencyTable
from metaprune.surgery.cut import Pruned
from metaprune.values import Plan


def layer_costs(pruned: Pruned, table: LatencyTable | None) -> list[dict[str, Any]]:
    """MACs of one sample, and the table's milliseconds of one forward pass, of every layer that has any.

    A layer is a module that computes, in the order of the graph; what no module computes goes by its node's name.
    MACs add up to those of the network. So do milliseconds, but for the table's `offset_ms`.
    """
    network, space = pruned.network, pruned.network.space
    plans, times = (Plan(), pruned.plan), {}
    macs = [network.cost_model().macs_by_node(network.survivors(plan)) for plan in plans]
    if table is not None:
        ms = table.scale * table.segments_ms(np.stack([plan.widths(space) for plan in plans]))
        times = {segment.nodes[0]: ms[:, s] for s, segment in enumerate(table.segments)}
    layers: dict[str, dict[str, Any]] = {}
    for node in network.captured.graph.nodes:
        if node.name not in macs[0] and node.name not in times:
            continue
        name = module_of(node) or node.name
        row = layers.setdefault(name, {"name": name, "macs": [0, 0], "ms": None if table is None else [0.0, 0.0]})
        row["macs"] = [total + of.get(node.name, 0) for total, of in zip(row["macs"], macs, strict=True)]
        if node.name in times:
            row["ms"] = [total + float(t) for total, t in zip(row["ms"], times[node.name], strict=True)]
    return list(layers.values())
