"""Built-in text as token sequences of one length."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from metaprune.core.errors import ConfigError, DataError, closest
from metaprune.core.rng import Rng
from metaprune.data.text import SEQUENCE_LENGTH, Tokenizer, TokenSequences, sequences
from metaprune_datasets.files import cached_files

CORPORA = ("brown", "jargon")
_PARTS = {"train": 0.8, "val": 0.08, "test": 0.12}  # of the texts


def corpus(
    name: str, tokenizer: str | Path | None = None, length: int = SEQUENCE_LENGTH, genre: str = ""
) -> tuple[TokenSequences, ...]:
    """Load a corpus as (train, val, test) of whole texts, each text cut into sequences of `length` tokens.

    A genre's texts are on the side of the split on which they are in the whole corpus.

    Args:
        name: one of `CORPORA`.
        tokenizer: as `load_data` takes it; default: that of `smollm2-135m`.
        genre: the texts of one genre alone.

    Raises:
        ConfigError: the corpus has no such genre.
        DataError: a part has no text that is `length` tokens long.
        DataMissingError: corpus or tokenizer is not in the cache; holds the command that gets it.
        MissingDependencyError: the package `tokenizers` is not installed (it comes with transformers).
    """
    file = cached_files(name) / "texts.jsonl"
    path = cached_files("smollm2-135m") / "tokenizer.json" if tokenizer is None else tokenizer
    texts = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    genres = sorted({text["genre"] for text in texts if "genre" in text})
    if genre and genre not in genres:
        known = f"There are: {', '.join(genres)}." if genres else "It has none."
        raise ConfigError(f"builtin:{name} has no genre {genre!r}.{closest(genre, tuple(genres))} {known}")
    encoder = Tokenizer(str(path))
    order = Rng(0, ("data", name)).numpy().permutation(len(texts))
    ends = (torch.tensor([*_PARTS.values()]).cumsum(0) * len(texts)).round().long().tolist()
    parts = []
    for part, start, end in zip(_PARTS, [0, *ends], ends, strict=False):
        chosen = [texts[i]["text"] for i in order[start:end] if not genre or texts[i]["genre"] == genre]
        rows = [row for ids in encoder.encode(chosen) if len(row := sequences(ids, length))]
        if not rows:
            raise DataError(
                f"builtin:{name}{'/' if genre else ''}{genre} has no {part} text of {length} tokens: take shorter "
                "sequences, or more than this genre"
            )
        parts.append(TokenSequences(torch.cat(rows)))
    return tuple(parts)
