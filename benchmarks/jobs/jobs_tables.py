"""The table of benchmarks/jobs/results.json."""

from __future__ import annotations

import json
from pathlib import Path

TITLES = {
    "clothes": "image classification, ResNet-8, Fashion-MNIST",
    "two_garments": "multi-label, ResNet-8, two garments side by side",
    "angle": "regression, ResNet-8, angle of a garment in radians",
    "animals": "segmentation, small U-Net, animals on noise",
    "faces": "outputs of a detector, CenterFace, smileys",
    "language": "next token, SmolLM2-135M, Brown corpus",
}


def jobs_table() -> str:
    """Every job's primary metric at its three moments, by recipe, and whether `prune` gave the same."""
    rows = json.loads(Path(__file__).with_name("results.json").read_text())
    lines = [
        "| task | method, recovery | metric | before | cut | recovered | MACs, parameters left | s | `prune` gives |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, title in TITLES.items():
        if name not in rows:
            continue
        row = rows[name]
        recipe, metric = row["recipe"], row["recipe"]["metric"]
        shares = f"{recipe['share']['macs']:.1%}, {recipe['share']['params']:.1%}"
        moments = " | ".join(_text(recipe[part], metric) for part in ("dense", "cut", "recovered"))
        lines.append(
            f"| [{title}](../examples/jobs/{name}.toml) | {row['method']}, {row['recover']} | {metric['label']} "
            f"| {moments} | {shares} | {recipe['seconds']:.0f} | {_agreement(row)} |"
        )
    return "\n".join(lines)


def taylor_table() -> str:
    """The jobs by `taylor`, whose criterion is per sample, beside the same jobs by `taylor_batch`."""
    by_batch, by_sample = (
        json.loads(Path(__file__).with_name(name).read_text()) for name in ("taylor_batch.json", "results.json")
    )
    lines = ["| job, metric | by batch: cut, recovered | per sample: cut, recovered |", "|---|---|---|"]
    for name in by_batch:
        recipes = [rows[name]["recipe"] for rows in (by_batch, by_sample)]
        cells = [", ".join(_text(r[part], r["metric"]) for part in ("cut", "recovered")) for r in recipes]
        lines.append(f"| {TITLES[name]}: {recipes[0]['metric']['label']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _text(value: float, metric: dict) -> str:
    return f"{value:.2%}" if metric["percent"] else f"{value:.4g}"


def _agreement(row: dict) -> str:
    """Whether the call of `prune` gave the recipe's figures."""
    if "call" not in row:
        return "not run"
    recipe, call = row["recipe"], row["call"]
    if all(abs(recipe[part] - call[part]) <= 1e-6 * abs(recipe[part]) for part in ("dense", "cut", "recovered")):
        return f"the same, {call['seconds']:.0f} s"
    return " / ".join(_text(call[part], call["metric"]) for part in ("dense", "cut", "recovered"))
