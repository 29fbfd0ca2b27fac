"""Is a cut language model as much faster as its MACs say? SmolLM2-135M, batch 1: a prompt, and tokens with a cache.

    OMP_NUM_THREADS=1 python benchmarks/language/speed.py --out benchmarks/language/speed.json

Get the data first: `metaprune data get brown smollm2-135m`. Dense and cut take turns; medians of CPU seconds, as others
may use the machine. Which neurons or layers went does not matter here, only how many: magnitude, and the middle ones.
Each row is written as it comes, and the same command continues.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from choices import NEURONS, UNIFORM
from torch import Tensor, nn

import metaprune as mp
from metaprune.core.imports import allow_torchvision_import
from metaprune.models import create
from metaprune.protocol.method import PruneTask
from metaprune.protocol.registry import create_method
from metaprune_datasets.text import corpus

PROMPT, NEW, TURNS = 256, 16, 5  # tokens, tokens, measurements of each network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budgets", nargs="+", default=["80%", "60%"], help="shares of the parameters")
    options = parser.parse_args()
    torch.set_num_threads(1)
    allow_torchvision_import()
    *_, test = corpus("brown", length=PROMPT)
    dense = create("builtin:smollm2-135m").eval()
    network = mp.trace(dense, (), {"input_ids": test.take(2).ids})
    environment = {"torch": torch.__version__, "python": platform.python_version(), "threads": 1}
    report: dict[str, Any] = {"prompt": PROMPT, "new": NEW, "turns": TURNS, "environment": environment, "rows": []}
    if options.out.exists():
        report = json.loads(options.out.read_text())
    done = {(row["dropped"], row["budget"]) for row in report["rows"]}
    plans = {"neurons": by_width, "layers": by_depth}
    for budget, kind in itertools.product(options.budgets, plans):
        if (kind, budget) in done:
            continue
        plan = plans[kind](network, budget)
        cut = mp.cut(network, plan, form="module", verify=False).model
        whole, left = network.cost(), network.cost(plan)
        shares = {"params_share": left.params / whole.params, "macs_share": left.macs / whole.macs}
        row = {"dropped": kind, "budget": budget, **shares, **measured(dense, cut, test.take(1).ids)}
        report["rows"].append(row)
        print(row, flush=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n")


def by_width(network: mp.Network, budget: str) -> mp.Plan:
    task = PruneTask(network, None, NEURONS)
    return create_method("magnitude", UNIFORM).propose(task, mp.Budget(params=budget), mp.Rng(0)).plan


def by_depth(network: mp.Network, budget: str) -> mp.Plan:
    """As few layers from the middle as the budget takes."""
    bound = mp.Budget(params=budget).bounds(network.cost())["params"]
    count = len(network.model.model.layers)  # type: ignore[union-attr]
    keep: dict[str, Any] = {}
    for i in sorted(range(count), key=lambda i: abs(i - count // 2)):
        if network.cost(mp.Plan(keep)).params <= bound:
            break
        names = (f"model.layers.{i}.self_attn", f"model.layers.{i}.mlp")
        keep |= {g: () for b in network.branches if b.name in names for g in b.groups}
    return mp.Plan(keep)


@torch.no_grad()
def measured(dense: nn.Module, cut: nn.Module, ids: Tensor) -> dict[str, Any]:
    """Tokens per CPU second of both networks, of a prompt and of new tokens behind it."""

    def prompt(model: Any) -> None:
        model(input_ids=ids, use_cache=False)

    def new(model: Any, count: int) -> None:
        fixed = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False, "use_cache": True}
        model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **fixed)

    prompts = alternated(prompt, dense, cut)
    one, more = (alternated(partial(new, count=count), dense, cut) for count in (1, 1 + NEW))
    made = [m - o for m, o in zip(more, one, strict=True)]
    return {
        "prompt_tokens_per_s": [round(PROMPT / s, 1) for s in prompts],
        "new_tokens_per_s": [round(NEW / s, 1) for s in made],
        "prompt_speedup": round(prompts[0] / prompts[1], 3),
        "new_speedup": round(made[0] / made[1], 3),
    }


def alternated(call: Callable[[nn.Module], None], *models: nn.Module) -> list[float]:
    """Median CPU seconds of each model, after one call of each that does not count."""
    spent: list[list[float]] = [[] for _ in models]
    for turn in range(TURNS + 1):
        for model, seconds in zip(models, spent, strict=True):
            began = time.process_time()
            call(model)
            if turn:
                seconds.append(time.process_time() - began)
    return [statistics.median(seconds) for seconds in spent]


if __name__ == "__main__":
    main()
