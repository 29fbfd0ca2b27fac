"""How far does a smaller vocabulary carry, before any channel goes? SmolLM2-135M on the Brown corpus.

    OMP_NUM_THREADS=1 python benchmarks/language/vocabulary_first.py --out benchmarks/language/vocabulary_first.json

Get the data first: `metaprune data get brown smollm2-135m`. The tokens that occur in the training texts stay; what is
then over the budget goes as in the row "activation" of study.py. Other texts may be cut into more tokens by the smaller
vocabulary. So the perplexity is of a token of the dense one: of the same held-out text, over as many tokens.
Each row is written as it comes, and the same command continues.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from choices import Choices
from study import CALIBRATION, LENGTH, TEST
from torch.nn.functional import cross_entropy

import metaprune as mp
from metaprune.core.imports import allow_torchvision_import, import_optional
from metaprune.data.text import TokenSequences
from metaprune.models import create
from metaprune_datasets.files import cached_files
from metaprune_datasets.text import corpus

ROWS = (("90%", 2), ("80%", 5), ("80%", 2))  # share of the parameters, how often a token occurs that stays


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    allow_torchvision_import()
    tokenizer = import_optional("transformers", "hf").AutoTokenizer.from_pretrained(cached_files("smollm2-135m"))
    model = create("builtin:smollm2-135m").eval()
    train, _, test = corpus("brown", length=LENGTH)
    held_out = [tokenizer.decode(ids) for ids in test.take(TEST).ids]
    seen = [tokenizer.decode(ids) for ids in train.ids]
    environment = {"torch": torch.__version__, "python": platform.python_version(), "threads": 1}
    if options.out.exists():
        report = json.loads(options.out.read_text())
    else:
        report = {"dense": perplexity(model, tokenizer, held_out), "environment": environment, "rows": []}
    done = {(row["budget"], row["min_count"]) for row in report["rows"]}
    for budget, often in (row for row in ROWS if row not in done):
        began = time.process_time()
        small = mp.prune_vocabulary(model, tokenizer, corpus=seen, min_count=often)
        row: dict[str, Any] = {
            "budget": budget,
            "min_count": often,
            "tokens": len(small.kept),
            "proof_error": small.error,
        }
        row |= {"vocabulary_share": small.params[1] / small.params[0]}
        row["vocabulary_alone"] = perplexity(small.model, small.tokenizer, held_out)
        cut, share = narrowed(small, budget)
        row |= {"params_share": share, "perplexity": perplexity(cut, small.tokenizer, held_out)}
        report["rows"].append({**row, "cpu_s": round(time.process_time() - began, 1)})
        print(report["rows"][-1], flush=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n")


def narrowed(small: Any, budget: str) -> tuple[torch.nn.Module, float]:
    """Neurons of the MLPs go until the budget of the dense network is met, if it is not yet."""
    with tempfile.TemporaryDirectory() as folder:
        small.tokenizer.save_pretrained(folder)
        train, val, _ = corpus("brown", Path(folder) / "tokenizer.json", LENGTH)
    ids = train.ids[torch.randperm(len(train), generator=mp.Rng(0, ("study",)).torch())[:CALIBRATION]]
    network = mp.trace(small.model.eval(), (), {"input_ids": ids[:2]})
    data = mp.as_data((TokenSequences(ids), val.take(4)), objective="next_token")
    bound = mp.Budget(params=int(float(budget.rstrip("%")) / 100 * small.params[0]))
    plan = Choices(network, data, ids, 0).plan("activation", bound)
    model = mp.cut(network, plan, form="module", verify=False).model
    return model, network.cost(plan).params / small.params[0]


@torch.no_grad()
def perplexity(model: Any, tokenizer: Any, texts: list[str]) -> float:
    """Of texts of LENGTH tokens of the dense vocabulary, by token of that."""
    total = 0.0
    for text in texts:
        ids = torch.tensor([tokenizer.encode(text)])
        total += float(cross_entropy(model(input_ids=ids).logits[0, :-1], ids[0, 1:], reduction="sum"))
    return round(math.exp(total / (len(texts) * (LENGTH - 1))), 2)


if __name__ == "__main__":
    main()
