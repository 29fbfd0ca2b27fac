"""All that a run needs before anything long begins, built once: network, latency table, module rules, task."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import nn

from metaprune.calibration.config import COMPENSATIONS, Compensate
from metaprune.core.errors import ConfigError, InfeasibleBudgetError, SlowWidthsWarning, VerificationError
from metaprune.core.rng import Rng
from metaprune.core.side_effects import copy_model
from metaprune.data import Data
from metaprune.latency import LatencyTable
from metaprune.latency.block_advice import block_advice
from metaprune.network import Network
from metaprune.objective import Classification
from metaprune.protocol.method import Method, PruneTask, completed, recovery_after, require_feasible
from metaprune.recover.config import RecoverConfig, parse_recover
from metaprune.recover.scratch import reinitialise
from metaprune.runs.config import MOST_ROUNDS
from metaprune.runs.inputs import require_fit, require_traced
from metaprune.runs.record import options_record
from metaprune.surgery.keep_config import config_rules
from metaprune.surgery.keep_module import ModuleRules, module_rules
from metaprune.tracing import trace
from metaprune.train.config import require_choice, require_number
from metaprune.train.require import require_trainable
from metaprune.values import Budget, Constraints

log = logging.getLogger("metaprune")

Form = Literal["auto", "module", "graph"]
RecoveryLoop = Callable[[nn.Module, Any], None]
"""A training loop of the user's own: trains the model in place; the second argument is the `Data`, or None."""


@dataclass(frozen=True)
class Prepared:
    """A network that is ready to be pruned.

    Attributes:
        asked: the constraints as they were given; `constraints` hold what `keep_module` or `keep_config` adds to them.
        rules: what those tie and leave whole.
        data: bound to the network, where its objective is label-free.
        recover: the recovery that follows, once the method had its say; `asked_recover` is what was given.
        own_loop: a recovery of the user's own, in the place of `recover`.
        latency_table: whose milliseconds the network knows, or None.
    """

    network: Network
    method: Method
    budget: Budget
    asked: Constraints
    constraints: Constraints
    rules: ModuleRules
    form: Form
    data: Data | None
    recover: RecoverConfig
    asked_recover: RecoverConfig
    own_loop: RecoveryLoop | None
    compensate: Compensate
    rounds: int
    free_outputs: bool | Sequence[str]
    batch_dim: int
    latency_table: LatencyTable | None
    batch_size: int
    seed: int
    progress: bool

    def task(self, folder: Path | None = None) -> PruneTask:
        """Make what the method is given; its long work is kept in `folder`."""
        return PruneTask(
            self.network,
            self.data,
            self.constraints,
            batch_size=self.batch_size,
            folder=folder,
            progress=self.progress,
        )

    def require_feasible(self) -> None:
        """Say now what would fail after hours: a budget that no structure meets, patterns that match nothing.

        Raises:
            InfeasibleBudgetError, NotAvailableError, PlanError: as the method says.
        """
        with self.infeasible_explained():
            require_feasible(self.method, self.task(), self.budget)

    def infeasible_explained(self) -> _Explained:
        """Let an infeasible budget in the block say what `keep_module` or `keep_config` left whole, and why."""
        return _Explained(self)


class _Explained:
    def __init__(self, prepared: Prepared):
        self._prepared = prepared

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        rules, groups = self._prepared.rules, len(self._prepared.network.space)
        if isinstance(error, InfeasibleBudgetError) and rules.whole:
            who = "keep_config" if self._prepared.asked.keep_config else "keep_module"
            text = f"{error}. {who} leaves {len(rules.whole)} of {groups} groups whole: {rules.why}"
            raise InfeasibleBudgetError(text, error.smallest) from error


