"""The papers' networks as a source of models: `zoo:NAME`."""

from __future__ import annotations

from metaprune.models.scheme import ModelScheme
from metaprune_networks.zoo import build_zoo, zoo_entry, zoo_names

ZOO = ModelScheme(
    build=lambda name, weights, options: build_zoo(name, **options),
    form="zoo:NAME",
    ships_weights=False,
    names=zoo_names,
    input_shape=lambda name, model: zoo_entry(name).input_shape,
)
