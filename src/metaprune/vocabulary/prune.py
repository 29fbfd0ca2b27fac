"""`prune_vocabulary`: a language model and its tokenizer without the tokens that a corpus does not use."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from metaprune.core.arguments import check_arguments
from metaprune.core.errors import ConfigError, NotAvailableError, VerificationError
from metaprune.core.side_effects import copy_model
from metaprune.surgery.verify import TOLERANCE, call_in_float64, in_float64
from metaprune.vocabulary.tokenizer import TokenizerFile

_LISTS = ("suppress_tokens", "begin_suppress_tokens")  # of generation configs: token numbers, some may be gone


@dataclass(frozen=True)
class PrunedVocabulary:
    """What `prune_vocabulary` returns.

    Attributes:
        model: of the original's class, with rows for the kept tokens alone.
        tokenizer: of the original's class; cuts texts whose tokens stay into the same tokens.
        kept: old token numbers in the order of the new ones.
        error: relative float64 difference of the logits of kept tokens, on sequences of kept tokens.
        params: parameters before and after.
    """

    model: nn.Module
    tokenizer: Any
    kept: tuple[int, ...]
    error: float
    params: tuple[int, int]


def prune_vocabulary(
    model: nn.Module,
    tokenizer: Any,
    *,
    corpus: Iterable[str] | None = None,
    tokens: Iterable[int] | None = None,
    min_count: int = 1,
) -> PrunedVocabulary:
    """Keep the tokens that a corpus uses, or those given, and what must stay with them; neither argument is changed.

    Special and added tokens, bytes and single letters stay, so that every text can still be written. So do the pieces
    that kept tokens are merged from. Logits of kept tokens on texts of kept tokens are as before, which is proved.

    Args:
        model: of transformers, with an embedding of tokens.
        tokenizer: a fast one of transformers, or one of `tokenizers`.
        corpus: texts; a token stays that occurs at least `min_count` times.
        tokens: token numbers that stay.
        min_count: how often a token has to occur in `corpus`.

    Raises:
        ConfigError: neither corpus nor tokens, or numbers that the tokenizer does not have.
        NotAvailableError: a tokenizer without the JSON of `tokenizers`, or a model without an embedding of tokens.
        VerificationError: the logits of kept tokens differ; nothing is handed over.
    """
    check_arguments(prune_vocabulary, locals())
    file = TokenizerFile(tokenizer)
    wanted = _wanted(file, tokenizer, corpus, tokens, min_count)
    embedding: Any = getattr(model, "get_input_embeddings", lambda: None)()
    if not isinstance(embedding, nn.Embedding):
        raise NotAvailableError(f"{type(model).__name__} has no embedding of tokens (get_input_embeddings)")
    rows = embedding.num_embeddings
    named = {i for config in _configs(model) for i in _token_numbers(config).values()}
    kept = tuple(sorted(i for i in file.closed(wanted | named) if i < rows))
    new_ids = {old: new for new, old in enumerate(kept)}
    smaller = _with_rows(model, rows, kept)
    for config in _configs(smaller):
        _renumber(config, new_ids)
    error = _logit_error(model, smaller, kept)
    if not error <= TOLERANCE:
        raise VerificationError(
            f"logits of kept tokens differ by {error:.1e} (relative, float64): the model reads its vocabulary "
            "elsewhere than in its embedding and head. Nothing was changed"
        )
    count = [sum(p.numel() for p in m.parameters()) for m in (model, smaller)]
    return PrunedVocabulary(smaller, _rewritten(tokenizer, file, new_ids), kept, error, (count[0], count[1]))


def _wanted(
    file: TokenizerFile, tokenizer: Any, corpus: Iterable[str] | None, tokens: Iterable[int] | None, min_count: int
) -> set[int]:
    if corpus is None and tokens is None:
        raise ConfigError("give a corpus (texts) or tokens (numbers) that say what stays")
    if isinstance(corpus, str):
        raise ConfigError("corpus is one text: give a list of texts")
    texts = [] if corpus is None else list(corpus)
    if not all(isinstance(text, str) for text in texts):
        raise ConfigError("corpus holds something else than texts: give a list of texts")
    numbers = [] if tokens is None else [getattr(i, "item", lambda i=i: i)() for i in tokens]
    if not all(type(i) is int for i in numbers):
        raise ConfigError("tokens is a list of token numbers")
    counts = Counter(i for text in texts for i in tokenizer.encode(text, add_special_tokens=False))
    wanted = {i for i, n in counts.items() if n >= min_count} | set(numbers)
    known = {*file.ids.values(), *file.added.values()}
    if odd := sorted(wanted - known):
        raise ConfigError(f"the tokenizer has no token {odd[0]}: it has {len(known)}")
    return wanted


def _with_rows(model: nn.Module, rows: int, kept: tuple[int, ...]) -> nn.Module:
    """Copy a model with only some rows of every tensor that has one per token; ties stay ties."""
    index = torch.tensor(kept)
    owners = [m for m in (model.get_input_embeddings(), model.get_output_embeddings()) if m is not None]  # type: ignore[operator]
    per_token = {id(t): (t, 0) for m in owners for t in m.parameters(recurse=False) if t.shape[0] == rows}
    per_token |= {id(b): (b, 1) for n, b in model.named_buffers() if n.endswith("logits_bias") and b.shape[-1] == rows}
    replacements: dict[int, Any] = {}
    for key, (tensor, dim) in per_token.items():
        part = tensor.detach().index_select(dim, index.to(tensor.device))
        is_parameter = isinstance(tensor, nn.Parameter)
        replacements[key] = nn.Parameter(part, requires_grad=tensor.requires_grad) if is_parameter else part
    smaller = copy_model(model, replacements=replacements)
    new_ids = {old: new for new, old in enumerate(kept)}
    for module in smaller.modules():
        if isinstance(module, nn.Embedding) and module.num_embeddings == rows != len(module.weight):
            module.num_embeddings = len(kept)
            module.padding_idx = new_ids.get(module.padding_idx) if module.padding_idx is not None else None
        elif isinstance(module, nn.Linear) and module.out_features == rows != len(module.weight):
            module.out_features = len(kept)
    for config in _configs(smaller):
        if getattr(config, "vocab_size", None) == rows:
            config.vocab_size = len(kept)
    return smaller


def _configs(model: Any) -> list[Any]:
    """Each config of a model, and that of its generation."""
    held = [c for m in model.modules() for c in (getattr(m, "config", None), getattr(m, "generation_config", None))]
    return list({id(c): c for c in held if hasattr(c, "to_dict")}.values())


def _token_numbers(config: Any) -> dict[tuple[str, int | None], int]:
    """Token numbers that a config names: (field, place in a list) -> number."""
    found: dict[tuple[str, int | None], int] = {}
    for name in config.to_dict():
        value = getattr(config, name, None)
        if name.endswith("_token_id") and type(value) is int and value >= 0:
            found[name, None] = value
        elif name.endswith("_token_id") and isinstance(value, list):
            found |= {(name, i): v for i, v in enumerate(value) if type(v) is int}
    return found


def _renumber(config: Any, new_ids: Mapping[int, int]) -> None:
    for (name, place), old in _token_numbers(config).items():
        if place is None:
            setattr(config, name, new_ids.get(old))
        else:
            getattr(config, name)[place] = new_ids[old]
    for name in _LISTS:
        if isinstance(value := getattr(config, name, None), list):
            setattr(config, name, [new_ids[i] for i in value if i in new_ids])


@torch.no_grad()
def _logit_error(model: Any, smaller: nn.Module, kept: tuple[int, ...]) -> float:
    """Largest relative difference of the logits of kept tokens, on two sequences of such."""
    new = torch.randint(0, len(kept), (2, 12), generator=torch.Generator().manual_seed(0)).to(model.device)
    index = torch.tensor(kept, device=new.device)
    decoder = bool(getattr(model.config, "is_encoder_decoder", False))
    logits = []
    for network, ids in ((model, index[new]), (smaller, new)):
        kwargs = {"input_ids": ids, **({"decoder_input_ids": ids} if decoder else {})}
        output = call_in_float64(in_float64(network), (), kwargs)
        logits.append(output.logits if hasattr(output, "logits") else output.last_hidden_state)
    has_head = model.get_output_embeddings() is not None
    wanted = logits[0].index_select(-1, index) if has_head else logits[0]
    return float((wanted - logits[1]).abs().max() / wanted.abs().max())


def _rewritten(tokenizer: Any, file: TokenizerFile, new_ids: Mapping[int, int]) -> Any:
    from tokenizers import Tokenizer

    new = copy.deepcopy(tokenizer)
    new._tokenizer = Tokenizer.from_str(file.keeping(new_ids))
    return new
