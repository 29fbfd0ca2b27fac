"""The tables of networks met outside, from `outside.json`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

from coverage_tables import ENOUGH_PRUNABLE, KEEPS, macs_equal, module_free, proved, short

RESULTS = Path(__file__).parent / "outside.json"
TOLERANCE = 1e-9
COLUMNS = {
    "threads, uses": ("thread", "use"),
    "TinyNN": ("tinynn",),
    "mmrazor, nni, OTO": ("mmrazor", "nni", "oto"),
    "transformers": ("hf",),
    "ultralytics, smp, monai, diffusers": ("ultralytics", "smp", "monai", "diffusers"),
}
Row = dict[str, Any]


@cache
def tried() -> list[Row]:
    return json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []


def rows() -> list[Row]:
    return [r for r in tried() if "does_not_run" not in r]


def kind(row: Row) -> str:
    return row["network"].removeprefix("outside:").partition(" ")[0]


def enough(row: Row) -> bool:
    return row.get("prunable_share", 0) >= ENOUGH_PRUNABLE


def enough_free(row: Row) -> bool:
    """With outputs free to change their width, where they hold something."""
    return enough(row) or row.get("prunable_share_free", 0) >= ENOUGH_PRUNABLE


def refused(row: Row) -> bool:
    """By an error of our own that says why."""
    return not row.get("captured") and row.get("error", "").startswith("UntraceableError")


def judged(row: Row) -> bool | None:
    """Whether the second judge agrees; None where there is nothing to judge."""
    error = row.get("second_judge", {}).get("error")
    return None if error is None else error <= TOLERANCE


def all_proved(row: Row) -> bool:
    return all(proved(row, keep) for keep in KEEPS)


TESTS: dict[str, Callable[[Row], bool | None]] = {
    "captured": lambda r: bool(r.get("captured")),
    "of the others, refused with the reason": lambda r: None if r.get("captured") else refused(r),
    "graph form proved at 30, 50 and 90% kept": all_proved,
    "a second judge agrees with what is handed over at 50%": judged,
    "own class at free widths, 50% kept": module_free,
    "MACs as PyTorch counts them": macs_equal,
    f"at least {100 * ENOUGH_PRUNABLE:.0f}% of the parameters prunable": enough,
    "the same, outputs free to change their width": enough_free,
}


def _count(found: Iterable[Row], test: Callable[[Row], bool | None]) -> str:
    answers = [a for a in map(test, found) if a is not None]
    return f"{sum(answers)}/{len(answers)}" if answers else "-"


def outside_table() -> str:
    """Counts by where the networks were met."""
    if not rows():
        return "No results yet: see the command in benchmarks/README.md."
    columns = {title: [r for r in rows() if kind(r) in kinds] for title, kinds in COLUMNS.items()} | {"all": rows()}
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    lines.append(f"| networks | {' | '.join(str(len(found)) for found in columns.values())} |")
    for title, test in TESTS.items():
        lines.append(f"| {title} | {' | '.join(_count(found, test) for found in columns.values())} |")
    left_out = [r["network"].removeprefix("outside:") for r in tried() if "does_not_run" in r]
    note = f"\n\nNot counted, as they do not run where this was measured: {', '.join(left_out)}." if left_out else ""
    return "\n".join(lines) + note


def outside_rest_table() -> str:
    """One line per network that misses something, and why."""
    lines = ["| network | prunable | outputs free | why |", "|---|---|---|---|"]
    for row in rows():
        if all_proved(row) and enough(row) and judged(row) is not False:
            continue
        cells = [row["network"].removeprefix("outside:"), _percent(row.get("prunable_share"))]
        cells += [_percent(row.get("prunable_share_free")), why(row).replace("|", "/")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def why(row: Row) -> str:
    """What `explain()` says of the largest locked tensors, or why there is no cut."""
    if not row.get("captured"):
        return short(row.get("error") or row.get("reason") or "", 160)
    unproved = [cut.get("reason", "differs") for cut in row.get("graph", {}).values() if not cut["proved"]]
    if unproved:
        return short(unproved[0], 160)
    if judged(row) is False:
        return f"the second judge differs by {row['second_judge']['error']:.1e}"
    return short("; ".join(row.get("explained", [])), 160)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}%"
