"""Tables of the STAMP study, from the committed results; what was not run is left out."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
STUDY, SPEED = HERE / "resnet8.json", HERE / "speed.json"
RANGE, OTHERS, CHOICES = (HERE / f"{name}.json" for name in ("resnet8_range", "other_fits", "choices"))
DOMAINS, FULL = HERE / "domains.json", "full network, trained"
NO_RESULTS = "No results yet."
PRETRAINED = ("random, STAMP's widths, pretrained weights", "magnitude, STAMP's widths, pretrained weights")
CURVE = ("STAMP", "STAMP, blend 0.5", *PRETRAINED, "magnitude, uniform widths", "train, Taylor, train")
CORE = (
    *CURVE,
    "full fine-tuning",
    "STAMP's mask, pretrained weights",
    "random, STAMP's widths, STAMP's weights",
    "magnitude, STAMP's widths, STAMP's weights",
    "STAMP's structure, new weights",
    "STAMP, no adaptation",
)


def study_rows(
    seeds: Collection[str] | None = None, study: Path = STUDY
) -> dict[tuple[str, str, str], list[dict[str, Any]]]:
    """(target, budget, contender) -> one row per seed."""
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for key, row in json.loads(study.read_text())["rows"].items():
        target, budget, seed, label = key.split("/", 3)
        if seeds is None or seed in seeds:
            found[target, budget, label].append(row)
    return found


def _spread(rows: list[dict[str, Any]]) -> str:
    values = [100 * r["accuracy"] for r in rows]
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]:.1f}% (1)"
    return f"{statistics.mean(values):.1f}% ({min(values):.1f} to {max(values):.1f}; {len(values)})"


def _table(rows: dict[tuple[str, str, str], list[dict[str, Any]]], budget: str, labels: list[str]) -> str:
    """Test accuracy by contender and target at one budget, best mean over the targets first."""
    config = json.loads(STUDY.read_text())["config"]
    targets = [t for t in config["targets"] if any(k[0] == t and k[2] in labels for k in rows)]

    def of(target: str, label: str) -> list[dict[str, Any]]:
        return rows.get((target, budget, label)) or rows.get((target, "100%", label)) or []

    def mean(label: str) -> tuple[int, float]:
        """Contenders that were not run on every target come last."""
        known = [statistics.mean(r["accuracy"] for r in of(t, label)) for t in targets if of(t, label)]
        return len(known), statistics.mean(known)

    lines = [
        f"| at {budget} of the parameters | {' | '.join(targets)} | parameters | training and search, MACs |",
        "|---|" + "---|" * (len(targets) + 2),
    ]
    for label in sorted(labels, key=mean, reverse=True):
        own = [r for t in targets for r in of(t, label)]
        macs = [sum(r.get(k, 0.0) for k in ("adapt_macs", "dense_macs", "training_macs")) for r in own]
        lines.append(
            f"| {label} | {' | '.join(_spread(of(t, label)) for t in targets)} "
            f"| {statistics.mean(r['params'] for r in own):,.0f} | {statistics.mean(macs):.1e} |"
        )
    return "\n".join(lines)


def targets_table(budget: str = "25%") -> str:
    """STAMP and its controls."""
    if not STUDY.exists():
        return NO_RESULTS
    rows, config = study_rows(), json.loads(STUDY.read_text())["config"]
    targets = [t for t in config["targets"] if any(k[0] == t for k in rows)]
    labels = [label for label in CORE if any(k[2] == label and k[1] in (budget, "100%") for k in rows)]
    lines = [_table(rows, budget, labels)]
    margin = config["conditioning"]
    return "\n".join(lines) + (
        f"\n\n{config['network']} at {'x'.join(map(str, config['shape']))}, meta-trained on "
        f"{' and '.join(name for name, _ in config['meta_training']['data'])}; {config['steps']} training steps of "
        f"{config['batch']} on the target for all, from "
        f"{', '.join(f'{n} images of {t}' for t, n in config['targets'].items() if t in targets)}; mean (lowest to "
        f"highest seed; number of seeds). Masks of one task agree to a Jaccard of {margin['jaccard_same']:.2f}, of "
        f"different tasks to {margin['jaccard_different']:.2f}."
    )


def peers_table(budget: str = "25%") -> str:
    """Methods that learn on the target itself, ablations, and masks of other targets; beside STAMP at the same seed."""
    rows = study_rows({"0"}) if STUDY.exists() else {}
    labels = list(dict.fromkeys(k[2] for k in rows if k[1] == budget and k[2] not in CORE))
    if not labels:
        return NO_RESULTS
    shown = {k: v for k, v in rows.items() if any((k[0], budget, label) in rows for label in labels)}
    return _table(shown, budget, ["STAMP", "full fine-tuning", *labels]) + "\n\nOne seed."


def masks_alike(budget: str = "25%", study: Path = STUDY) -> tuple[list[str], list[list[float | None]]]:
    """Targets, and the Jaccard index of STAMP's masks for every pair: of two seeds where a target meets itself."""
    rows = study_rows(study=study) if study.exists() else {}
    masks = {k[0]: [int(r["mask"], 16) for r in v] for k, v in rows.items() if k[1:] == (budget, "STAMP")}

    def alike(a: str, b: str) -> float | None:
        pairs = list(combinations(masks[a], 2)) if a == b else [(x, y) for x in masks[a] for y in masks[b]]
        return statistics.mean((x & y).bit_count() / (x | y).bit_count() for x, y in pairs) if pairs else None

    return list(masks), [[alike(a, b) for b in masks] for a in masks]


