"""Settings under which a transformers model can be traced; its config is told by its attributes, not by its class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn


def set_traceable(model: nn.Module, kwargs: Mapping[str, Any]) -> None:
    """Leave caches out, and let experts be products of whole batches: the same functions in a form that export takes.

    Changes configs in place; the caller puts them back. A cache that `kwargs` ask for stays.
    """
    for config in {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}.values():
        settings = getattr(config, "__dict__", {})
        if settings.get("use_cache") is True and "use_cache" not in kwargs:
            config.use_cache = False
        if "_experts_implementation_internal" in settings:
            config._experts_implementation_internal = "batched_mm"
