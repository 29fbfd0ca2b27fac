"""The tables of docs/coverage.md, from `results.json`."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results.json"
SOURCES = {"timm": "timm", "torchvision": "torchvision", "hf": "transformers"}
TOOLS = ("metaprune", "torch-pruning", "torch-kirigami")
RULES = "metaprune keep_module"
KEEPS = ("0.3", "0.5", "0.9")
ENOUGH_PRUNABLE = 0.95
NO_RESULTS = "No results yet: `python benchmarks/coverage/run.py --out benchmarks/coverage/results.json`."
Row = dict[str, Any]
Test = Callable[[Row], bool | None]


@cache
def report() -> dict[str, Any] | None:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else None


def rows(tool: str) -> dict[str, Row]:
    found = report() or {"rows": []}
    return {r["network"]: r for r in found["rows"] if r["tool"] == tool}


# ------------------------------------------------------------------------------------------------ what a row says


def proved(row: Row, keep: str) -> bool | None:
    return row.get("graph", {}).get(keep, {}).get("proved", None if row.get("finished") else False)


def macs_equal(row: Row) -> bool | None:
    cuts = row.get("graph", {}).values()
    return all(c.get("macs_equal") for c in cuts) if cuts else None


def with_rules(row: Row, keep: str) -> bool | None:
    tried = rows(RULES).get(row["network"])
    return None if tried is None else bool(tried.get("module_rules", {}).get(keep, {}).get("proved"))


def rules_share(row: Row) -> float | None:
    return rows(RULES).get(row["network"], {}).get("rules", {}).get("prunable_share")


def module_free(row: Row) -> bool | None:
    return row["module_free"]["proved"] if "module_free" in row else None


def cut_cpu_s(row: Row) -> float | None:
    return row.get("graph", {}).get("0.5", {}).get("cut_cpu_s")


def unproved_cut_cpu_s(row: Row) -> float | None:
    return row.get("graph", {}).get("0.5", {}).get("cut_unproved_cpu_s")


def total_cpu_s(row: Row, cut: Callable[[Row], float | None] = cut_cpu_s) -> float | None:
    """Capture, analysis, cut and proof."""
    cut_s = cut(row)
    return None if cut_s is None else row["capture_cpu_s"] + row["analysis_cpu_s"] + cut_s


# ------------------------------------------------------------------------------------------------ summary


def _count(found: Iterable[Row], test: Test) -> str:
    answers = [a for a in map(test, found) if a is not None]
    return f"{sum(answers)}/{len(answers)}" if answers else "-"


def _least(values: Iterable[float | None]) -> str:
    known = [v for v in values if v is not None]
    return f"{100 * statistics.median(known):.1f}% ({100 * min(known):.1f}%)" if known else "-"


def _spread(values: Iterable[float | None], form: str = ".2f") -> str:
    known = [v for v in values if v is not None]
    return f"{statistics.median(known):{form}} ({max(known):{form}})" if known else "-"


def coverage_table() -> str:
    """Counts by source."""
    if report() is None:
        return NO_RESULTS
    ours = rows("metaprune")
    columns = {source: [r for n, r in ours.items() if n.startswith(f"{source}:")] for source in SOURCES if ours} | {
        "all": list(ours.values())
    }
    lines = [f"| | {' | '.join(SOURCES.get(c, c) for c in columns)} |", "|---" * (len(columns) + 1) + "|"]

    def add(title: str, cell: Callable[[list[Row]], str]) -> None:
        cells = [cell(found) for found in columns.values()]
        if any(c != "-" for c in cells):
            lines.append(f"| {title} | {' | '.join(cells)} |")

    add("networks", lambda found: str(len(found)))
    add("captured", lambda found: _count(found, lambda r: bool(r.get("captured"))))
    recorded = lambda r: not r["not_recorded"] if "not_recorded" in r else None  # noqa: E731
    add("by the recorder, without `torch.export`", lambda found: _count(found, recorded))
    for keep in KEEPS:
        add(f"graph form proved, {100 * float(keep):.0f}% kept", lambda f, k=keep: _count(f, lambda r: proved(r, k)))
    add("MACs of the cost model = MACs that PyTorch counts", lambda found: _count(found, macs_equal))
    add("module form at free widths, 50% kept", lambda found: _count(found, module_free))
    for keep in KEEPS:
        add(
            f"module form at widths its forward takes, {100 * float(keep):.0f}% kept",
            lambda f, k=keep: _count(f, lambda r: with_rules(r, k)),
        )
    add("prunable under those rules, median (least)", lambda found: _least(map(rules_share, found)))
    share = lambda r: r["prunable_share"] >= ENOUGH_PRUNABLE if "prunable_share" in r else None  # noqa: E731
    add(f"at least {100 * ENOUGH_PRUNABLE:.0f}% of the parameters prunable", lambda found: _count(found, share))
    none = lambda key: lambda r: not r[key] if key in r else None  # noqa: E731
    add("no operator without a rule", lambda found: _count(found, none("uncovered")))
    add("no row merged more than needed", lambda found: _count(found, none("over_merged")))
    add("no group of a single channel", lambda found: _count(found, none("one_atom_groups")))
    add("capture, CPU s: median (most)", lambda found: _spread(r.get("capture_cpu_s") for r in found))
    add("analysis, CPU s", lambda found: _spread(r.get("analysis_cpu_s") for r in found if r.get("captured")))
    add("cut at 50% without a proof, CPU s", lambda found: _spread(map(unproved_cut_cpu_s, found)))
    add("cut and proof at 50%, CPU s", lambda found: _spread(map(cut_cpu_s, found)))
    add("memory above the model's own, in MB", lambda found: _spread((_rise_mb(r) for r in found), ".0f"))
    add(
        "the same, times the model's own bytes (models over 10 MB)",
        lambda found: _spread(r.get("peak_rise_over_model") for r in found if r.get("model_bytes", 0) > 10e6),
    )
    for tool in TOOLS[1:]:
        _peer_lines(tool, columns, add)
    return "\n".join(lines) + "\n" + _footnote()


def coverage_summary_table() -> str:
    """What the README says of coverage: the counts that matter most, by source."""
    if report() is None:
        return NO_RESULTS
    ours, peer = rows("metaprune"), rows("torch-pruning")
    columns = {source: [r for n, r in ours.items() if n.startswith(f"{source}:")] for source in SOURCES}
    columns["all"] = list(ours.values())
    version = (report() or {})["environment"]["torch-pruning"]
    tests: dict[str, Test] = {
        "graph form proved at 30, 50 and 90% kept": lambda r: all(proved(r, k) for k in KEEPS),
        "own class proved at those shares, at widths its forward takes": lambda r: all(with_rules(r, k) for k in KEEPS),
        "MACs as PyTorch counts them": macs_equal,
        f"for comparison, torch-pruning {version} succeeds": lambda r: peer.get(r["network"], {}).get("passed"),
    }
    lines = [f"| | {' | '.join(SOURCES.get(c, c) for c in columns)} |", "|---" * (len(columns) + 1) + "|"]
    lines += [
        f"| {title} | {' | '.join(_count(found, test) for found in columns.values())} |"
        for title, test in tests.items()
    ]
    return "\n".join(lines)


def _rise_mb(row: Row) -> float | None:
    return row["peak_rise_bytes"] / 1e6 if "peak_rise_bytes" in row else None


def _peer_lines(tool: str, columns: dict[str, list[Row]], add: Callable[..., None]) -> None:
    theirs = rows(tool)
    if not theirs:
        return
    version = (report() or {})["environment"].get(tool, "")
    add(
        f"{tool} {version} succeeds",
        lambda found: _count([theirs[r["network"]] for r in found if r["network"] in theirs], lambda r: r["passed"]),
    )
    if tool != "torch-pruning":
        return
    both = {n for n, r in theirs.items() if r.get("passed")}
    shared = lambda found: [r for r in found if r["network"] in both and proved(r, "0.5")]  # noqa: E731
    unproved = lambda r: total_cpu_s(r, unproved_cut_cpu_s)  # noqa: E731
    add("on networks both do, metaprune with the proof, CPU s", lambda found: _spread(map(total_cpu_s, shared(found))))
    add("on networks both do, metaprune without it, CPU s", lambda found: _spread(map(unproved, shared(found))))
    add(
        f"on networks both do, {tool}, CPU s",
        lambda found: _spread(theirs[r["network"]]["cpu_s"] for r in shared(found)),
    )


def _footnote() -> str:
    found = report() or {}
    environment = found["environment"]
    versions = ", ".join(f"{p} {environment[p]}" for p in ("torch", "timm", "torchvision", "transformers"))
    caps = environment["caps_cpu_s"]
    limits = ", ".join(f"{tool} {caps[tool]}" for tool in TOOLS)
    return f"\n{versions}; one thread. CPU seconds a network may take: {limits}."


# ------------------------------------------------------------------------------------------------ every network


def coverage_all_table() -> str:
    """One line per network, then what was skipped."""
    found = report()
    if found is None:
        return NO_RESULTS
    ours, theirs = rows("metaprune"), [rows(t) for t in TOOLS[1:]]
    lines = [
        "| network | M params | groups | channels | prunable | proved at 30/50/90% | module, free | module, rules | "
        "capture s | analysis s | cut s | Torch-Pruning | kirigami | what is missing |",
        "|---" * 14 + "|",
    ]
    for name in [n for n in found["names"] if n in ours]:
        row = ours[name]
        cells = [
            name,
            f"{row['params'] / 1e6:.2f}" if "params" in row else "-",
            str(row.get("groups", "-")),
            str(row.get("channels", "-")),
            _percent(row.get("prunable_share")),
            " ".join(_mark(proved(row, k)) for k in KEEPS),
            _mark(module_free(row)),
            " ".join(dict.fromkeys(_mark(with_rules(row, k)) for k in KEEPS)),
            *[_seconds(row.get(k)) for k in ("capture_cpu_s", "analysis_cpu_s")],
            _seconds(cut_cpu_s(row)),
            *[_mark(peer[name].get("passed")) if name in peer else "-" for peer in theirs],
            "; ".join(missing(row, [p.get(name) for p in theirs])).replace("|", "/"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    notes = [f"- `{n}`: {note}" for n, note in found["notes"].items() if note != f"family {n}" and "reduced" in note]
    skipped = [f"- `{n}`: {reason}" for n, reason in found["skipped"].items()]
    text = "\n".join(lines)
    if notes:
        text += "\n\nMade smaller, because the family has no small variant:\n\n" + "\n".join(notes)
    return text + "\n\nSkipped:\n\n" + ("\n".join(skipped) or "none")


def missing(row: Row, peers: list[Row | None]) -> list[str]:
    """Reasons, ours first."""
    out = []
    if not row.get("captured"):
        out.append(f"not captured: {short(row.get('error') or row.get('reason') or '')}")
    for keep, cut in row.get("graph", {}).items():
        if not cut["proved"]:
            out.append(f"{keep}: {short(cut.get('reason', ''))}")
        elif not cut.get("macs_equal"):
            out.append(f"{keep}: {cut.get('macs')} MACs by the rules, {cut.get('macs_counted')} counted")
    if row.get("ended"):
        out.append(row["ended"])
    if row.get("uncovered"):
        out.append("no rule for " + ", ".join(f"{op} ({n})" for op, n in row["uncovered"].items()))
    if row.get("over_merged"):
        out.append(f"{row['over_merged']} rows over-merged")
    if row.get("one_atom_groups"):
        out.append(f"{row['one_atom_groups']} groups of one channel")
    if row.get("prunable_share", 1) < ENOUGH_PRUNABLE:
        out.append("locked: " + ", ".join(f"{reason} ({n})" for reason, n in row["lock_reasons"][:2]))
    if row.get("unused_params"):
        out.append(f"{row['unused_params']:,} parameters unused by the forward")
    if module_free(row) is False:
        out.append(f"module form: {short(row['module_free']['reason'])}")
    for tool, peer in zip(TOOLS[1:], peers, strict=True):
        if peer is not None and not peer.get("passed"):
            out.append(f"{tool}: {short(peer.get('reason', ''))}")
    return out


def short(text: str, limit: int = 110) -> str:
    text = re.sub(r"\s+", " ", text).strip().replace("VerificationError: no module form: ", "")
    return text if len(text) <= limit else text[: limit - 2] + ".."


def _mark(value: bool | None) -> str:
    return "-" if value is None else "yes" if value else "**no**"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}%"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
