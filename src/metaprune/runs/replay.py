"""A recorded run again, from its record alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from metaprune.core.arguments import check_arguments
from metaprune.core.errors import ConfigError
from metaprune.core.strict import from_dict
from metaprune.recover.config import RecoverConfig
from metaprune.runs.config import RunConfig
from metaprune.runs.prune import prune
from metaprune.runs.record import OWN_LOOP
from metaprune.runs.result import Result
from metaprune.runs.run import run
from metaprune.runs.schema import upgraded
from metaprune.values import Constraints


def replay_run(record: Mapping[str, Any], folder: str | Path, *, progress: bool = True) -> dict[str, Any]:
    """Repeat a run in a folder of its own; returns the new record.

    Raises:
        ConfigError: the record is of `prune`, which knows neither the model's spec nor the data's (see `replay`).
    """
    config = upgraded(record)["config"]
    if config is None:
        raise ConfigError(
            "the record is of a call of prune, which knows no model or data by name: use metaprune.replay(record, "
            "model, example_inputs, data=...)"
        )
    return run(from_dict(RunConfig, config), folder, progress=progress)


def replay(
    record: Mapping[str, Any],
    model: nn.Module,
    example_inputs: Any,
    example_kwargs: Mapping[str, Any] | None = None,
    **given: Any,
) -> Result:
    """Call `prune` as a record says it was called: budget, method with options, constraints, recovery, seed, form.

    Args:
        record: of a result, or read from record.json.
        model: the original, as it was given to `prune`.
        example_inputs: as for `prune`.
        example_kwargs: as for `prune`.
        given: what a record cannot hold (`data`, `loss_fn`, `score_fn`, an `objective` object, a recovery loop), and
            arguments that shall differ.

    Raises:
        ConfigError: the run recovered by a loop of the user's own, which is not given.
    """
    check_arguments(replay, locals())
    recorded = upgraded(record)
    if recorded["method_options"] is None:
        raise ConfigError("the record is of a version that recorded no options: it cannot be replayed; run prune anew")
    if recorded["recover"]["kind"] == OWN_LOOP and "recover" not in given:
        raise ConfigError("the run recovered by a loop of your own, which a record cannot hold: pass recover=...")
    arguments = {
        "budget": recorded["budget"],
        "method": recorded["method"],
        "method_options": recorded["method_options"],
        "constraints": from_dict(Constraints, recorded["constraints"], "constraints"),
        "compensate": recorded["compensate"],
        "rounds": recorded["rounds"],
        "form": recorded["form"],
        "free_outputs": recorded["free_outputs"],
        "batch_dim": recorded.get("batch_dim", 0),
        "batch_size": recorded["batch_size"],
        "seed": recorded["seed"],
    }
    if "recover" not in given:
        arguments["recover"] = from_dict(RecoverConfig, recorded["recover"], "recover")
    return prune(model, example_inputs, example_kwargs, **{**arguments, **given})
