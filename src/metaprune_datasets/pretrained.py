"""Models with built-in weights, from the cache: `builtin:NAME` in a recipe."""

from __future__ import annotations

from typing import Any

from torch import nn

from metaprune.core.errors import ConfigError, closest
from metaprune.core.imports import import_optional
from metaprune_datasets.files import cached_files


def smollm2() -> nn.Module:
    """SmolLM2-135M (float32, 30 layers) without a cache of keys and values, in evaluation mode.

    Raises:
        DataMissingError: not in the cache; holds the command that gets it.
    """
    import torch

    folder = cached_files("smollm2-135m")
    transformers = import_optional("transformers", "hf")
    model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.config.use_cache = False  # as a whole sequence goes through at once
    return model.eval()


def minilm() -> nn.Module:
    """all-MiniLM-L6-v2 (BERT of 6 layers): token states, whose mean over a sentence's tokens is its embedding.

    Raises:
        DataMissingError: not in the cache; holds the command that gets it.
    """
    folder = cached_files("all-minilm-l6-v2")
    return import_optional("transformers", "hf").BertModel.from_pretrained(folder).eval()


def centerface() -> nn.Module:
    """CenterFace, converted from ONNX: images [B, 3, H, W] in 0..255 to heat map, scale, offset and landmarks.

    Height and width are multiples of 32.

    Raises:
        DataMissingError: not in the cache; holds the command that gets it.
    """
    file = cached_files("centerface") / "centerface.onnx"
    onnx = import_optional("onnx", "onnx")
    onnx2torch = import_optional("onnx2torch", "pretrained")
    return onnx2torch.convert(onnx.load(file)).eval()


MODELS = {"smollm2-135m": smollm2, "all-minilm-l6-v2": minilm, "centerface": centerface}


def build(name: str, **options: Any) -> nn.Module:
    """Build the model of `builtin:NAME`.

    Raises:
        ConfigError: unknown name, or options (the weights decide all of them).
        DataMissingError: not in the cache; holds the command that gets it.
    """
    if name not in MODELS:
        raise ConfigError(
            f"There is no built-in model {name!r}.{closest(name, tuple(MODELS))} "
            f"There are: {', '.join(sorted(MODELS))}."
        )
    if options:
        raise ConfigError(f"builtin:{name} takes no options, as its weights decide its shape: leave out {options}")
    return MODELS[name]()
