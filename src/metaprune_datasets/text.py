"""Built-in text as token sequences of one length."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from metaprune.core.rng import Rng
from metaprune.data.text import SEQUENCE_LENGTH, Tokenizer, TokenSequences, sequences
from metaprune_datasets.files import cached_files

_PARTS = {"train": 400, "val": 40, "test": 60}  # texts


def brown(tokenizer: str | Path | None = None, length: int = SEQUENCE_LENGTH) -> tuple[TokenSequences, ...]:
    """Load the Brown corpus as (train, val, test) of whole texts, each text cut into sequences of `length` tokens.

    Args:
        tokenizer: as `load_data` takes it; default: that of `smollm2-135m`.

    Raises:
        DataMissingError: corpus or tokenizer is not in the cache; holds the command that gets it.
        MissingDependencyError: the package `tokenizers` is not installed (it comes with transformers).
    """
    file = cached_files("brown") / "texts.jsonl"
    path = cached_files("smollm2-135m") / "tokenizer.json" if tokenizer is None else tokenizer
    texts = [json.loads(line)["text"] for line in file.read_text(encoding="utf-8").splitlines()]
    encoded = Tokenizer(str(path)).encode(texts)
    order = Rng(0, ("data", "brown")).numpy().permutation(len(texts))
    parts, start = [], 0
    for count in _PARTS.values():
        rows = [sequences(encoded[i], length) for i in order[start : start + count]]
        parts.append(TokenSequences(torch.cat(rows)))
        start += count
    return tuple(parts)
