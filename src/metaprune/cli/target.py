"""What a verb measures: the dense network of a run's folder, of a recipe, or a model by itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metaprune.core.errors import ConfigError
from metaprune.runs.config import RunConfig, from_dict, override, read_recipe


def target_config(target: str, overrides: Mapping[str, Any], *, trust: bool) -> RunConfig:
    """Read the config of a run's folder (with the weights of its dense network), a recipe, or a model spec.

    Raises:
        ConfigError: a folder without a dense network, or what `read_recipe` finds.
    """
    path = Path(target)
    if path.is_dir():
        config = read_recipe(path / "config.json", overrides, trust=trust)
        dense = path / "dense.safetensors"
        if not dense.is_file():
            raise ConfigError(f"{path} holds no dense.safetensors: start its command again to go on")
        model = dataclasses.replace(config.model, weights=str(dense), new_head=False)
        return dataclasses.replace(config, model=model, train=None)
    if path.suffix in (".toml", ".json"):
        return read_recipe(path, overrides, trust=trust)
    return from_dict(RunConfig, override({"model": {"spec": target}, "budget": {"macs": "100%"}}, overrides))
