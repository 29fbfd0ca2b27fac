"""The tables of score.json: accuracy after the cut and least squares, by what ranked the channels."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

SHARES = (0.5, 0.3)
LEARNED = ("learned, family unseen", "learned, data unseen", "learned, network unseen")
ALL = "nothing"


@cache
def report() -> Mapping[str, Any]:
    return json.loads((Path(__file__).parent / "score.json").read_text())


def zoo_table() -> str:
    """Mean accuracy over the zoo's unseen networks; how far the rule that never saw the family is ahead, paired."""
    rows = [r for r in report()["rows"] if r["family"] is not None]
    labels = list(dict.fromkeys(r["label"] for r in rows))
    found = {(r["network"], r["label"], r["share"]): r["accuracy"] for r in rows}
    networks = list(dict.fromkeys(r["network"] for r in rows))
    heads = [f"{s:.0%} of the MACs | family unseen is ahead by" for s in SHARES]
    lines = [f"| ranked by | {' | '.join(heads)} |", "|---" * (2 * len(SHARES) + 1) + "|"]
    for label in sorted(labels, key=lambda n: -statistics.mean(found[m, n, s] for m in networks for s in SHARES)):
        cells = []
        for share in SHARES:
            own = [found[n, label, share] for n in networks]
            ahead = [found[n, LEARNED[0], share] - a for n, a in zip(networks, own, strict=True)]
            cells += [f"{statistics.mean(own):.1%}", "" if label == LEARNED[0] else points(ahead)]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    dense = statistics.mean({r["network"]: r["dense"] for r in rows}.values())
    return "\n".join(lines) + (
        f"\n\n{len(networks)} networks, dense {dense:.1%}. Points ahead: mean over networks, and its standard error."
    )


def families_table() -> str:
    """How far the rules are ahead of the best plain criterion of each family and data set, at each share."""
    lines = [
        f"| unseen | networks | {' | '.join(f'{s:.0%}: best plain criterion | learned is ahead by' for s in SHARES)} |",
        "|---" * (2 * len(SHARES) + 2) + "|",
    ]
    for kind, learned in (("family", LEARNED[0]), ("data", LEARNED[1])):
        rows = [r for r in report()["rows"] if r["family"] is not None]
        for value in dict.fromkeys(r[kind] for r in rows):
            of_kind = [r for r in rows if r[kind] == value]
            cells = []
            for share in SHARES:
                by_label = _by_label([r for r in of_kind if r["share"] == share])
                plain = [n for n in by_label if not n.startswith(("learned", "start"))]
                best = max(plain, key=lambda n: statistics.mean(by_label[n].values()))
                ahead = [by_label[learned][n] - a for n, a in by_label[best].items()]
                cells += [f"{best}, {statistics.mean(by_label[best].values()):.1%}", points(ahead)]
            count = len({r["network"] for r in of_kind})
            lines.append(f"| {kind}: {value} | {count} | {' | '.join(cells)} |")
    return "\n".join(lines)


def networks_table() -> str:
    """Accuracy of networks trained independently, by label; mean over seeds (lowest to highest)."""
    rows = [r for r in report()["rows"] if r["family"] is None]
    places = list(dict.fromkeys((r["network"], r["share"]) for r in rows))
    lines = [f"| ranked by | {' | '.join(f'{n}, {s:.0%}' for n, s in places)} |", "|---" * (len(places) + 1) + "|"]
    by_place = {p: _lists([r for r in rows if (r["network"], r["share"]) == p]) for p in places}
    dense = {r["network"]: r["dense"] for r in rows}
    lines.append(f"| (dense) | {' | '.join(f'{dense[n]:.1%}' for n, _ in places)} |")
    labels = list(dict.fromkeys(r["label"] for r in rows))
    everywhere = [p for p in places if len(by_place[p]) == len(labels)]
    for label in sorted(labels, key=lambda n: -statistics.mean(statistics.mean(by_place[p][n]) for p in everywhere)):
        cells = []
        for place in places:
            best = max(statistics.mean(v) for v in by_place[place].values())
            own = statistics.mean(by_place[place].get(label, [float("nan")]))
            cells.append("" if own != own else f"**{own:.1%}**" if own == best else f"{own:.1%}")
        lines.append(f"| {label} | {' | '.join(cells)} |")
    draws = {n: len({r["seed"] for r in rows if r["network"] == n}) for n in dict.fromkeys(r["network"] for r in rows)}
    told = ", ".join(f"{name} {count}" for name, count in draws.items())
    return "\n".join(lines) + f"\n\nMeans over draws of calibration samples: {told}. 2,000 test images."


def rules_table() -> str:
    """Numbers of the rule that ships, and their range over the rules without a family or a data set."""
    rules = report()["rules"]
    others = [found["rule"] for left, found in rules.items() if left != ALL]
    lines = ["| feature | ships | others, least | others, most |", "|---" * 4 + "|"]
    ships = rules[ALL]["rule"]
    for name, number in ships.items():
        range_ = [rule[name] / _norm(rule) for rule in others]
        lines.append(f"| {name} | {number / _norm(ships):+.2f} | {min(range_):+.2f} | {max(range_):+.2f} |")
    return "\n".join(lines)


def points(differences: list[float]) -> str:
    """Mean of paired differences in points, and its standard error."""
    error = statistics.stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else float("nan")
    return f"{100 * statistics.mean(differences):+.1f} ± {100 * error:.1f}"


def _norm(rule: Mapping[str, float]) -> float:
    return sum(v * v for v in rule.values()) ** 0.5


def _by_label(rows: list[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        found.setdefault(row["label"], {})[row["network"]] = row["accuracy"]
    return found


def _lists(rows: list[Mapping[str, Any]]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(row["label"], []).append(row["accuracy"])
    return found
