"""Built-in weights as a source of models: `builtin:NAME`, fetched by `metaprune data get NAME`."""

from __future__ import annotations

from metaprune.models.scheme import ModelScheme
from metaprune_datasets.pretrained import build

BUILTIN_MODELS = ModelScheme(
    build=lambda name, weights, options: build(name, **options), form="builtin:NAME", ships_weights=False
)
