"""The original model of a module form, built from what the archive says: no code, no folder, no network.

Names are those that the package itself lists, options are of a list, and a transformers model is made from the config
that the archive holds.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from metaprune.core.errors import DataError, MetapruneError, NotAvailableError, first_line
from metaprune.core.imports import import_optional
from metaprune.models import MODEL_SCHEMES
from metaprune.models.scheme import ModelScheme

_OPTIONS = frozenset(
    [
        "num_classes",
        "num_labels",
        "in_channels",
        "in_chans",
        "width",
        "widths",
        "image_size",
        "img_size",
        "patch_size",
        "depth",
        "depths",
        "embed_dim",
        "embed_dims",
        "num_heads",
        "mlp_ratio",
        "drop_rate",
        "drop_path_rate",
        "dropout",
        "attention_dropout",
        "stochastic_depth_prob",
        "global_pool",
        "output_stride",
        "width_mult",
        "width_per_group",
        "groups",
        "aux_logits",
        "transform_input",
        "init_weights",
        "small_stem",
        "shortcut",
        "hidden",
        "channels",
        "blocks",
        "heads",
    ]
)
_OWN_CODE = "the archive holds a module form whose class it cannot make by itself"
_NAME = re.compile(r"\w+(\.\w+)?", re.ASCII)  # no owner, no path, no prefix
_TEXT = re.compile(r"[\w. -]{0,64}", re.ASCII)  # neither a path nor the name of a repository
_LARGEST_NUMBER = 2**24
_DEPTH = 6
_ATTENTION = ("eager", "sdpa")  # any other name may stand for a kernel that is fetched

# of a config: what names files, repositories, other models or code; they are neither written nor read
_CONFIG_LEFT_OUT = frozenset(
    [
        "_name_or_path",
        "architectures",
        "auto_map",
        "id2label",
        "label2id",
        "transformers_version",
        "torch_dtype",
        "dtype",
        "model_type",
        "quantization_config",
        "attn_implementation",
        "experts_implementation",
        "_attn_implementation",
        "_experts_implementation",
        "task_specific_params",
        "base_model_tp_plan",
        "base_model_pp_plan",
        "tokenizer_class",
        "finetuning_task",
        "problem_type",
    ]
)
_CONFIG_REFUSED = ("backbone", "use_pretrained_backbone", "use_timm_backbone", "use_kernels")


class _Bounded(TorchDispatchMode):
    """Refuses a model that asks for many more elements than the archive could hold the rest of."""

    def __init__(self, limit: int):
        super().__init__()
        self.left = limit

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        if not any(isinstance(a, torch.Tensor) for a in args) and args and isinstance(args[0], (list, tuple)):
            count = 1
            for size in args[0]:
                count *= size if isinstance(size, int) else 1
            self.left -= count
            if self.left < 0:
                raise DataError(
                    "the options in the archive ask for a model many times as large as its tensors: it is damaged, or "
                    "pass factory=... to build the model yourself"
                )
        return func(*args, **(kwargs or {}))


def describe_transformers(model: nn.Module) -> dict[str, Any] | None:
    """Class and config of a transformers model, from which `build` makes it; None of anything else."""
    package = sys.modules.get("transformers")
    kind = type(model).__name__
    if package is None or not isinstance(model, package.PreTrainedModel):
        return None
    config: Any = model.config
    if kind not in _classes_of(config.model_type):
        return None
    attention = getattr(config, "_attn_implementation", None)
    plain = _plain(config.to_dict())
    if config.id2label is not None and "num_labels" not in plain:
        plain["num_labels"] = config.num_labels
    known = {
        "class": kind,
        "model_type": config.model_type,
        "config": plain,
        "attention": attention if attention in _ATTENTION else "eager",
    }
    try:
        _checked_config(known)
    except MetapruneError:
        return None  # such as one with a backbone of another package: it needs its factory
    return known


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items() if k not in _CONFIG_LEFT_OUT or k == "model_type"}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


def _classes_of(model_type: Any) -> set[str]:
    """Names of the model classes that transformers itself lists for a kind of model."""
    import_optional("transformers", "hf")
    from transformers.models.auto import modeling_auto

    names: set[str] = set()
    for table, mapping in vars(modeling_auto).items():
        if table.startswith("MODEL_") and table.endswith("MAPPING_NAMES") and isinstance(model_type, str):
            held = mapping.get(model_type, ())
            names.update((held,) if isinstance(held, str) else held)
    return names


def _checked_config(described: Any) -> dict[str, Any]:
    """Keyword arguments of the config's class."""
    if not isinstance(described, dict) or not isinstance(described.get("config"), dict):
        raise DataError("the archive describes no transformers config: save the network again")
    config = {k: v for k, v in described["config"].items() if k != "model_type"}
    if described.get("class") not in _classes_of(described.get("model_type")):
        raise DataError(
            f"the archive names the class {described.get('class')!r} for {described.get('model_type')!r}, which "
            "transformers does not list: pass factory=..."
        )
    from transformers import CONFIG_MAPPING

    known = set(CONFIG_MAPPING[described["model_type"]]().to_dict()) | {"num_labels"}
    _require_config_keys(config, known)
    return config


