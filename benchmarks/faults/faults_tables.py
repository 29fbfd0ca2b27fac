"""The table of the attempts to break metaprune, from `faults.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "faults.json"


def faults_table() -> str:
    """Tried, held and failed by area; the last rows are of areas that were tried once, after the rest was mended."""
    report = json.loads(RESULTS.read_text())
    rows = sorted(report["rows"], key=lambda row: row["held_out"])
    lines = ["| area | tried | held | failed | CPU s |", "|---|---|---|---|---|"]
    for row in rows:
        title = f"{row['area']} (kept for the end)" if row["held_out"] else row["area"]
        lines.append(_line(title, row["tried"], row["held"], row["cpu_s"]))
    tried, held, cpu_s = (sum(row[name] for row in rows) for name in ("tried", "held", "cpu_s"))
    return "\n".join([*lines, _line("**all**", tried, held, cpu_s)])


def _line(title: str, tried: int, held: int, cpu_s: float) -> str:
    return f"| {title} | {tried:,} | {held:,} | {tried - held:,} | {cpu_s:.0f} |"


def faults_rest_table() -> str:
    """What still fails, in its own words, those of one area and text together."""
    report: dict[str, Any] = json.loads(RESULTS.read_text())
    found: dict[tuple[str, str], list[str]] = {}
    for row in report["rows"]:
        for failed in row["failed"]:
            found.setdefault((row["area"], _cell(failed["fault"])), []).append(_cell(failed["attempt"]))
    lines = ["| area | attempt | what happened |", "|---|---|---|"]
    for (area, fault), attempts in found.items():
        more = f" and {len(attempts) - 1} more" if len(attempts) > 1 else ""
        lines.append(f"| {area} | `{attempts[0]}`{more} | {fault} |")
    return "\n".join(lines) if found else "Nothing fails."


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "/").replace("`", "'").split())[:160]
