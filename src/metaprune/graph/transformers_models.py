"""Settings under which a transformers model can be traced; its config is told by its attributes, not by its class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from metaprune.core.errors import NotAvailableError

USE_CACHE = "use_cache"
_QUANTISED_LAYERS = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")


@contextmanager
def as_traced(model: nn.Module) -> Iterator[None]:
    """Leave caches out, and let experts be products of whole batches: the same functions in a form that export takes.

    Configs are as they were after the block.
    """
    changed = []
    for settings in {id(s): s for m in model.modules() if (s := _settings(m))}.values():
        changed.append((settings, settings.copy()))
        if settings.get(USE_CACHE) is True:
            settings[USE_CACHE] = False
        if "_experts_implementation_internal" in settings:
            settings["_experts_implementation_internal"] = "batched_mm"
    try:
        yield
    finally:
        for settings, before in changed:
            settings.update(before)


def keeps_cache(model: nn.Module) -> bool:
    """Tell whether a call without further arguments would return a cache."""
    return any(_settings(m).get(USE_CACHE) is True for m in model.modules())


def knows_cache(model: nn.Module) -> bool:
    """Tell whether a config of the model says `use_cache`, so that its forward takes that argument."""
    return any(USE_CACHE in _settings(m) for m in model.modules())


def without_cache(model: nn.Module, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Leave `use_cache` out of the arguments of a model that knows it: no trace holds a cache."""
    return {n: v for n, v in kwargs.items() if n != USE_CACHE or not knows_cache(model)}


def require_unquantised(model: nn.Module) -> None:
    """Refuse a model whose weights are packed into few bits: what is packed has no channels to drop.

    Buffers of whole numbers are no sign of it in themselves (positions, relative distances): there the config says so.

    Raises:
        NotAvailableError: one is; names it.
    """
    packed = (torch.uint8, torch.int8, torch.float8_e4m3fn, torch.float8_e5m2)
    found = [(n, p.dtype) for n, p in model.named_parameters() if p.dim() > 1 and p.dtype in packed]
    found += [(n, "packed") for n, m in model.named_modules() if type(m).__module__.startswith(_QUANTISED_LAYERS)]
    if any(_settings(m).get("quantization_config") is not None for m in model.modules()):
        found += [(n, b.dtype) for n, b in model.named_buffers() if b.dim() > 1 and b.dtype in (*packed, torch.int32)]
    if found:
        name, kind = found[0][0], str(found[0][1]).removeprefix("torch.")
        raise NotAvailableError(
            f"{name} is quantised ({kind}), and packed weights have no channels to drop: load the model in float, "
            "prune it, and quantise the result"
        )


def groups_experts(model: nn.Module) -> bool:
    """Tell whether experts are one grouped product, whose kernel takes widths of 16 bytes."""
    implementations = (_settings(m).get("_experts_implementation_internal") for m in model.modules())
    return "grouped_mm" in implementations


def _settings(module: nn.Module) -> dict[str, Any]:
    return getattr(getattr(module, "config", None), "__dict__", {})
