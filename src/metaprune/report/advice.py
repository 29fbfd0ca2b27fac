"""What a reader does with a record: how sure its quality is, whether time follows the cost, and what comes next.

Imports neither torch nor plotly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from metaprune.report.metric import MetricView
from metaprune.report.units import finite, milliseconds

Record = Mapping[str, Any]
_Z = 1.96  # of 95%
_BLOCK = 8  # channels that kernels work in
_LAGS = 0.8  # share of the saving in MACs that time follows


def share_interval(right: float, samples: float) -> tuple[float, float]:
    """Bound a share that `samples` independent samples showed, at 95% (Wilson, JASA 1927)."""
    centre = right + _Z**2 / (2 * samples)
    reach = _Z * math.sqrt(right * (1 - right) / samples + _Z**2 / (4 * samples**2))
    scale = 1 + _Z**2 / samples
    return (centre - reach) / scale, (centre + reach) / scale


def interval_text(metric: MetricView, value: float, samples: float | None) -> str:
    """Say how sure an accuracy is; of other metrics nobody knows without their samples."""
    if not samples or metric.name != "accuracy":
        return ""
    low, high = share_interval(value, samples)
    return f", after: {metric.text(low, 1)} to {metric.text(high, 1)} (95%)"


def speed_advice(record: Record) -> str:
    """Say whether milliseconds follow the MACs, and what to try where they do not; empty without both."""
    latency, cost = record.get("latency_ms") or {}, record.get("cost") or {}
    times = [finite(latency.get(when)) for when in ("before", "after")]
    macs = [finite((cost.get(when) or {}).get("macs")) for when in ("before", "after")]
    if not all(times) or not all(macs):
        return ""
    faster, fewer = float(times[0] or 0) / float(times[1] or 1), float(macs[0] or 0) / float(macs[1] or 1)
    said = f"{faster:.2f} times as fast with {fewer:.2f} times fewer MACs"
    if faster >= _LAGS * fewer:
        return said
    groups: Sequence[Any] = (record.get("space") or {}).get("groups") or ()
    widths = [g.get("after") for g in groups if isinstance(g, Mapping) and g.get("after") != g.get("before")]
    odd = sum(isinstance(w, int) and w % _BLOCK != 0 for w in widths)
    if odd:
        return (
            f"{said}: {odd} of {len(widths)} narrowed groups are no multiple of {_BLOCK} wide, and kernels work in "
            f"blocks of channels. Try round_to={_BLOCK}, or a budget in latency_ms with a table of this device"
        )
    return f"{said}: what is left waits for memory or overhead. Try a larger batch, another runtime, or latency_ms"


def latency_detail(record: Record) -> str:
    """Say how milliseconds were measured: batch, threads, repeats, and their quartiles."""
    latency = record.get("latency_ms") or {}
    threads = "{} thread" if latency.get("threads") == 1 else "{} threads"
    counts = [("batch", "batch {}"), ("threads", threads), ("repeats", "{} repeats")]
    parts = [form.format(latency[key]) for key, form in counts if latency.get(key) is not None]
    quartiles = [_quartiles(latency.get(f"spread_{when}")) for when in ("before", "after")]
    if all(quartiles):
        parts.append(f"quartiles {quartiles[0]}, then {quartiles[1]}")
    return ", ".join(parts)


def _quartiles(spread: Any) -> str:
    """`12.1 to 12.9 ms` from the first and the last of the values; empty without two."""
    if not isinstance(spread, Sequence) or len(spread) < 2 or finite(spread[0]) is None or finite(spread[-1]) is None:
        return ""
    return f"{milliseconds(spread[0]).removesuffix(' ms')} to {milliseconds(spread[-1])}"


def next_steps(record: Record, folder: str) -> list[tuple[str, str]]:
    """(what, the exact line) for a network that was saved in `folder`; none for one that was not."""
    if not folder:
        return []
    steps = [
        ("load it in Python", f'model = metaprune.load("{folder}")'),
        ("measure and export it", f"metaprune export {folder} --format onnx"),
    ]
    if (record.get("recover") or {}).get("kind") in (None, "none", "bn"):
        steps.append(("recover quality", "the same command with --recover finetune, or your own training loop"))
    return steps
