"""What is left of a sentence encoder at half of its layers' parameters? all-MiniLM-L6-v2, passages of the Brown corpus.

    OMP_NUM_THREADS=1 python benchmarks/language/encoder.py --out benchmarks/language/minilm.json

Get the data first: `metaprune data get brown all-minilm-l6-v2`. No labels: what is cut and trained matches the dense
embeddings (`match_outputs`). Judged by the cosine to them, and by retrieval: a passage's first sentence has to find the
four that follow it among those of all test passages. Texts of the test are no others'. One seed. Each row is written
as it comes, and the same command continues.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, normalize
from torch.utils.data import Dataset

import metaprune as mp
from metaprune.core.imports import allow_torchvision_import, import_optional
from metaprune.models import create
from metaprune_datasets.files import cached_files

TOKENS, SENTENCES, PASSAGES, TEST_TEXTS, CALIBRATION = 64, 5, 3, 100, 384
SHARE, BATCH = 0.5, 32  # of the parameters of the encoder's layers
TRAIN = mp.TrainConfig(epochs=4, batch_size=BATCH, optimizer="adamw", weight_decay=0.0)
UNIFORM, MEASURED = {"allocate": "uniform"}, {"allocate": "sensitivity"}
ROWS: dict[str, dict[str, Any]] = {
    "random": {"method": "random", "method_options": {"widths": "uniform"}},
    "magnitude (L2)": {"method": "magnitude", "method_options": UNIFORM},
    "taylor": {"method": "taylor", "method_options": UNIFORM},
    "activation": {"method": "activation", "method_options": UNIFORM},
    "sensitivity (activation)": {"method": "activation", "method_options": MEASURED},
    "magnitude (L2), least squares": {"method": "magnitude", "method_options": UNIFORM, "compensate": "least-squares"},
    "taylor, least squares": {"method": "taylor", "method_options": UNIFORM, "compensate": "least-squares"},
    "auto: sensitivity, least squares": {"method": "auto"},
}
RECOVERED = ("magnitude (L2)", "auto: sensitivity, least squares")


class Encoder(nn.Module):
    """Tokens and mask [B, T] -> embeddings of length 1, [B, 384]: the mean over the tokens of a sentence."""

    def __init__(self, bert: nn.Module):
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.bert(input_ids, attention_mask).last_hidden_state
        mask = attention_mask[..., None].to(states.dtype)
        return normalize((states * mask).sum(1) / mask.sum(1), dim=-1)


class Sentences(Dataset):
    """Texts as samples of tokens and mask [T]."""

    def __init__(self, texts: list[str], tokenizer: Any):
        self.tokens = tokenizer(texts, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt")

    def __len__(self) -> int:
        return len(self.tokens["input_ids"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: self.tokens[name][index] for name in ("input_ids", "attention_mask")}

    @torch.no_grad()
    def embedded_by(self, model: nn.Module) -> Tensor:
        parts = [self[list(range(i, min(i + BATCH, len(self))))] for i in range(0, len(self), BATCH)]  # type: ignore
        return torch.cat([model(**part) for part in parts])


def passages() -> list[list[tuple[str, str]]]:
    """By text, (first sentence, the four that follow), from as many places of each text."""
    found = []
    for line in (cached_files("brown") / "texts.jsonl").read_text(encoding="utf-8").splitlines():
        sentences = [s for s in json.loads(line)["text"].split(" . ") if len(s.split()) >= 6]
        starts = torch.linspace(0, len(sentences) - SENTENCES, PASSAGES).long().tolist()
        found.append([(sentences[i], " . ".join(sentences[i + 1 : i + SENTENCES])) for i in starts])
    return [found[i] for i in mp.Rng(0, ("passages",)).numpy().permutation(len(found))]


class Study:
    """Encoder, sentences, and what the dense embeddings are."""

    def __init__(self) -> None:
        tokenizer = import_optional("transformers", "hf").AutoTokenizer.from_pretrained(
            cached_files("all-minilm-l6-v2")
        )
        by_text = passages()
        pairs = [pair for text in by_text[:TEST_TEXTS] for pair in text]
        self.queries, self.documents = (Sentences(list(side), tokenizer) for side in zip(*pairs, strict=True))
        others = [part for text in by_text[TEST_TEXTS:] for pair in text for part in pair]
        train, val = others[:CALIBRATION], others[CALIBRATION : CALIBRATION + 2 * BATCH]
        self.model = Encoder(create("builtin:all-minilm-l6-v2")).eval()
        self.data = tuple(Sentences(texts, tokenizer) for texts in (train, val))
        self.dense = self.documents.embedded_by(self.model)
        whole = sum(p.numel() for p in self.model.parameters())
        layers = sum(p.numel() for p in self.model.bert.encoder.parameters())
        self.budget = mp.Budget(params=whole - int((1 - SHARE) * layers))
        self.layers = layers

    def figures(self, model: nn.Module) -> dict[str, float]:
        found, asked = self.documents.embedded_by(model), self.queries.embedded_by(model)
        first = (asked @ found.T).argmax(1) == torch.arange(len(asked))
        cosine = cosine_similarity(found, self.dense).mean()
        return {"cosine": round(float(cosine), 4), "found_first": round(float(first.float().mean()), 4)}

    def row(self, options: dict[str, Any], recovery: mp.RecoverConfig | None) -> dict[str, Any]:
        began = time.process_time()
        example = {n: t[None].repeat(2, 1) for n, t in self.data[0][0].items()}
        result = mp.prune(
            self.model,
            None,
            example,
            budget=self.budget,
            data=self.data,
            objective="match_outputs",
            ignore=["*embeddings*", "*pooler*"],
            recover=recovery or "none",
            progress=False,
            **options,
        )
        cost = result.record["cost"]
        left = self.layers - (cost["before"]["params"] - cost["after"]["params"])
        return {
            **self.figures(result.model),
            "layers_share": round(left / self.layers, 4),
            "macs_share": round(cost["after"]["macs"] / cost["before"]["macs"], 4),
            "form": result.pruned.form,
            "proof_error": result.pruned.error,
            "cpu_s": round(time.process_time() - began, 1),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    allow_torchvision_import()
    study = Study()
    report = json.loads(options.out.read_text()) if options.out.exists() else new_report(study)
    done = {(row["label"], row["recover"]) for row in report["rows"]}
    recovery = mp.RecoverConfig(kind="finetune", train=TRAIN)  # match_outputs: the dense embeddings are the target
    wanted = [(label, "none") for label in ROWS] + [(label, "finetune") for label in RECOVERED]
    for label, kind in wanted:
        if (label, kind) not in done:
            row = study.row(ROWS[label], recovery if kind == "finetune" else None)
            report["rows"].append({"label": label, "recover": kind, **row})
            print(report["rows"][-1], flush=True)
            options.out.write_text(json.dumps(report, indent=1) + "\n")


def new_report(study: Study) -> dict[str, Any]:
    return {
        "question": "cosine to the dense embeddings, and first place in retrieval, at half of the layers' parameters",
        "sentences": {"calibration": CALIBRATION, "test_passages": len(study.documents)},
        "epochs": TRAIN.epochs,
        "environment": {"torch": torch.__version__, "python": platform.python_version(), "threads": 1},
        "dense": study.figures(study.model),
        "rows": [],
    }


if __name__ == "__main__":
    main()
