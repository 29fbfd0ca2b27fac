"""Small random networks of transformers that users prune, beyond those of hf_networks.py."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from hf_networks import _make, decoder, encoder, t5
from outside_spec import Builder, Built, draw

TEXT = {"vocab_size": 100, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SMALL = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 80}
IMAGES = {"image_size": 32, "patch_size": 8}


def tokens(length: int = 9) -> torch.Tensor:
    return torch.randint(5, 100, (2, length), generator=torch.Generator().manual_seed(2))


def lm(config: str, model: str, **options: Any) -> Built:
    """A decoder of any argument names; no cache."""
    return _make(config, model, **{**TEXT, **options}), (), {"input_ids": tokens(), "use_cache": False}


def vision(config: str, model: str, size: int = 32, **options: Any) -> Built:
    return _make(config, model, **options), (), {"pixel_values": draw((2, 3, size, size))[0]}


def cached_by_default(make: Builder) -> Built:
    """The same network called as users first do: without a word about caches."""
    model, args, kwargs = make()
    return model, args, {name: value for name, value in kwargs.items() if name != "use_cache"}


def speech(config: str, model: str, **options: Any) -> Built:
    built = _make(
        config, model, vocab_size=20, conv_dim=(16, 16), conv_kernel=(5, 3), conv_stride=(4, 2),
        num_feat_extract_layers=2, num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=4, **SMALL, **options,
    )  # fmt: skip
    return built, (), {"input_values": draw((2, 320))[0]}


def whisper() -> Built:
    model = _make(
        "WhisperConfig", "WhisperForConditionalGeneration", vocab_size=100, num_mel_bins=20, d_model=48,
        encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=80,
        decoder_ffn_dim=80, max_source_positions=16, max_target_positions=20, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, decoder_start_token_id=1, suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    inputs = {"input_features": draw((2, 20, 32))[0], "decoder_input_ids": tokens(6), "use_cache": False}
    return model, (), inputs


def bart() -> Built:
    model = _make(
        "BartConfig", "BartForConditionalGeneration", d_model=48, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=80, decoder_ffn_dim=80,
        max_position_embeddings=20, decoder_start_token_id=2, **TEXT,
    )  # fmt: skip
    return model, (), {"input_ids": tokens(), "decoder_input_ids": tokens(6), "use_cache": False}


def two_towers(name: str) -> Built:
    text = {**SMALL, **TEXT, "max_position_embeddings": 16}
    parts = {"text_config": text, "vision_config": {**SMALL, **IMAGES}}
    more = {"projection_dim": 32} if name == "CLIP" else {}
    model = _make(f"{name}Config", f"{name}Model", **parts, **more)
    return model, (), {"input_ids": tokens(), "pixel_values": draw((2, 3, 32, 32))[0]}


def detr() -> Built:
    import transformers

    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage4"],
    )  # fmt: skip
    model = _make(
        "DetrConfig", "DetrForObjectDetection", use_timm_backbone=False, use_pretrained_backbone=False,
        backbone=None, backbone_config=backbone, num_queries=7, d_model=48, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=80, decoder_ffn_dim=80, num_labels=5,
    )  # fmt: skip
    return model, (), {"pixel_values": draw((2, 3, 64, 64))[0], "pixel_mask": torch.ones(2, 64, 64, dtype=torch.long)}


def swin2sr() -> Built:
    return vision(
        "Swin2SRConfig", "Swin2SRForImageSuperResolution", size=16, image_size=16, patch_size=1, embed_dim=24,
        depths=[2, 2], num_heads=[2, 2], window_size=4, upscale=2, upsampler="pixelshuffle",
    )  # fmt: skip


def mamba(config: str, model: str, **options: Any) -> Built:
    return lm(config, model, hidden_size=48, state_size=8, num_hidden_layers=2, **options)


def xlnet() -> Built:
    options = {"vocab_size": 100, "d_model": 48, "n_layer": 2, "n_head": 4, "d_inner": 80, "num_labels": 3}
    return _make("XLNetConfig", "XLNetForSequenceClassification", **options), (), {"input_ids": tokens()}


def patchtst() -> Built:
    model = _make(
        "PatchTSTConfig", "PatchTSTForPrediction", num_input_channels=3, context_length=32, patch_length=8,
        patch_stride=8, d_model=24, num_attention_heads=4, ffn_dim=40, num_hidden_layers=2, prediction_length=6,
    )  # fmt: skip
    return model, (), {"past_values": draw((2, 32, 3))[0]}


MIXTURE = {"num_local_experts": 4, "num_experts_per_tok": 2}
QWEN_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
QWEN_MOE |= {"shared_expert_intermediate_size": 40, "decoder_sparse_step": 1}
LATENT = {"kv_lora_rank": 16, "q_lora_rank": 24, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16}
LATENT |= {
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 40,
}
CAUSAL = "ForCausalLM"
GPT = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = partial(decoder, "LlamaConfig", "LlamaForCausalLM")
QWEN = partial(decoder, "Qwen3Config", "Qwen3ForCausalLM", head_dim=24)
DINO = {**SMALL, **IMAGES}
STAGES = {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 24, 32, 48], "decoder_hidden_size": 32}
MIX = {**STAGES, "num_attention_heads": [1, 2, 4, 4]}

HUGGING: dict[str, Callable[[], Built]] = {
    "llama default cache": partial(cached_by_default, LLAMA),
    "llama": LLAMA,
    "llama 24q 8kv": partial(
        decoder, "LlamaConfig", "LlamaForCausalLM", hidden_size=96, num_attention_heads=24, num_key_value_heads=8
    ),
    "mistral": partial(decoder, "MistralConfig", "MistralForCausalLM", sliding_window=4),
    "qwen3 default cache": partial(cached_by_default, QWEN),
    "qwen3": QWEN,
    "gemma3": partial(decoder, "Gemma3TextConfig", "Gemma3ForCausalLM", head_dim=16, sliding_window=4),
    "phi3": partial(decoder, "Phi3Config", "Phi3ForCausalLM"),
    "smollm3": partial(decoder, "SmolLM3Config", "SmolLM3ForCausalLM"),
    "deepseek-v3 mla": partial(decoder, "DeepseekV3Config", "DeepseekV3ForCausalLM", first_k_dense_replace=2, **LATENT),
    "deepseek-v3 experts": partial(
        decoder, "DeepseekV3Config", "DeepseekV3ForCausalLM", first_k_dense_replace=1, **LATENT
    ),
    "mixtral": partial(decoder, "MixtralConfig", "MixtralForCausalLM", **MIXTURE),
    "mixtral eager experts": partial(
        decoder, "MixtralConfig", "MixtralForCausalLM", experts_implementation="eager", **MIXTURE
    ),
    "qwen2-moe": partial(decoder, "Qwen2MoeConfig", "Qwen2MoeForCausalLM", **QWEN_MOE),
    "gpt-neox": partial(lm, "GPTNeoXConfig", "GPTNeoXForCausalLM", max_position_embeddings=32, **SMALL),
    "falcon": partial(lm, "FalconConfig", "FalconForCausalLM", **GPT),
    "bloom": partial(lm, "BloomConfig", "BloomForCausalLM", hidden_size=48, n_layer=2, n_head=4),
    "opt": partial(
        lm, "OPTConfig", "OPTForCausalLM", ffn_dim=80, max_position_embeddings=32, word_embed_proj_dim=48, **GPT
    ),
    "mpt": partial(lm, "MptConfig", "MptForCausalLM", d_model=48, n_layers=2, n_heads=4, max_seq_len=32),
    "mamba": partial(mamba, "MambaConfig", "MambaForCausalLM"),
    "mamba2": partial(mamba, "Mamba2Config", "Mamba2ForCausalLM", num_heads=6, head_dim=16, n_groups=2, chunk_size=4),
    "rwkv": partial(
        lm, "RwkvConfig", "RwkvForCausalLM", hidden_size=48, num_hidden_layers=2, attention_hidden_size=48,
        intermediate_size=80, context_length=32,
    ),
    "bart": bart,
    "bart default cache": partial(cached_by_default, bart),
    "t5": t5,
    "t5 default cache": partial(cached_by_default, t5),
    "whisper": whisper,
    "whisper default cache": partial(cached_by_default, whisper),
    "wav2vec2 ctc": partial(speech, "Wav2Vec2Config", "Wav2Vec2ForCTC"),
    "wav2vec2 layer norm": partial(
        speech, "Wav2Vec2Config", "Wav2Vec2ForCTC", feat_extract_norm="layer", do_stable_layer_norm=True
    ),
    "wav2vec2 conformer": partial(speech, "Wav2Vec2ConformerConfig", "Wav2Vec2ConformerForCTC"),
    "hubert": partial(speech, "HubertConfig", "HubertForCTC"),
    "clip both towers": partial(two_towers, "CLIP"),
    "siglip": partial(two_towers, "Siglip"),
    "dinov2 registers": partial(vision, "Dinov2WithRegistersConfig", "Dinov2WithRegistersModel", **DINO),
    "dinov3": partial(vision, "DINOv3ViTConfig", "DINOv3ViTModel", **DINO),
    "sam encoder": partial(
        vision, "SamVisionConfig", "SamVisionModel", size=32, hidden_size=48, num_hidden_layers=2,
        num_attention_heads=4, mlp_dim=80, output_channels=24, window_size=2, global_attn_indexes=[1], **IMAGES,
    ),
    "segformer": partial(vision, "SegformerConfig", "SegformerForSemanticSegmentation", size=64, num_labels=5, **MIX),
    "glpn depth": partial(vision, "GLPNConfig", "GLPNForDepthEstimation", size=64, **MIX),
    "detr": detr,
    "yolos": partial(
        vision, "YolosConfig", "YolosForObjectDetection", image_size=[32, 32], patch_size=8, num_detection_tokens=5,
        num_labels=5, **SMALL,
    ),
    "swin2sr": swin2sr,
    "blip text": partial(
        lm, "BlipTextConfig", "BlipTextLMHeadModel", max_position_embeddings=20, encoder_hidden_size=48, **SMALL
    ),
    "deberta-v2": partial(
        encoder, "DebertaV2Config", "DebertaV2ForSequenceClassification", relative_attention=True,
        pos_att_type=["p2c", "c2p"], position_buckets=8,
    ),
    "modernbert": partial(
        encoder, "ModernBertConfig", "ModernBertForSequenceClassification", local_attention=4, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, cls_token_id=3, sep_token_id=4,
    ),
    "xlnet": xlnet,
    "patchtst": patchtst,
    "convnextv2": partial(
        vision, "ConvNextV2Config", "ConvNextV2ForImageClassification", size=64, hidden_sizes=[16, 24, 32, 48],
        depths=[1, 1, 2, 1],
    ),
    "mobilevitv2": partial(
        vision, "MobileViTV2Config", "MobileViTV2ForImageClassification", size=64, width_multiplier=0.5
    ),
}  # fmt: skip