def prepare(
    model: nn.Module,
    example_inputs: Any,
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    budget: Budget,
    method: Method,
    constraints: Constraints,
    data: Data | None = None,
    recover: RecoverConfig | str | RecoveryLoop | None = None,
    compensate: Compensate = "none",
    rounds: int = 1,
    form: Form = "auto",
    free_outputs: bool | Sequence[str] = False,
    batch_dim: int = 0,
    latency_table: str | Path | None = None,
    batch_size: int = 128,
    seed: int = 0,
    progress: bool = True,
) -> Prepared:
    """Trace `model` and check everything that can be checked before a method runs.

    Raises:
        ConfigError: data that is missing, options that exclude each other, a latency table of another network.
        DataError: a model that does not run on the data, or an objective that does not fit either.
        UntraceableError, PlanError, NotAvailableError: as `trace` and the method say.
    """
    if isinstance(recover, nn.Module):
        raise ConfigError(
            "recover is a network: give none, bn, finetune, distil, scratch, or a function of (model, data)"
        )
    if isinstance(recover, type):
        raise ConfigError(f"recover={recover.__name__} is a class: give an object of it, as {recover.__name__}(...)")
    require_number("batch_size", batch_size, 1)
    require_number("rounds", rounds, 1, MOST_ROUNDS)
    if rounds > 1 and (latency_table is not None or getattr(method, "artifact", None)):
        raise ConfigError(
            "rounds=1 is needed with a latency table and with a fitted artifact: both are of the full network, and "
            "later rounds prune a smaller one"
        )
    require_choice("compensate", compensate, COMPENSATIONS)
    options_record(method)  # refuses what no record may hold, before hours of work
    own_loop = None if recover is None or isinstance(recover, (str, RecoverConfig)) else recover
    if own_loop is not None and not callable(own_loop):
        parse_recover(own_loop)  # type: ignore[arg-type]  # says what is accepted
    asked = parse_recover("none" if own_loop is not None else recover)  # type: ignore[arg-type]
    recovery = replace(asked, kind=recovery_after(method, asked.kind))
    _require_data(method, data, recovery, compensate)
    args = example_inputs if isinstance(example_inputs, tuple) or example_inputs is None else (example_inputs,)
    if isinstance(model, nn.Module) and any(p.is_meta for p in model.parameters()):
        raise ConfigError("the model is on the meta device: give it weights first, by model.to_empty(device='cpu')")
    network = trace(model, args, dict(example_kwargs or {}), free_outputs=free_outputs, batch_dim=batch_dim)
    network, table = attach_latency_table(network, latency_table)
    data = None if data is None else data.bound_to(network.model)
    require_fit(network.model, data)
    if method.needs_data or compensate != "none":
        require_traced(network, data)
    if data is not None and recovery.kind in ("finetune", "distil", "scratch"):
        require_trainable(data, recovery.train, own_loss=recovery.kind == "distil")
    rules = _rules_of(network, constraints, form, seed)
    if table is not None and (advice := block_advice(network, rules.applied_to(constraints), table.info["runtime"])):
        warnings.warn(advice, SlowWidthsWarning, stacklevel=2)
    for pattern, names in network.space.named_by(constraints).items():
        log.info("%s: %d group%s, %s", pattern, len(names), "s"[: len(names) != 1], ", ".join(names[:8]))
    if recovery.kind == "scratch":  # what cannot be initialised shows now, not after a search
        reinitialise(copy_model(network.model), Rng(seed))
    return Prepared(
        network=network,
        method=method,
        budget=budget,
        asked=constraints,
        constraints=rules.applied_to(constraints),
        rules=rules,
        form="module" if (constraints.keep_module or constraints.keep_config) and form == "auto" else form,
        data=data,
        recover=recovery,
        asked_recover=asked,
        own_loop=own_loop,
        compensate=compensate,
        rounds=rounds,
        free_outputs=free_outputs,
        batch_dim=batch_dim,
        latency_table=table,
        batch_size=batch_size,
        seed=seed,
        progress=progress,
    )


def _rules_of(network: Network, constraints: Constraints, form: Form, seed: int) -> ModuleRules:
    """Rules under which the model's own class runs: where that is asked for, and where it generates text.

    A graph form has one length, so that it cannot generate.
    """
    if constraints.keep_config:
        if form == "graph":
            raise ConfigError("keep_config keeps the model's class, and form='graph' does not: leave one of them out")
        return config_rules(network, seed)
    if constraints.keep_module:
        return module_rules(network, seed, constraints)
    can_generate = getattr(network.model, "can_generate", None)
    if form == "auto" and callable(can_generate) and can_generate():
        with contextlib.suppress(VerificationError):  # no module form at all: the graph form is what there is
            return module_rules(network, seed, constraints)
    return ModuleRules()


def _require_data(method: Method, data: Data | None, recovery: RecoverConfig, compensate: Compensate) -> None:
    """Raises ConfigError where data are needed and missing, or are not of the kind that the method is for."""
    needing = {
        f"method {method.name!r}": method.needs_data,
        f"recover={recovery.kind!r}": recovery.kind != "none",
        f"compensate={compensate!r}": compensate != "none",
    }
    what = next((name for name, needs in needing.items() if needs), None)
    if data is None and what is not None:
        raise ConfigError(f"{what} needs data: pass data=... (--data on the command line)")
    if data is not None and completed(method).needs_classes and not isinstance(data.objective, Classification):
        kind = "no objective" if data.objective is None else f"objective {data.objective.name!r}"
        raise ConfigError(
            f"method {method.name!r} is for data with classes, and {data.name} has {kind}: take taylor, say"
        )


def attach_latency_table(network: Network, path: str | Path | None) -> tuple[Network, LatencyTable | None]:
    """Give the network the milliseconds of a latency table; return also the table.

    Raises:
        ConfigError: no table, or one of another network.
    """
    if path is None:
        return network, None
    table = LatencyTable.load(path)
    table.check(network)
    if table.warning is not None:
        warnings.warn(table.warning, stacklevel=2)
    return network.with_latency(table.predict_ms), table
