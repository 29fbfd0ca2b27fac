"""Going on from a fitted run: its recipe, with what may still change."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metaprune.core.errors import ConfigError
from metaprune.core.files import part_of
from metaprune.core.read import read_json, understood
from metaprune.core.strict import from_dict, override
from metaprune.protocol.artifact import INFO
from metaprune.protocol.options import fitted_options
from metaprune.protocol.registry import method_spec
from metaprune.runs.config import RunConfig
from metaprune.runs.trust import code_in, require_trusted
from metaprune.values import Budget


def fitted_config(
    folder: Path,
    overrides: dict[str, Any],
    method: str,
    tables: Sequence[str],
    verbs: str,
    *,
    given: Sequence[str] = (),
    trust: bool = False,
) -> RunConfig:
    """Load the recipe of a fitted run.

    Args:
        method: whose fit it has to be.
        tables: tables of the recipe that cannot change after the fit.
        verbs: end of the message about another method's fit: which verb is for what.
        given: code that the caller's own arguments name, as `python:module:function`.
        trust: follow what the recipe of another user's run names.

    Raises:
        ConfigError: no fitted run there, another method's, or an override of what the fit decided.
    """
    _require_unfitted(overrides, (*fitted_options(method_spec(method).config_class()), "artifact"), tables)
    fitted = part_of(folder, INFO).is_file()
    if (folder / "config.json").is_file() and not fitted:
        raise ConfigError(f"the run in {folder} is not finished: `metaprune fit` as it was started goes on with it")
    if not fitted:
        raise ConfigError(f"{folder} holds no fitted run: make one with `metaprune fit {method} RECIPE --run {folder}`")
    path = folder / "config.json"
    recipe = read_json(path, remedy="fit it again", keys=("method",))
    with understood(str(path), "fit it again"):
        name = recipe["method"]["name"]
    if name != method:
        raise ConfigError(f"{folder} holds a {name}{verbs}")
    require_trusted(folder, recipe, given=[*given, *code_in(overrides)], trust=trust)
    return from_dict(RunConfig, override(recipe, overrides))


def _require_unfitted(overrides: dict[str, Any], fitted: Sequence[str], tables: Sequence[str]) -> None:
    for key in overrides:
        if key.partition(".")[0] in tables:
            raise ConfigError(
                f"{key} does nothing here: the network is the fit's, budget and data have their arguments"
            )
        option = key.removeprefix("method.options.").partition(".")[0]
        if key.startswith("method.options.") and option in fitted:
            raise ConfigError(f"{key} was decided by the fit: run `metaprune fit` with it, into another folder")


def with_dense(config: RunConfig, folder: Path) -> RunConfig:
    """Configure the network as the fit saw it: trained there, if it was."""
    if config.train is None:
        return config
    return dataclasses.replace(
        config, model=dataclasses.replace(config.model, weights=str(folder / "dense.safetensors"))
    )


def budget_in_path(budget: Budget) -> str:
    """Write a budget as in a path: `macs-50pct_params-1000000`."""
    return "_".join(f"{m}-{v}" for m, v in budget.to_dict().items()).replace("%", "pct")
