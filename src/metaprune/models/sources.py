"""Models from a spec string: `zoo:`, `builtin:`, `timm:`, `torchvision:`, `hf:` and `python:module:function`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import nn

from metaprune.core.arguments import check_arguments, shown
from metaprune.core.errors import ConfigError, MetapruneError, MissingDependencyError, closest, one_line_error
from metaprune.core.imports import import_optional, import_python_target
from metaprune.models.scheme import MODEL_SCHEMES, ModelScheme, Shape, forms
from metaprune.models.weights import load_weights

PRETRAINED = "pretrained"


def _from_timm(name: str, weights: str | Path | None, options: dict[str, Any]) -> nn.Module:
    timm = import_optional("timm", "timm")
    if "in_channels" in options:
        options["in_chans"] = options.pop("in_channels")
    saved = _saved_timm(name)
    if saved is None:
        if not timm.is_model(name):
            raise ConfigError(
                f"timm has no model {name!r}.{closest(name, timm.list_models())} timm.list_models() has all"
            )
        return timm.create_model(name, pretrained=weights == PRETRAINED, **options)
    try:
        return timm.create_model(saved, pretrained=weights in (None, PRETRAINED), **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(_not_loaded("timm", name, error)) from error


def _saved_timm(name: str) -> str | None:
    """timm's own name for a folder (`local-dir:`) or a Hub repository (`hf-hub:`); None for an architecture."""
    source, separator, rest = name.partition(":")
    if separator and source in ("hf-hub", "hf_hub", "local-dir"):
        return f"{source.replace('_', '-')}:{rest}"
    folder = Path(name).expanduser()
    if folder.is_dir() or name.startswith(("/", ".", "~")):
        return f"local-dir:{folder}"
    return f"hf-hub:{name}" if "/" in name else None


def _not_loaded(scheme: str, name: str, error: Exception) -> str:
    folder = Path(name.removeprefix("local-dir:")).expanduser()
    where = "the folder" if folder.is_dir() else "no such folder, and the Hub"
    line = next(iter(str(error).splitlines()), "")
    return (
        f"{scheme}:{name} cannot be loaded: {where} gave {type(error).__name__}: {line} "
        "Give a folder with config.json and model.safetensors, or a Hub name (owner/name) while online."
    )


def _from_torchvision(name: str, weights: str | Path | None, options: dict[str, Any]) -> nn.Module:
    if importlib.util.find_spec("torchvision") is None:
        raise MissingDependencyError("torchvision is not installed: run `pip install torchvision`.")
    models = import_optional("torchvision", "dev").models
    if name not in models.list_models():
        raise ConfigError(
            f"torchvision has no model {name!r}.{closest(name, models.list_models())} See torchvision's list_models()"
        )
    return models.get_model(name, weights="DEFAULT" if weights == PRETRAINED else None, **options)


def _from_hf(name: str, weights: str | Path | None, options: dict[str, Any]) -> nn.Module:
    transformers = import_optional("transformers", "hf")
    if "num_classes" in options:
        options["num_labels"] = options.pop("num_classes")
        options.setdefault("ignore_mismatched_sizes", True)
    if Path(name).expanduser().is_dir():
        name = str(Path(name).expanduser())
    try:
        if "gguf_file" in options:
            return from_gguf(transformers, name, **options)
        config = transformers.AutoConfig.from_pretrained(name)
        # The class the weights were saved from knows its head; AutoModel is the body alone.
        saved_as = [c for c in (config.architectures or []) if hasattr(transformers, c)]
        factory = getattr(transformers, saved_as[0]) if saved_as else transformers.AutoModel
        return factory.from_pretrained(name, **options)
    except (OSError, ValueError) as error:
        raise ConfigError(_not_loaded("hf", name, error)) from error


def from_gguf(transformers: Any, name: str, gguf_file: str, **options: Any) -> Any:
    """Read a causal language model out of a GGUF file, dequantised to float32, as one that saves as any other.

    What transformers reads refuses to be saved, since it is known to be of such a file.
    """
    read = transformers.AutoModelForCausalLM.from_pretrained(name, gguf_file=gguf_file, dtype=torch.float32, **options)
    facts = {k: v for k, v in read.config.to_dict().items() if k != "quantization_config"}
    model = type(read)(type(read.config)(**facts))
    model.load_state_dict(read.state_dict())
    return model.eval()


