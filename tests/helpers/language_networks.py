"""Tiny transformers models that generate text, of twelve families, with weights that make their tokens differ."""

from __future__ import annotations

from typing import Any

import torch

from metaprune.core.imports import import_optional

transformers = import_optional("transformers", "hf")

TOKENS = 60
_SPECIAL = dict(vocab_size=TOKENS, bos_token_id=1, eos_token_id=2, pad_token_id=0, tie_word_embeddings=False)
_LLAMA = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=8, num_key_value_heads=4)
_LLAMA |= dict(max_position_embeddings=64, **_SPECIAL)
_BART = dict(d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4)
_BART |= dict(encoder_ffn_dim=48, decoder_ffn_dim=48, **_SPECIAL)
_FALCON = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, **_SPECIAL)

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", _LLAMA),
    "qwen2": ("Qwen2ForCausalLM", _LLAMA),
    "qwen3": ("Qwen3ForCausalLM", _LLAMA | {"head_dim": 4}),
    "gemma": ("GemmaForCausalLM", _LLAMA | {"head_dim": 4}),
    "gpt2": (
        "GPT2LMHeadModel",
        _SPECIAL | dict(n_positions=64, n_embd=32, n_layer=3, n_head=4, tie_word_embeddings=True),
    ),
    "phi3": ("Phi3ForCausalLM", _LLAMA),
    "mistral": ("MistralForCausalLM", _LLAMA | {"sliding_window": 8}),
    "falcon": ("FalconForCausalLM", _FALCON | {"multi_query": True}),
    "bloom": ("BloomForCausalLM", dict(hidden_size=32, n_layer=3, n_head=4, **_SPECIAL)),
    "t5": (
        "T5ForConditionalGeneration",
        dict(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0, **_SPECIAL),
    ),
    "bart": (
        "BartForConditionalGeneration",
        _BART | dict(max_position_embeddings=64, decoder_start_token_id=2, forced_eos_token_id=None),
    ),
    "whisper": (
        "WhisperForConditionalGeneration",
        _BART | dict(num_mel_bins=8, max_source_positions=16, max_target_positions=32, decoder_start_token_id=1)
        | dict(suppress_tokens=None, begin_suppress_tokens=None),
    ),
}  # fmt: skip
ENCODER_DECODERS = ("t5", "bart", "whisper")


def language_model(family: str) -> torch.nn.Module:
    """Build a model of a family in eval mode; its random weights do not depend on the global random state."""
    name, options = FAMILIES[family]
    cls = getattr(transformers, name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = cls(cls.config_class(**options)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def tokens(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    """Draw token numbers [batch, length], none of them special."""
    return torch.randint(3, TOKENS, (batch, length), generator=torch.Generator().manual_seed(seed))


def sound(batch: int, seed: int = 0) -> torch.Tensor:
    """Draw features [batch, mels, frames] for Whisper."""
    return torch.randn(batch, 8, 32, generator=torch.Generator().manual_seed(seed))


def example(family: str) -> dict[str, torch.Tensor]:
    """Inputs to trace a family with."""
    if family == "whisper":
        return {"input_features": sound(2), "decoder_input_ids": tokens(2, 6)}
    if family in ENCODER_DECODERS:
        return {"input_ids": tokens(2, 9), "decoder_input_ids": tokens(2, 6, 1)}
    return {"input_ids": tokens(2, 10)}
