"""The tables of benchmarks/language."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def read(name: str) -> dict[str, Any]:
    return json.loads((HERE / f"{name}.json").read_text())


def cut_table() -> str:
    """Perplexity right after the cut, by choice and budget; mean over seeds with lowest and highest."""
    report = read("smollm2")
    rows = report["rows"]
    budgets = list(dict.fromkeys(row["budget"] for row in rows))
    lines = [f"| perplexity right after the cut | {' | '.join(budgets)} |", "|---" * (len(budgets) + 1) + "|"]
    lines.append(f"| dense | {' | '.join([format(report['dense'], '.1f')] * len(budgets))} |")
    for label, kind in dict.fromkeys((row["label"], row["compensate"]) for row in rows):
        of_label = [row for row in rows if (row["label"], row["compensate"]) == (label, kind)]
        cells = [_perplexities([row for row in of_label if row["budget"] == budget]) for budget in budgets]
        lines.append(f"| {label}{'' if kind == 'none' else ', least squares'} | {' | '.join(cells)} |")
    tokens = report["tokens"]
    return "\n".join(lines) + (
        f"\n\nShares are of the parameters. Perplexity on {tokens['test']:,} tokens of held-out documents, choices on "
        f"{tokens['calibration']:,} tokens of others; mean (lowest to highest) where there are three seeds, else one."
    )


def recovery_table() -> str:
    """Perplexity before and after the recovery, and as a multiple of the dense one."""
    report = read("smollm2")
    lines = ["| choice | parameters | cut | recovered | of dense | CPU seconds |", "|---" * 6 + "|"]
    for row in report["rows"]:
        if row["recover"] and "recovered" in row:
            label = row["label"] + ("" if row["compensate"] == "none" else ", least squares")
            share = f"{row['params_share']:.1%}"
            figures = f"{row['perplexity']:,.1f} | {row['recovered']:,.1f} | {row['recovered'] / report['dense']:.2f}"
            lines.append(f"| {label} | {share} | {figures} | {row['recover_cpu_s']:.0f} |")
    return "\n".join(lines) + (
        f"\n\nDense: {report['dense']:.1f}. LoRA of rank 16 on the logits of the dense network, without labels: "
        f"{report['tokens']['recovery']:,} tokens, once. One seed."
    )


def speed_table() -> str:
    report = read("speed")
    lines = [
        "| dropped | parameters | MACs | prompt: tokens/s | faster | of the MACs | new: tokens/s, cached | faster |",
        "|---" * 8 + "|",
    ]
    for row in report["rows"]:
        (dense, cut), (dense_new, cut_new) = row["prompt_tokens_per_s"], row["new_tokens_per_s"]
        share = row["prompt_speedup"] * row["macs_share"]
        lines.append(
            f"| {row['dropped']} | {row['params_share']:.1%} | {row['macs_share']:.1%} | {dense:.0f} to {cut:.0f} "
            f"| {row['prompt_speedup']:.2f}x | {share:.0%} | {dense_new:.1f} to {cut_new:.1f} "
            f"| {row['new_speedup']:.2f}x |"
        )
    return "\n".join(lines) + (
        f"\n\nBatch 1, one thread, prompts of {report['prompt']} tokens, {report['new']} new ones with a cache; dense "
        f"and cut in turns, medians of {report['turns']}, in CPU seconds. Of the MACs: speed-up times the MACs' share."
    )


def encoder_table() -> str:
    report = read("minilm")
    lines = [
        "| half of the layers' parameters | cosine to dense | found first | cosine, trained | found first, trained |",
        "|---" * 5 + "|",
        f"| dense | 1 | {report['dense']['found_first']:.1%} | | |",
    ]
    by_row = {(row["label"], row["recover"]): row for row in report["rows"]}
    for label in dict.fromkeys(row["label"] for row in report["rows"]):
        cells = []
        for kind in ("none", "finetune"):
            row = by_row.get((label, kind))
            cells += [f"{row['cosine']:.3f}", f"{row['found_first']:.1%}"] if row else ["", ""]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    sentences = report["sentences"]
    worst = max(row["proof_error"] for row in report["rows"])
    return "\n".join(lines) + (
        f"\n\n{sentences['calibration']} sentences and passages without labels; {sentences['test_passages']} passages "
        f"of other texts, each sought by the sentence before it. Trained: {report['epochs']:g} epochs on the same "
        f"sentences, towards the dense embeddings. One seed. Errors of the proofs at most {worst:.0e}."
    )


def _perplexities(rows: list[dict[str, Any]]) -> str:
    """Of one choice at one budget: rows that differ in their seed, or in what followed the cut."""
    found = {row["seed"]: row["perplexity"] for row in rows if "perplexity" in row}
    if not found:
        errors = [row["error"] for row in rows if "error" in row]
        return f"fails: {errors[0][:60]}" if errors else ""
    values = [*found.values()]
    mean = f"{statistics.mean(values):,.1f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):,.1f} to {max(values):,.1f})"


def vocabulary_first_table() -> str:
    report = read("vocabulary_first")
    lines = [
        "| budget | a token stays that occurs | parameters | perplexity | with neurons | perplexity | of dense |",
        "|---" * 7 + "|",
        f"| dense | | | {report['dense']:.1f} | | | |",
    ]
    for row in report["rows"]:
        alone = f"{row['vocabulary_share']:.1%} | {row['vocabulary_alone']:.1f}"
        whole = f"{row['params_share']:.1%} | {row['perplexity']:.1f} | {row['perplexity'] / report['dense']:.2f}"
        lines.append(f"| {row['budget']} | {row['min_count']} times | {alone} | {whole} |")
    return "\n".join(lines) + (
        "\n\nBy token of the dense vocabulary, on the same held-out text; counted in the training texts alone."
    )