def _from_python(target: str, weights: str | Path | None, options: dict[str, Any]) -> nn.Module:
    model = import_python_target(target)(**options)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"python:{target} returned {type(model).__name__}; it must return a torch.nn.Module.")
    return model


def _timm_shape(name: str, model: nn.Module | None) -> Shape | None:
    if model is None:
        return None
    channels, height, width = getattr(model, "default_cfg", {}).get("input_size", (3, 224, 224))
    return getattr(model, "in_chans", channels), height, width


def _torchvision_shape(name: str, model: nn.Module | None) -> Shape:
    return (3, 299, 299) if name == "inception_v3" else (3, 224, 224)


TIMM = ModelScheme(build=_from_timm, form="timm:NAME_OR_DIR", input_shape=_timm_shape)
TORCHVISION = ModelScheme(build=_from_torchvision, form="torchvision:NAME", input_shape=_torchvision_shape)
HF = ModelScheme(build=_from_hf, form="hf:NAME_OR_DIR")
PYTHON = ModelScheme(build=_from_python, form="python:module:function", ships_weights=False)


def split_spec(spec: str) -> tuple[ModelScheme, str]:
    """(scheme, name) of a model spec.

    Raises:
        ConfigError: no known scheme before the first colon.
    """
    scheme, separator, name = spec.partition(":")
    if separator and name and scheme in MODEL_SCHEMES.names():
        return MODEL_SCHEMES.get(scheme), name
    for source in () if separator else MODEL_SCHEMES.names():
        names = MODEL_SCHEMES.get(source).names
        if names is not None and spec in names():
            raise ConfigError(
                f"Model {spec!r} has no source: write '{source}:{spec}' (or timm:{spec}, torchvision:{spec})."
            )
    raise ConfigError(
        f"Model {spec!r} is not understood.{closest(scheme, MODEL_SCHEMES.names())} Write one of {forms()}."
    )


def create(spec: str, *, weights: str | Path | None = None, new_head: bool = False, **options: Any) -> nn.Module:
    """Build a model, in training mode as PyTorch builds it (hf: in evaluation mode, as transformers does).

    Args:
        spec: `zoo:NAME`, `builtin:NAME` (with its own weights, see `metaprune data list`), `timm:NAME_OR_DIR`,
            `torchvision:NAME`, `hf:NAME_OR_DIR` or `python:module:function`. A folder, and a Hub name (`owner/name`),
            hold a config and weights, which are loaded.
        weights: a weight file, or "pretrained" for the package's own (timm, torchvision: fetched by that package).
            Default: those of the folder or Hub name, else random, from torch's global generator.
        new_head: the weights are of a network for other classes; its last layer stays random.
        options: passed to the builder: `num_classes`, `in_channels`, `width`, `widths`, `image_size`, ...

    Raises:
        ConfigError: unknown spec, name or option (names the closest one), or a builder that fails.
        MissingDependencyError: the package of the spec is not installed.
        WeightsError: the weight file does not fit.
    """
    check_arguments(create, locals())
    scheme, name = split_spec(spec)
    if weights == PRETRAINED and not scheme.ships_weights:
        raise ConfigError(f"{spec} ships no weights: give a file, or leave `weights` out.")
    try:
        model = scheme.build(name, weights, dict(options))
    except MetapruneError:
        raise
    except Exception as error:  # a package's or the user's builder may raise anything on options it does not like
        given = ", ".join(f"{k}={shown(v)}" for k, v in options.items()) or "no options"
        raise ConfigError(f"{spec} cannot be built with {given}: check these ({one_line_error(error)})") from error
    return model if weights is None or weights == PRETRAINED else load_weights(model, weights, new_head=new_head)


def default_input_shape(spec: str, model: nn.Module | None = None) -> Shape | None:
    """(channels, height, width) that the model of `spec` expects, or None where nothing says so.

    The model's own statement goes before the scheme's: `input_shape`, then `config.image_size` and
    `config.num_channels` (transformers).
    """
    scheme, name = split_spec(spec)
    stated = getattr(model, "input_shape", None)
    if isinstance(stated, tuple) and len(stated) == 3:
        return stated
    if scheme.input_shape is not None:
        return scheme.input_shape(name, model)
    config = getattr(model, "config", None)
    size, channels = getattr(config, "image_size", None), getattr(config, "num_channels", 3)
    return (channels, size, size) if isinstance(size, int) else None
