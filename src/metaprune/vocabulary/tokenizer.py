"""A tokenizer of fewer tokens, as the JSON of the `tokenizers` library.

Texts whose tokens all stay are cut as before. WordPiece takes the longest piece, Unigram the likeliest: what won among
more candidates wins among fewer. BPE applies merges by rank: if a token stays with all pieces that it is merged from,
each merge that made it is still there, and still the first in rank of those that are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from metaprune.core.errors import NotAvailableError

_KINDS = ("BPE", "WordPiece", "WordLevel", "Unigram")


class TokenizerFile:
    """What a fast tokenizer of transformers holds.

    Raises:
        NotAvailableError: a tokenizer without the library's JSON, or of another kind.
    """

    def __init__(self, tokenizer: Any):
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise NotAvailableError(
                f"{type(tokenizer).__name__} is no fast tokenizer: load it by AutoTokenizer.from_pretrained(...)"
            )
        self.described: dict[str, Any] = json.loads(backend.to_str())
        self.model: dict[str, Any] = self.described["model"]
        self.kind = self.model.get("type") or ("BPE" if "merges" in self.model else "WordPiece")
        if self.kind not in _KINDS:
            raise NotAvailableError(f"the vocabulary of a {self.kind} tokenizer cannot be pruned: {', '.join(_KINDS)}")
        if self.kind == "BPE" and self.model.get("continuing_subword_prefix"):
            raise NotAvailableError("the vocabulary of a BPE tokenizer with continuing_subword_prefix cannot be pruned")
        vocab = self.model["vocab"]
        self.ids: dict[str, int] = (
            {piece: i for i, (piece, _) in enumerate(vocab)} if self.kind == "Unigram" else dict(vocab)
        )
        self.added = {a["content"]: int(a["id"]) for a in self.described.get("added_tokens") or ()}

    def closed(self, kept: Iterable[int]) -> set[int]:
        """Add what must stay with tokens: added and special ones, bytes and single letters, and pieces of merges."""
        stay = {*kept, *self.added.values()}
        stay |= {self.ids[name] for name in [self.model.get("unk_token")] if name in self.ids}
        if self.kind == "Unigram":
            stay |= {self.model["unk_id"]} if self.model.get("unk_id") is not None else set()
        prefix = self.model.get("continuing_subword_prefix") or ""
        suffix = self.model.get("end_of_word_suffix") or ""
        bare = {piece: piece.removeprefix(prefix).removesuffix(suffix) for piece in self.ids}
        stay |= {i for piece, i in self.ids.items() if len(bare[piece]) == 1 or _is_byte(piece)}
        if self.kind == "BPE":
            rank = {pair: n for n, pair in enumerate(self._merges())}
            text = {i: piece for piece, i in self.ids.items()}
            for i in tuple(stay):
                stay |= {self.ids[p] for p in _pieces(text.get(i, ""), suffix, rank) if p in self.ids}
        return stay

    def keeping(self, new_ids: Mapping[int, int]) -> str:
        """Return the JSON with only the tokens that `new_ids` maps, under their new numbers."""
        described = json.loads(json.dumps(self.described))
        model = described["model"]
        if self.kind == "Unigram":
            model["vocab"] = [entry for i, entry in enumerate(self.model["vocab"]) if i in new_ids]
            if model.get("unk_id") is not None:
                model["unk_id"] = new_ids[model["unk_id"]]
        else:
            model["vocab"] = {piece: new_ids[i] for piece, i in self.ids.items() if i in new_ids}
        if self.kind == "BPE":
            pairs = zip(self.model["merges"], self._merges(), strict=True)
            known = model["vocab"]
            model["merges"] = [m for m, (a, b) in pairs if a in known and b in known and a + b in known]
        for token in described.get("added_tokens") or ():
            token["id"] = new_ids[int(token["id"])]
        _renumber(described.get("post_processor"), new_ids)
        return json.dumps(described)

    def _merges(self) -> list[tuple[str, str]]:
        return [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in self.model["merges"]]  # type: ignore[misc]


def _pieces(text: str, suffix: str, rank: Mapping[tuple[str, str], int]) -> set[str]:
    """All pieces that merging a text by rank goes through; the last letter of a word holds the suffix."""
    parts = list(text.removesuffix(suffix))
    if suffix and parts and text.endswith(suffix):
        parts[-1] += suffix
    seen = set(parts)
    while len(parts) > 1:
        best = min(range(len(parts) - 1), key=lambda i: rank.get((parts[i], parts[i + 1]), len(rank)))
        if (parts[best], parts[best + 1]) not in rank:
            break
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
        seen.add(parts[best])
    return seen


def _is_byte(piece: str) -> bool:
    return len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")


def _renumber(processor: Any, new_ids: Mapping[int, int]) -> None:
    """Give the special tokens that a post-processor adds their new numbers."""
    if isinstance(processor, list):
        for part in processor:
            _renumber(part, new_ids)
    elif isinstance(processor, dict):
        for key, value in processor.items():
            if key == "ids" and isinstance(value, list):
                processor[key] = [new_ids[i] for i in value]
            elif key in ("sep", "cls") and isinstance(value, list):
                processor[key] = [value[0], new_ids[value[1]]]
            else:
                _renumber(value, new_ids)