def masks_table(budget: str = "25%", study: Path = STUDY) -> str:
    """How much the mask follows the target."""
    names, values = masks_alike(budget, study)
    if len(names) < 2:
        return NO_RESULTS
    lines = [f"| Jaccard of STAMP's masks at {budget} | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    for name, row in zip(names, values, strict=True):
        lines.append(f"| {name} | {' | '.join('' if v is None else f'{v:.2f}' for v in row)} |")
    return "\n".join(lines)


def fits_table() -> str:
    """STAMP alone under artifacts that were meta-trained in different ways."""
    return _alone(OTHERS, "meta-trained", "test images")


def choices_table() -> str:
    """STAMP alone with other options, on the validation split: what defaults were chosen by."""
    return _alone(CHOICES, "options", "validation images")


def _alone(file: Path, what: str, judged: str, budget: str = "25%") -> str:
    fits = json.loads(file.read_text())
    targets = list(dict.fromkeys(k.split("/")[0] for f in fits.values() for k in f["rows"]))
    lines = [f"| {what} | masks of different tasks | {' | '.join(targets)} |", "|---" * (2 + len(targets)) + "|"]
    for name, fit in fits.items():
        cells = []
        for target in targets:
            place = f"{target}/{budget}/"
            cells.append(_spread([r for k, r in fit["rows"].items() if k.startswith(place) and k.endswith("/STAMP")]))
        lines.append(f"| {name} | {fit['conditioning']['jaccard_different']:.2f} | {' | '.join(cells)} |")
    return (
        "\n".join(lines)
        + f"\n\nAt {budget} of the parameters, {judged}: mean (lowest to highest seed; number of seeds). "
        "Masks of different reference tasks, of data as they are: their Jaccard index at half of the channels."
    )


def curve_table() -> str:
    """Accuracy against kept parameters."""
    if not RANGE.exists():
        return NO_RESULTS
    rows = study_rows(study=RANGE)
    budgets = sorted({k[1] for k in rows if k[1] != "100%"}, key=lambda b: -float(b[:-1]))
    lines = [f"| by kept parameters | {' | '.join(budgets)} |", "|---|" + "---|" * len(budgets)]
    for target in dict.fromkeys(k[0] for k in rows):
        for label in (label for label in CURVE if any(k[0] == target and k[2] == label for k in rows)):
            cells = [_spread(rows.get((target, budget, label), [])) for budget in budgets]
            lines.append(f"| {target}: {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


@dataclass(frozen=True)
class Phases:
    """What one target costs, mean over seeds: MACs and CPU seconds by phase, in the order of the run.

    guessed: CPU seconds that the rows hold as one figure, split by MACs.
    """

    macs: dict[str, float]
    cpu_s: dict[str, float]
    guessed: bool = False


ADAPT, DENSE, SMALL = "adapt", "dense training, Taylor scores", "train the small network"
RIVALS = ("STAMP", "train, Taylor, train")


def phases(rows: list[dict[str, Any]]) -> Phases:
    """Of one of `RIVALS`. A row without `dense_cpu_s` has one figure for dense training, scores and the small network's
    training."""

    def mean(key: str) -> float:
        return statistics.mean(float(r.get(key) or 0.0) for r in rows)

    first, key = (DENSE, "dense") if any("dense_macs" in r for r in rows) else (ADAPT, "adapt")
    macs = {first: mean(f"{key}_macs"), SMALL: mean("training_macs")}
    if first == ADAPT:  # the clock of a row starts after adaptation
        return Phases(macs, {ADAPT: mean("adapt_cpu_s"), SMALL: mean("cpu_s")})
    if all("dense_cpu_s" in r for r in rows):
        dense = mean("dense_cpu_s")
        return Phases(macs, {DENSE: dense, SMALL: mean("cpu_s") - dense})
    return Phases(macs, {k: mean("cpu_s") * v / sum(macs.values()) for k, v in macs.items()}, guessed=True)


def rivals(budget: str = "25%") -> dict[str, tuple[Phases, Phases]]:
    """Target -> STAMP and train-then-prune at the seeds that both have; "all targets" is the mean over all rows."""
    cells: dict[str, tuple[list[Any], list[Any]]] = {}
    every: tuple[list[Any], list[Any]] = ([], [])
    rows = json.loads(STUDY.read_text())["rows"] if STUDY.exists() else {}
    for key, row in rows.items():
        target, of, seed, label = key.split("/", 3)
        other = rows.get(f"{target}/{of}/{seed}/{RIVALS[1]}")
        if (of, label) == (budget, RIVALS[0]) and other is not None:
            for own, others in (cells.setdefault(target, ([], [])), every):
                own.append(row)
                others.append(other)
    if cells:
        cells["all targets"] = every
    return {name: (phases(own), phases(others)) for name, (own, others) in cells.items()}


def break_even(once: float, own: dict[str, float], other: dict[str, float]) -> float | None:
    """Targets after which meta-training is paid back: its cost / what each target saves; None: never."""
    saved = sum(other.values()) - sum(own.values())
    return once / saved if saved > 0 else None


def break_even_text(own: Phases, other: Phases) -> str:
    """`Meta-training, once: 3.84e+12 MACs, 475 s of wall time; paid back after 10 targets in MACs, ...`."""
    once, told = json.loads(STUDY.read_text())["config"]["meta_training"], []
    for unit, spent, a, b in (
        ("MACs", once["macs"], own.macs, other.macs),
        ("seconds", once["seconds"], own.cpu_s, other.cpu_s),
    ):
        targets = break_even(spent, a, b)
        told.append(f"never in {unit}" if targets is None else f"after {targets:,.0f} targets in {unit}")
    return (
        f"Meta-training, once: {once['macs']:.2e} MACs, {once['seconds']:,.0f} s of wall time; paid back "
        f"{', '.join(told)} (wall time over CPU time saved)"
    )


def cost_table(budget: str = "25%") -> str:
    """From the pretrained network to the finished small one: STAMP against train, Taylor, train."""
    found = rivals(budget)
    if not found:
        return NO_RESULTS
    own, other = found["all targets"]
    macs, seconds = ([sum(getattr(p, kind).values()) for p in (own, other)] for kind in ("macs", "cpu_s"))
    return "\n".join(
        [
            "| one target | MACs | ratio | CPU s | ratio |",
            "|---|---|---|---|---|",
            f"| STAMP: encode, adapt, train the small network | {macs[0]:.2e} | {macs[0] / macs[1]:.2f} "
            f"| {seconds[0]:.0f} | {seconds[0] / seconds[1]:.2f} |",
            f"| train, Taylor, train | {macs[1]:.2e} | 1 | {seconds[1]:.0f} | 1 |",
            f"\n{break_even_text(own, other)}. CPU seconds include evaluation on the test split, cutting and proving.",
        ]
    )


def speed_table() -> str:
    """Time of a training step beside its MACs."""
    if not SPEED.exists():
        return NO_RESULTS
    report = json.loads(SPEED.read_text())
    kinds = list(next(iter(report["networks"].values())))
    head = f"step of batch {report['batch']}, one CPU thread: ms (share of the full step's time; of its MACs)"
    lines = [f"| {head} | {' | '.join(kinds)} |", "|---|" + "---|" * len(kinds)]
    for name, row in report["networks"].items():
        cells = []
        for kind in kinds:
            share = row[kind]["macs_ratio"]
            of = "" if share is None else f"; {share:.2f}"
            cells.append(f"{row[kind]['ms']:.0f} ({row[kind]['time_ratio']:.2f}{of})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def domains_table() -> str:
    """By target: test accuracy, CPU seconds and MACs of every way, mean over seeds."""
    found: dict[tuple[str, str, str], list[dict]] = {}
    for key, row in json.loads(DOMAINS.read_text())["rows"].items():
        if not key.startswith("headroom/"):
            label, target, share, _ = key.split("/")
            found.setdefault((target, share, label), []).append(row)
    labels = ("closed form", "closed form, trained", "train, Taylor, train")
    lines = [
        f"| target | parameters | {' | '.join(labels)} | full network, trained |",
        "|---" * (len(labels) + 3) + "|",
    ]
    for target, share in dict.fromkeys((t, s) for t, s, _ in found if s != "1"):
        cells = [_way(found.get((target, share, label), [])) for label in labels]
        lines.append(
            f"| {target} | {float(share):.0%} | {' | '.join(cells)} | {_way(found.get((target, '1', FULL), []))} |"
        )
    return (
        "\n".join(lines)
        + f"\n\nTest accuracy, {max(map(len, found.values()))} seed(s); CPU seconds; 10^9 MACs of training."
    )


def _way(rows: list[dict]) -> str:
    if not rows:
        return ""
    accuracies = [100 * r["accuracy"] for r in rows]
    spread = f" ({min(accuracies):.1f} to {max(accuracies):.1f})" if len(rows) > 1 else ""
    spread = f"{statistics.mean(accuracies):.1f}{spread}"
    seconds, macs = (statistics.mean(r[k] for r in rows) for k in ("cpu_s", "macs"))
    return f"{spread}; {seconds:.1f} s; {macs / 1e9:.0f}"


def domains_headroom_table() -> str:
    """By domain and share: validation accuracy of masks without a step, and after 20 and 150."""
    lines = [
        "| domain | parameters | steps | own mask | mean of others' | pooled | magnitude | random |",
        "|---" * 8 + "|",
    ]
    rows = json.loads(DOMAINS.read_text())["rows"]
    for row in (row for key, row in rows.items() if key.startswith("headroom/")):
        for domain, by in row["rows"].items():
            others = [steps for mask, steps in by.items() if mask in row["rows"]]
            for steps in by["own"]:
                foreign = [o[steps] for o in others if steps in o]
                cells = [by["own"][steps], statistics.mean(foreign) if foreign else None]
                cells += [by[mask][steps] for mask in ("pooled", "magnitude", "random")]
                shown = " | ".join("" if c is None else f"{100 * c:.1f}" for c in cells)
                lines.append(f"| {domain.removeprefix('builtin:')} | {row['share']:.0%} | {steps} | {shown} |")
    return "\n".join(lines)
