"""`sensitivity`: how far the outputs move when each group alone gets narrower, as curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from metaprune.calibration.config import SHARES
from metaprune.calibration.sensitivity import Curve, output_loss, sensitivities
from metaprune.core.arguments import check_arguments
from metaprune.core.errors import ConfigError
from metaprune.core.rng import Rng
from metaprune.data import Data, as_data
from metaprune.objective import Objective, create_objective
from metaprune.protocol.registry import create_method
from metaprune.runs.prepare import Prepared, prepare
from metaprune.search.units import all_units
from metaprune.values import Budget, Constraints, Plan

CRITERION = "activation"


def sensitivity(
    model: nn.Module,
    example_inputs: Any,
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    data: Data | str | Sequence[Any],
    objective: Objective | str | Mapping[str, Any] | None = None,
    criterion: str = CRITERION,
    shares: Sequence[float] = SHARES,
    constraints: Constraints | None = None,
    batch_size: int = 128,
    seed: int = 0,
) -> list[Curve]:
    """Measure how far the outputs move when each group alone keeps a share of its channels.

    What reads the group is solved anew in closed form (least squares). Training samples are read, and no labels.
    `model` is not changed. `prune` with the same seed and `allocate="sensitivity"` measures the same curves.

    Args:
        model: in eval or train mode.
        example_inputs: a tensor or a tuple of positional inputs.
        example_kwargs: keyword inputs of the example.
        data: see `prune`.
        objective: see `prune`. It says how far two outputs are apart, by its `distillation`.
        criterion: a method that scores channels, as activation or magnitude; the highest stay.
        shares: of the width, each above 0 and below 1. Of each group, the nearest that it may take is measured.
        constraints: groups that stay whole have no curve; tied groups share one.
        batch_size: samples per forward pass of the criterion.
        seed: which samples are read.

    Returns:
        Of each unit that may shrink: its `groups`, its `shares`, and the divergence at each, `losses`. In the order of
        the network.

    Raises:
        ConfigError: a criterion that scores no channels, or shares that are none.
        DataError: data that do not fit the model, or too few.
        UntraceableError: as `trace` says.
        PlanError: a pattern of the constraints that matches nothing.
    """
    check_arguments(sensitivity, locals(), but=("data", "objective"))
    prepared = prepare(
        model,
        example_inputs,
        example_kwargs,
        budget=Budget(macs="100%"),
        method=create_method(criterion),
        constraints=constraints or Constraints(),
        data=as_data(data, objective=create_objective(objective)),
        compensate="least-squares",  # so that the data are checked: the traced graph runs on them
        batch_size=batch_size,
        seed=seed,
        progress=False,
    )
    return measured_curves(prepared, shares)


def measured_curves(prepared: Prepared, shares: Sequence[float] = SHARES) -> list[Curve]:
    """Measure the curves of a network that is ready to be pruned; its method scores the channels."""
    if len(shares) == 0 or not all(0 < share < 1 for share in shares):
        raise ConfigError(f"shares={list(shares)} are none: give shares of the width above 0 and below 1, as 0.5")
    method, task = prepared.method, prepared.task()
    rng = Rng(prepared.seed).child("method", method.name)  # as in a run, so that its curves are these
    if not callable(scores_of := getattr(method, "scores", None)):
        raise ConfigError(f"method {method.name!r} scores no channels: take activation, taylor or magnitude, say")
    space, data = prepared.network.space, task.require_data("sensitivity")
    scores = scores_of(task, Plan(), rng.child("step", 0))
    units = [unit for unit in all_units(space, prepared.constraints) if len(unit.levels) > 1]
    loss = output_loss(prepared.network, data, rng.child("curves"), shares)
    return sensitivities(space, loss, units, scores, shares)
