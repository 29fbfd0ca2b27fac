"""What is left of a language model, right after the cut and after a short recovery? SmolLM2-135M, Brown corpus.

    OMP_NUM_THREADS=1 python benchmarks/language/study.py --out benchmarks/language/smollm2.json

Get the data first: `metaprune data get brown smollm2-135m`; needs `pip install -e .[bench,lora]`. Perplexity is of
held-out documents. The seed draws the text that choices are made on. Recovery: updates of low rank, on the logits of
the dense network alone, on other training text. Each row is written as it comes, and the same command continues.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from functools import cache
from pathlib import Path
from typing import Any

import torch
from choices import BATCH, Choices
from peers import PEERS, peer_model
from torch import nn

import metaprune as mp
from metaprune.calibration.batches import calibration_batches
from metaprune.calibration.compensate import compensate
from metaprune.core.imports import allow_torchvision_import
from metaprune.data.text import TokenSequences
from metaprune.models import create
from metaprune.recover.run import recover
from metaprune.train.evaluate import evaluate
from metaprune_datasets.text import corpus

LENGTH, CALIBRATION, RECOVERY, TEST = 128, 48, 64, 20  # tokens of a sequence, sequences
ADAPT = mp.RecoverConfig(
    kind="lora",
    lora_rank=16,
    temperature=1.0,
    distil_weight=1.0,
    train=mp.TrainConfig(epochs=1, batch_size=4, lr=1e-3, weight_decay=0.0, warmup_epochs=0.1, max_grad_norm=1.0),
)
BUDGETS = ("95%", "90%", "80%", "60%")
BOTH, WIDTH, MAGNITUDE = "width and depth: sensitivity", "width: sensitivity", "magnitude (L2)"
DEPTH, TAYLOR = "depth: sensitivity", "Torch-Pruning: Taylor (reads labels), neurons"
Row = tuple[str, str, int, str, bool]  # label, budget, seed, compensate, whether it is recovered


def wanted() -> list[Row]:
    """The rows, those that decide first."""
    cheap = ("random", MAGNITUDE, "activation", "ShortGPT's choice: layers by cosine")
    rows = [(label, budget, 0, "none", False) for label in cheap for budget in BUDGETS]
    rows += [(label, budget, 0, "none", False) for budget in BUDGETS for label in (BOTH, WIDTH)]
    rows += [(BOTH, budget, 0, "least-squares", True) for budget in ("90%", "80%")]
    rows += [(MAGNITUDE, budget, 0, "none", True) for budget in ("90%", "80%")]
    rows += [(label, budget, 0, "none", False) for label in reversed(PEERS) for budget in ("90%", "80%")]
    rows += [(DEPTH, budget, 0, "none", False) for budget in BUDGETS]
    rows += [(BOTH, "60%", 0, "least-squares", True), (MAGNITUDE, "60%", 0, "none", True)]
    rows += [(label, "90%", seed, "none", False) for seed in (1, 2) for label in ("activation", BOTH)]
    rows += [(TAYLOR, "60%", 0, "none", False)]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--labels", nargs="+", default=[], help="rows of these choices alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    allow_torchvision_import()
    study = Study()
    report = json.loads(options.out.read_text()) if options.out.exists() else study.new_report()
    keys = ("label", "budget", "seed", "compensate", "recover")
    done = {tuple(row[key] for key in keys) for row in report["rows"]}
    for row in wanted():
        if row not in done and (not options.labels or row[0] in options.labels):
            report["rows"].append({**dict(zip(keys, row, strict=True)), **study.row(*row)})
            print(report["rows"][-1], flush=True)
            options.out.write_text(json.dumps(report, indent=1) + "\n")


class Study:
    """The network, its text, and one row after the other."""

    def __init__(self) -> None:
        train, val, test = corpus("brown", length=LENGTH)
        self.train, self.val, self.test = train, val.take(4), test.take(TEST)
        self.model = create("builtin:smollm2-135m").eval()
        self.network = mp.trace(self.model, (), {"input_ids": test.take(2).ids})
        self.choices = cache(self._choices)

    def _data(self, seed: int) -> tuple[mp.Data, mp.Data, torch.Tensor]:
        """Text for choices and for recovery, from other sequences, as data; and the tokens of the first."""
        order = torch.randperm(len(self.train), generator=mp.Rng(seed, ("study",)).torch())
        chosen, other = self.train.ids[order].split([CALIBRATION, len(order) - CALIBRATION])
        parts = (TokenSequences(chosen), TokenSequences(other[:RECOVERY]))
        first, second = (mp.as_data((p, self.val, self.test), objective="next_token") for p in parts)
        return first, second, chosen

    def _choices(self, seed: int) -> Choices:
        data, _, ids = self._data(seed)
        return Choices(self.network, data, ids, seed)

    def new_report(self) -> dict[str, Any]:
        return {
            "question": "perplexity on held-out documents, right after the cut and after a short recovery",
            "tokens": {"calibration": CALIBRATION * LENGTH, "recovery": RECOVERY * LENGTH, "test": TEST * LENGTH},
            "length": LENGTH,
            "environment": {"torch": torch.__version__, "python": platform.python_version(), "threads": 1},
            "dense": self.perplexity(self.model),
            "rows": [],
        }

    def perplexity(self, model: nn.Module) -> float:
        data, _, _ = self._data(0)
        assert data.test is not None
        return round(evaluate(model, data.test, objective=data.objective, batch_size=BATCH)["perplexity"], 2)

    def row(self, label: str, budget: str, seed: int, kind: Any, is_recovered: bool) -> dict[str, Any]:
        """Figures of one row; CPU seconds of the choice are of what its budget did not share with another's."""
        began = time.process_time()
        if label in PEERS:
            model, figures = peer_model(label, self.model, self.choices(seed).ids, budget)
            if model is None:
                return figures
        else:
            model, figures = self._cut(label, budget, seed, kind, "module" if is_recovered else "graph")
        figures |= {"cpu_s": round(time.process_time() - began, 1), "perplexity": self.perplexity(model)}
        if is_recovered:
            began = time.process_time()
            _, data, _ = self._data(seed)
            recover(model, self.model, data, ADAPT, rng=mp.Rng(seed), progress=False)
            figures |= {"recover_cpu_s": round(time.process_time() - began, 1), "recovered": self.perplexity(model)}
        return figures

    def _cut(self, label: str, budget: str, seed: int, kind: Any, form: Any) -> tuple[nn.Module, dict[str, Any]]:
        choices, network = self.choices(seed), self.network
        plan = choices.plan(label, mp.Budget(params=budget))
        weights = {}
        if kind != "none":
            batches = calibration_batches(network, choices.data.train, CALIBRATION, mp.Rng(seed), batch_size=BATCH)
            weights = dict(compensate(network, plan, batches, kind=kind, rng=mp.Rng(seed)).weights)
        whole, left = network.cost(), network.cost(plan)
        dropped = [b.name for b in network.branches if all(not plan.keep.get(g, (0,)) for g in b.groups)]
        shares = {"params_share": round(left.params / whole.params, 4), "macs_share": round(left.macs / whole.macs, 4)}
        model = mp.cut(network, plan, weights=weights, form=form, verify=False).model
        return model, {**shares, "dropped": len(dropped)}


if __name__ == "__main__":
    main()
