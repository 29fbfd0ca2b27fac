"""Built-in text as token sequences of one length."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from metaprune.core.imports import import_optional
from metaprune.core.rng import Rng
from metaprune_datasets.files import cached_files

_PARTS = {"train": 400, "val": 40, "test": 60}  # texts


class TokenSequences(Dataset):
    """Token ids [N, T]; a sample is a mapping with `input_ids` [T]."""

    def __init__(self, ids: Tensor):
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.ids[index]}

    def take(self, count: int) -> TokenSequences:
        """Take `count` sequences spread evenly over all, or all where there are fewer."""
        chosen = np.linspace(0, len(self.ids) - 1, min(count, len(self.ids))).round().astype(int)
        return TokenSequences(self.ids[torch.from_numpy(chosen)])


def brown(tokenizer: str | Path | None = None, length: int = 128) -> tuple[TokenSequences, ...]:
    """Load the Brown corpus as (train, val, test) of whole texts, each text cut into sequences of `length` tokens.

    Args:
        tokenizer: a tokenizer.json; default: that of `smollm2-135m`.

    Raises:
        DataMissingError: corpus or tokenizer is not in the cache; holds the command that gets it.
        MissingDependencyError: the package `tokenizers` is not installed (it comes with transformers).
    """
    tokenizers = import_optional("tokenizers", "hf")
    file = cached_files("brown") / "texts.jsonl"
    path = cached_files("smollm2-135m") / "tokenizer.json" if tokenizer is None else Path(tokenizer)
    encoder = tokenizers.Tokenizer.from_file(str(path))
    texts = [json.loads(line)["text"] for line in file.read_text(encoding="utf-8").splitlines()]
    encoded = [e.ids for e in encoder.encode_batch(texts)]
    order = Rng(0, ("data", "brown")).numpy().permutation(len(texts))
    parts, start = [], 0
    for count in _PARTS.values():
        rows = [_sequences(encoded[i], length) for i in order[start : start + count]]
        parts.append(TokenSequences(torch.from_numpy(np.concatenate(rows))))
        start += count
    return tuple(parts)


def _sequences(ids: list[int], length: int) -> np.ndarray:
    """Whole sequences of one text, int64 [n, length]; what is left over at its end is dropped."""
    count = len(ids) // length
    return np.array(ids[: count * length], dtype=np.int64).reshape(count, length)
