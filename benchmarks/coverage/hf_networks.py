"""Small random networks of transformers: two or three layers, widths 48 to 64, several heads, a vocabulary of 100.

Each builder returns (model, args, kwargs). Widths differ from one another where the class allows it, so that two
dimensions of one size are not mistaken for each other.
"""

from __future__ import annotations

from typing import Any

import torch

VOCABULARY = 100
Built = tuple[torch.nn.Module, tuple, dict[str, Any]]


def _draw() -> torch.Generator:
    return torch.Generator().manual_seed(2)


def _pixels(size: int) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(2, 3, size, size, generator=_draw())}


def _tokens(mask: bool = True) -> dict[str, torch.Tensor]:
    """Two sequences of nine tokens, the second padded. Token ids stay clear of the special ones."""
    tokens = torch.randint(5, VOCABULARY, (2, 9), generator=_draw())
    if not mask:
        return {"input_ids": tokens}
    attention = torch.ones(2, 9, dtype=torch.int64)
    attention[1, 6:] = 0
    return {"input_ids": tokens, "attention_mask": attention}


def _make(config: str, model: str, **options: Any) -> torch.nn.Module:
    import transformers

    return getattr(transformers, model)(getattr(transformers, config)(**options))


def encoder(config: str, model: str, **more: Any) -> Built:
    """BERT and RoBERTa: sequence classification."""
    options = {
        "vocab_size": VOCABULARY,
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 80,
        "max_position_embeddings": 20,
        "num_labels": 3,
        **more,
    }
    return _make(config, model, **options), (), _tokens()


def distilbert() -> Built:
    model = _make(
        "DistilBertConfig",
        "DistilBertForSequenceClassification",
        vocab_size=VOCABULARY,
        dim=48,
        n_layers=2,
        n_heads=4,
        hidden_dim=80,
        max_position_embeddings=20,
        num_labels=3,
    )
    return model, (), _tokens()


def vit(config: str, model: str) -> Built:
    built = _make(
        config,
        model,
        image_size=32,
        patch_size=8,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=80,
        num_labels=7,
    )
    return built, (), _pixels(32)


def swin() -> Built:
    model = _make(
        "SwinConfig",
        "SwinForImageClassification",
        image_size=32,
        patch_size=2,
        embed_dim=24,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=4,
        num_labels=7,
    )
    return model, (), _pixels(32)


def convnext() -> Built:
    model = _make(
        "ConvNextConfig",
        "ConvNextForImageClassification",
        hidden_sizes=[16, 32, 48, 64],
        depths=[1, 1, 2, 1],
        num_labels=7,
    )
    return model, (), _pixels(64)


def gpt2() -> Built:
    """The language-model head is tied to the embedding."""
    model = _make(
        "GPT2Config",
        "GPT2LMHeadModel",
        vocab_size=VOCABULARY,
        n_positions=20,
        n_embd=48,
        n_layer=2,
        n_head=4,
        bos_token_id=0,
        eos_token_id=1,
    )
    return model, (), {**_tokens(mask=False), "use_cache": False}


def decoder(config: str, model: str, **more: Any) -> Built:
    """Llama, Qwen2, Qwen3: rotary positions, two key-value heads for four query heads."""
    options = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 96,
        "max_position_embeddings": 32,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **more,
    }
    return _make(config, model, **options), (), {**_tokens(mask=False), "use_cache": False}


def t5() -> Built:
    model = _make(
        "T5Config",
        "T5ForConditionalGeneration",
        vocab_size=VOCABULARY,
        d_model=48,
        d_kv=16,
        d_ff=80,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
    )
    targets = torch.randint(5, VOCABULARY, (2, 6), generator=torch.Generator().manual_seed(3))
    return model, (), {**_tokens(mask=False), "decoder_input_ids": targets, "use_cache": False}


def whisper_encoder() -> Built:
    import transformers
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    config = transformers.WhisperConfig(
        vocab_size=VOCABULARY,
        num_mel_bins=20,
        d_model=48,
        encoder_layers=2,
        encoder_attention_heads=4,
        encoder_ffn_dim=80,
        max_source_positions=16,
        decoder_layers=1,
        decoder_attention_heads=4,
        decoder_ffn_dim=80,
    )
    return WhisperEncoder(config), (torch.randn(2, 20, 32, generator=_draw()),), {}


def clip_vision() -> Built:
    model = _make(
        "CLIPVisionConfig",
        "CLIPVisionModel",
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
    )
    return model, (), _pixels(32)


# name -> (builder, options of trace): a headless encoder has no task output, so its features may change their width
HF: dict[str, tuple[Any, dict[str, Any]]] = {
    "bert": (lambda: encoder("BertConfig", "BertForSequenceClassification"), {}),
    "roberta": (lambda: encoder("RobertaConfig", "RobertaForSequenceClassification", pad_token_id=1), {}),
    "distilbert": (distilbert, {}),
    "vit": (lambda: vit("ViTConfig", "ViTForImageClassification"), {}),
    "deit": (lambda: vit("DeiTConfig", "DeiTForImageClassification"), {}),
    "swin": (swin, {}),
    "convnext": (convnext, {}),
    "gpt2": (gpt2, {}),
    "llama": (lambda: decoder("LlamaConfig", "LlamaForCausalLM"), {}),
    "qwen2": (lambda: decoder("Qwen2Config", "Qwen2ForCausalLM"), {}),
    "qwen3": (lambda: decoder("Qwen3Config", "Qwen3ForCausalLM", head_dim=24), {}),
    "t5": (t5, {"free_outputs": ("encoder_last_hidden_state",)}),  # handed out for reuse, not a result of the task
    "whisper_encoder": (whisper_encoder, {"free_outputs": True}),
    "clip_vision": (clip_vision, {"free_outputs": True}),
}