def _require_config_keys(config: dict[str, Any], known: set[str] | None, depth: int = 0) -> None:
    for key, value in config.items():
        left_out = key in _CONFIG_LEFT_OUT and not (depth and key == "model_type")
        refused = key in _CONFIG_REFUSED and value not in (None, False)
        if left_out or refused or key.startswith("_") or (known is not None and key not in known):
            raise DataError(
                f"the config in the archive holds {key!r}, which may fetch or run something: pass factory=... instead"
            )
        _require_plain(key, value, depth)


def _require_plain(key: str, value: Any, depth: int = 0) -> None:
    """Numbers, short texts without a slash, and lists and tables of such."""
    if depth > _DEPTH:
        raise DataError(f"{key!r} in the archive is nested too deeply: it is damaged, save the network again")
    if isinstance(value, dict):
        _require_config_keys(value, None, depth + 1)
    elif isinstance(value, list):
        for part in value[:100_000]:
            _require_plain(key, part, depth + 1)
    elif not (
        value is None
        or isinstance(value, (bool, float))
        or (isinstance(value, int) and abs(value) <= _LARGEST_NUMBER)
        or (isinstance(value, str) and _TEXT.fullmatch(value))
    ):
        raise DataError(
            f"{key}={str(value)[:60]!r} in the archive is no size, flag or plain name: pass factory=... instead"
        )


def portable(spec: str | None, options: dict[str, Any], model: nn.Module) -> tuple[str | None, dict[str, Any]]:
    """Spec and options without a path: a timm folder or Hub name becomes the architecture that was loaded from it."""
    scheme, _, name = (spec or "").partition(":")
    if scheme != "timm" or (_NAME.fullmatch(name) and not Path(name).is_dir()):
        return spec, options
    architecture = (getattr(model, "pretrained_cfg", None) or {}).get("architecture")
    if architecture is None:
        return spec, options
    sizes = {"num_classes": "num_classes", "in_chans": "in_chans", "global_pool": "global_pool"}
    held = {
        option: getattr(model, name)
        for name, option in sizes.items()
        if isinstance(getattr(model, name, None), (int, str))
    }
    return f"timm:{architecture}", {**held, **options}


def build(described: dict[str, Any], elements: int) -> nn.Module:
    """The unpruned model of an archive. `elements`: of its tensors, by which sizes are bounded.

    Raises:
        NotAvailableError: a class of the user's own, or an archive of transformers' weights by name (`hf:`).
        DataError: options, names or configs that no archive holds.
    """
    spec, options = described["spec"], described["options"]
    try:
        with _Bounded(1000 * elements + 2**26), torch.random.fork_rng(devices=[]):
            if described.get("transformers") is not None:
                return _transformers_model(described["transformers"])
            return _listed_model(spec, options)
    except MetapruneError:
        raise
    except Exception as error:  # a package's builder may raise anything
        raise DataError(
            f"{spec} cannot be built as the archive says ({type(error).__name__}: {first_line(error)}): it is damaged, "
            "or pass factory=..."
        ) from error


def _transformers_model(described: Any) -> nn.Module:
    if described.get("attention") not in _ATTENTION:
        raise DataError(f"the archive asks for attention {described.get('attention')!r}: it is eager or sdpa")
    kind, config = checked_transformers(described)
    config._attn_implementation = described["attention"]
    return kind._from_config(config)


def checked_transformers(described: Any) -> tuple[Any, Any]:
    """Class and config that `class`, `model_type` and `config` of a stranger describe; nothing is fetched.

    Raises:
        DataError: a class that transformers does not list, or a config with more than sizes, flags and plain names.
    """
    transformers = import_optional("transformers", "hf")
    options = _checked_config(described)
    kind: Any = getattr(transformers, described["class"])
    return kind, transformers.AutoConfig.for_model(described["model_type"], **options)


def plain_config(config: dict[str, Any]) -> dict[str, Any]:
    """Leave out of a config what names files, repositories, other models or code."""
    return _plain(config)


def _listed_model(spec: Any, options: Any) -> nn.Module:
    scheme, _, name = spec.partition(":") if isinstance(spec, str) else ("", "", "")
    if scheme not in ("zoo", "timm", "torchvision", "hf"):
        raise NotAvailableError(
            f"{_OWN_CODE}: pass factory=lambda: YourModel(...), the unpruned model, or form='graph', which needs no "
            "class"
        )
    if unsafe := sorted(set(options) - _OPTIONS):
        raise DataError(
            f"the archive asks for {', '.join(unsafe)}, which may fetch or run something: pass factory=... instead"
        )
    if scheme == "hf":
        raise NotAvailableError(
            f"{_OWN_CODE}: it was made from {spec!r}, which would be fetched, and holds no config. Pass "
            f"factory=lambda: metaprune.models.create({spec!r}), or form='graph'"
        )
    if not _NAME.fullmatch(name):
        raise DataError(f"the archive names the model {spec!r}, which is no plain name of {scheme}: pass factory=...")
    for key, value in options.items():
        _require_plain(key, value)
    if scheme == "timm":  # a folder of this name in the working folder is not what the archive means
        timm = import_optional("timm", "timm")
        if not timm.is_model(name):
            raise DataError(f"timm has no model {name!r}, which the archive names: pass factory=...")
        options = {("in_chans" if k == "in_channels" else k): v for k, v in options.items()}
        return timm.create_model(name, pretrained=False, **options)
    source: ModelScheme = MODEL_SCHEMES.get(scheme)
    return source.build(name, None, dict(options))
