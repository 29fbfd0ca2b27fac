"""How much of SmolLM2-135M goes with the tokens that the Brown corpus does not use? Proof and tokens of its texts.

    python benchmarks/accuracy/vocabulary.py --out benchmarks/accuracy/vocabulary.json

Get the data first: `metaprune data get brown smollm2-135m`.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

import torch

import metaprune as mp
from metaprune.core.imports import import_optional
from metaprune.models import create
from metaprune_datasets.files import cached_files

COUNTED = 50  # texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers = import_optional("transformers", "hf")
    model = create("builtin:smollm2-135m")
    tokenizer = transformers.AutoTokenizer.from_pretrained(cached_files("smollm2-135m"))
    lines = (cached_files("brown") / "texts.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines]

    def tokens(encoder: object) -> int:
        return sum(len(encoder.encode(text)) for text in texts[:COUNTED])  # type: ignore[attr-defined]

    rows = []
    for min_count in (1, 2, 10):
        began = time.process_time()
        small = mp.prune_vocabulary(model, tokenizer, corpus=texts, min_count=min_count)
        spent = round(time.process_time() - began, 1)
        figures = {"kept": len(small.kept), "params": small.params[1], "proof_error": small.error}
        rows.append({"min_count": min_count, **figures, "tokens": tokens(small.tokenizer), "cpu_s": spent})
        print(rows[-1], flush=True)
    report = {
        "texts": len(texts),
        "counted_texts": COUNTED,
        "environment": {"torch": torch.__version__, "python": platform.python_version(), "threads": 1},
        "dense": {"kept": len(tokenizer), "params": small.params[0], "tokens": tokens(tokenizer)},
        "rows": rows,
    }
    options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
