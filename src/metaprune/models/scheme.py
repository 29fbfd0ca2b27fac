"""Where models come from: one scheme per source, known by the word before the colon of a spec."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from metaprune.core.plugins import Registry

Shape = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class ModelScheme:
    """A source of models.

    Attributes:
        build: (name, weights, options) -> model; weights is `pretrained`, a file that the caller loads, or None.
        form: how a spec of it is written, as `timm:NAME_OR_DIR`.
        ships_weights: whether `weights="pretrained"` means something.
        names: the names it knows, where they can be listed.
        input_shape: (name, model) -> (channels, height, width) of a sample, or None where nothing says so.
    """

    build: Callable[[str, str | Path | None, dict[str, Any]], nn.Module]
    form: str
    ships_weights: bool = True
    names: Callable[[], tuple[str, ...]] | None = None
    input_shape: Callable[[str, nn.Module | None], Shape | None] | None = None


MODEL_SCHEMES = Registry(
    "source of models",
    "metaprune.models",
    {
        "zoo": "metaprune_networks.scheme:ZOO",
        "builtin": "metaprune_datasets.scheme:BUILTIN_MODELS",
        "timm": "metaprune.models.sources:TIMM",
        "torchvision": "metaprune.models.sources:TORCHVISION",
        "hf": "metaprune.models.sources:HF",
        "python": "metaprune.models.sources:PYTHON",
    },
)


def forms() -> str:
    """List how specs are written: `zoo:NAME, timm:NAME_OR_DIR, ...`."""
    return ", ".join(MODEL_SCHEMES.get(name).form for name in MODEL_SCHEMES.names())
