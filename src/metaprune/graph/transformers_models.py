"""Settings under which a transformers model can be traced; its config is told by its attributes, not by its class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def as_traced(model: nn.Module, kwargs: Mapping[str, Any]) -> Iterator[None]:
    """Leave caches out, and let experts be products of whole batches: the same functions in a form that export takes.

    A cache that `kwargs` ask for stays. Configs are as they were after the block.
    """
    changed = []
    for settings in {id(s): s for m in model.modules() if (s := _settings(m))}.values():
        changed.append((settings, settings.copy()))
        if settings.get("use_cache") is True and "use_cache" not in kwargs:
            settings["use_cache"] = False
        if "_experts_implementation_internal" in settings:
            settings["_experts_implementation_internal"] = "batched_mm"
    try:
        yield
    finally:
        for settings, before in changed:
            settings.update(before)


def keeps_cache(model: nn.Module) -> bool:
    """Tell whether a call without further arguments would return a cache."""
    return any(_settings(m).get("use_cache") is True for m in model.modules())


def groups_experts(model: nn.Module) -> bool:
    """Tell whether experts are one grouped product, whose kernel takes widths of 16 bytes."""
    implementations = (_settings(m).get("_experts_implementation_internal") for m in model.modules())
    return "grouped_mm" in implementations


def _settings(module: nn.Module) -> dict[str, Any]:
    return getattr(getattr(module, "config", None), "__dict__", {})
