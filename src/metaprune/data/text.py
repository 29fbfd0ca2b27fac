"""Text for language models: documents, tokenised, split by document and packed into sequences of one length."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from metaprune.core.errors import ConfigError, DataError, MetapruneError, one_line_error
from metaprune.core.imports import import_optional
from metaprune.data.arrays import Options
from metaprune.data.loader_split import splits_to_data
from metaprune.data.splits import SPLIT_RNG, TEST_FRACTION, VAL_FRACTION
from metaprune.data.types import Data
from metaprune.objective import create_objective

SEQUENCE_LENGTH = 128
_SUFFIXES = (".txt", ".md", ".jsonl")


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


class Tokenizer:
    """Encodes texts by a tokenizer of `tokenizers` or transformers; no code of its files is run."""

    def __init__(self, source: str):
        """Read a `tokenizer.json`, a folder, or a name on the Hub.

        Raises:
            ConfigError: none can be read there.
            MissingDependencyError: `tokenizers` or transformers is not installed.
        """
        file = Path(source).expanduser()
        file = file / "tokenizer.json" if (file / "tokenizer.json").is_file() else file
        try:
            if file.is_file():
                self._one = import_optional("tokenizers", "hf").Tokenizer.from_file(str(file))
                self._all = lambda texts: [e.ids for e in self._one.encode_batch(texts, add_special_tokens=False)]
            else:
                library = import_optional("transformers", "hf")
                whole = library.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
                self._all = lambda texts: whole(texts, add_special_tokens=False)["input_ids"]
        except MetapruneError:
            raise
        except Exception as error:  # the libraries raise their own, the network's and the file system's errors
            raise ConfigError(
                f"tokenizer={source!r} cannot be read ({one_line_error(error)}): give a tokenizer.json, a folder of "
                "one, or a name on the Hub while online"
            ) from error

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of every text, without special tokens."""
        return self._all(list(texts)) if texts else []


def read_documents(path: Path) -> list[str]:
    """Read texts: one a file of a folder (.txt, .md), one a line of a .jsonl (its `text`), one a paragraph of a file.

    Raises:
        DataError: nothing there, or a line that holds no text.
    """
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix in _SUFFIXES and p.is_file())
        documents = [text for file in files for text in (_lines(file) if file.suffix == ".jsonl" else [_read(file)])]
    elif path.is_file():
        documents = _lines(path) if path.suffix == ".jsonl" else _read(path).split("\n\n")
    else:
        raise DataError(f"text:{path} is not there: give a text file, or a folder of {', '.join(_SUFFIXES)} files")
    documents = [text for text in documents if text.strip()]
    if not documents:
        raise DataError(f"text:{path} holds no text: give a text file, or a folder of {', '.join(_SUFFIXES)} files")
    return documents


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").replace("\r\n", "\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read as UTF-8 text: {one_line_error(error)}") from error


def _lines(file: Path) -> list[str]:
    texts = []
    for number, line in enumerate(_read(file).splitlines(), 1):
        if line.strip():
            try:
                text = json.loads(line)["text"]
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{file}, line {number}: no JSON object with a `text`") from error
            if not isinstance(text, str):
                raise DataError(f"{file}, line {number}: `text` is no string")
            texts.append(text)
    return texts


def text_to_data(name: str, parts: Mapping[str, Sequence[str]], options: Options) -> Data:
    """Make `Data` of documents by part; what is missing of val and test is held out of train, by document.

    Documents of a part follow one another, a newline between them, and are cut into sequences of one length.

    Raises:
        ConfigError: no tokenizer, or options of images.
        DataError: a part with less than one sequence.
    """
    options.require_text(name)
    length = options.sequence_length or SEQUENCE_LENGTH
    source = options.tokenizer or options.model_tokenizer
    if source is None:
        raise ConfigError(f"{name} is text: give the model's tokenizer, as tokenizer='DIR' (a tokenizer.json in it)")
    tokenizer = Tokenizer(source)
    splits = {part: _packed(name, part, texts, tokenizer, length) for part, texts in _held_out(name, parts).items()}
    if options.limit is not None:
        splits["train"] = splits["train"].take(options.limit)
    given = tuple(splits[part] for part in ("train", "val", "test"))
    return splits_to_data(given, name, None, create_objective("next_token"))


def _held_out(name: str, parts: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Documents by part, all three."""
    result = {part: list(texts) for part, texts in parts.items()}
    shares = {"test": TEST_FRACTION, "val": VAL_FRACTION}
    wanted = {part: share for part, share in shares.items() if part not in result}
    train = result["train"]
    if len(train) <= len(wanted):
        raise DataError(f"{name} holds {len(train)} documents, which do not make train, val and test: give more text")
    order = SPLIT_RNG.child("text").numpy().permutation(len(train)).tolist()
    for part, share in wanted.items():
        count = max(1, round(share * len(train)))
        chosen, order = order[:count], order[count:]
        result[part] = [train[i] for i in sorted(chosen)]
    return {**result, "train": [train[i] for i in sorted(order)]}


def _packed(name: str, part: str, texts: Iterable[str], tokenizer: Tokenizer, length: int) -> TokenSequences:
    ids = [i for document in tokenizer.encode([f"{text}\n" for text in texts]) for i in document]
    rows = sequences(ids, length)
    if len(rows) == 0:
        raise DataError(
            f"{name}: the {part} part has {len(ids)} tokens, fewer than one sequence of {length}: give more text, or a "
            "smaller sequence_length"
        )
    return TokenSequences(rows)


def sequences(ids: Sequence[int], length: int) -> Tensor:
    """Cut token ids into whole sequences, int64 [n, length]; what is left over at the end is dropped."""
    count = len(ids) // length
    return torch.tensor(ids[: count * length], dtype=torch.long).reshape(count, length)


def text_columns(name: str, tables: Mapping[str, Any]) -> dict[str, list[str]] | None:
    """Documents of a Hub data set without images, by part: its column `text`, or its only one of strings."""
    features = tables["train"].features
    if any(type(feature).__name__ == "Image" for feature in features.values()):
        return None
    strings = [c for c, f in features.items() if getattr(f, "dtype", None) == "string"]
    column = "text" if "text" in strings else strings[0] if len(strings) == 1 else None
    if column is None:
        return None
    return {part: [text for text in table[column][:] if text.strip()] for part, table in tables.items()}
