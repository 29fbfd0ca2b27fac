"""Objectives by name, from the arguments of `prune` or the `[objective]` table of a recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from metaprune.core.arguments import check_arguments, shown
from metaprune.core.errors import ConfigError
from metaprune.core.plugins import Registry
from metaprune.core.strict import from_dict

if TYPE_CHECKING:
    from metaprune.objective.base import Objective
    from metaprune.objective.functions import LossFunction, ScoreFunction

OBJECTIVES = Registry(
    "objective",
    "metaprune.objectives",
    {
        "classification": "metaprune.objective.classification:Classification",
        "multi_label": "metaprune.objective.classification:MultiLabel",
        "regression": "metaprune.objective.dense:Regression",
        "segmentation": "metaprune.objective.dense:Segmentation",
        "next_token": "metaprune.objective.tokens:NextToken",
        "token_classification": "metaprune.objective.tokens:TokenClassification",
        "own_loss": "metaprune.objective.own_loss:OwnLoss",
        "match_outputs": "metaprune.objective.match_outputs:MatchOutputs",
    },
)


def create_objective(
    objective: Objective | str | Mapping[str, Any] | None,
    *,
    loss_fn: LossFunction | None = None,
    score_fn: ScoreFunction | None = None,
) -> Objective | None:
    """Create an objective from an object, a name, or a mapping of a name and its options; None stays None.

    Args:
        objective: an object; a name, as "regression"; `{"kind": "segmentation", "classes": 3}`; or
            "python:module:attribute", a class or function that is called with the options.
        loss_fn, score_fn: functions that take the place of the objective's own, see `FunctionObjective`.

    Raises:
        ConfigError: an unknown name or option (with the closest known one), or an object that is no objective.
        DataError: functions that cannot be used.
    """
    check_arguments(create_objective, locals(), but=("objective", "loss_fn", "score_fn"))
    options: dict[str, Any] = {}
    if isinstance(objective, Mapping):
        options = {str(k): v for k, v in objective.items()}
        objective = options.pop("kind", None)
        if not isinstance(objective, str):
            raise ConfigError(f"an objective table names its kind: one of {', '.join(OBJECTIVES.names())}")
    if isinstance(objective, str):
        objective = _built(objective, options)
    if objective is not None:
        from metaprune.objective.base import Objective as Base

        if not isinstance(objective, Base):
            raise ConfigError(
                f"objective={shown(objective)} is no objective: give a name ({', '.join(OBJECTIVES.names())}), or an "
                "object of a subclass of metaprune.Objective"
            )
    if loss_fn is None and score_fn is None:
        return objective
    from metaprune.objective.functions import from_functions

    return from_functions(objective, loss_fn, score_fn)


def _built(name: str, options: dict[str, Any]) -> Objective:
    target = OBJECTIVES.get(name)
    if isinstance(target, type) and dataclasses.is_dataclass(target):
        return from_dict(target, options, f"objective {name}")
    try:
        return target(**options) if callable(target) else target
    except TypeError as error:
        raise ConfigError(f"objective {name!r} cannot be made with {options or 'no options'}: {error}") from error


def describe_objective(objective: Objective) -> dict[str, Any]:
    """Describe an objective for a record, JSON-able."""
    return {"kind": objective.name, "item": objective.item, "primary": dataclasses.asdict(objective.primary)}
