"""What every layer costs, as rows of plain data. Any part of the record may be missing. No torch, no plotly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from metaprune.report.section import list_or_empty, mapping_or_empty
from metaprune.report.units import finite, milliseconds, quantity, share


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One layer; each cost is written before, after, and as the share that is left. ms: empty without a table."""

    name: str
    macs: tuple[str, ...]
    ms: tuple[str, ...]


def layer_rows(record: Mapping[str, Any]) -> list[LayerRow]:
    """List the layers in the order of the network: MACs, and milliseconds where a latency table was attached."""
    rows = []
    for layer in map(mapping_or_empty, list_or_empty(record.get("layers"))):
        macs, ms = _cells(layer, "macs", quantity), _cells(layer, "ms", milliseconds)
        if macs or ms:
            rows.append(LayerRow(str(layer.get("name", "?")), macs, ms))
    return rows


def _cells(layer: Mapping[str, Any], cost: str, text: Any) -> tuple[str, ...]:
    numbers = [number for value in list_or_empty(layer.get(cost)) if (number := finite(value)) is not None]
    if len(numbers) != 2:
        return ()
    before, after = numbers
    return (text(before), text(after), share(after, before, 0) if before else "")
