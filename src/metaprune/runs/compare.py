"""`compare`: methods at equal budgets, with equal training, over seeds. Every cell is a run in a folder of its own."""

from __future__ import annotations

import dataclasses
import logging
import re
import shlex
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metaprune.core.arguments import check_arguments
from metaprune.core.errors import (
    ConfigError,
    InfeasibleBudgetError,
    NoEffectWarning,
    NotAvailableError,
    PlanError,
    SearchError,
    TrainingDivergedError,
    VerificationError,
    first_line,
)
from metaprune.core.strict import override
from metaprune.protocol.method import recovery_after
from metaprune.protocol.registry import create_method
from metaprune.recover.config import RecoverConfig
from metaprune.report.comparison import Comparison
from metaprune.report.comparison_rows import RunRow, budget_text, run_row
from metaprune.runs.auto import AUTO
from metaprune.runs.config import MethodConfig, RunConfig
from metaprune.runs.inputs import load_inputs
from metaprune.runs.lock import BusyError
from metaprune.runs.run import prepared_of, run
from metaprune.runs.verb_tools import assignments
from metaprune.values import Budget

log = logging.getLogger("metaprune")

PAGE = "comparison.html"
POLL_S = 1.0  # between looks at cells that other processes work on
_OF_THE_METHOD = (
    InfeasibleBudgetError,
    NotAvailableError,
    PlanError,
    SearchError,
    TrainingDivergedError,
    VerificationError,
)
"""What a cell may end in without ending the comparison: it says something of the method at that budget."""


@dataclass(frozen=True)
class Cell:
    """A method at a budget with a seed. label: the method, with the options that were given."""

    label: str
    config: RunConfig
    folder: Path


def compare(
    config: RunConfig,
    folder: str | Path,
    *,
    methods: Sequence[str],
    budgets: Sequence[Budget | Mapping[str, Any] | str],
    seeds: int = 3,
    progress: bool = True,
) -> dict[str, Any]:
    """Compare methods on one network: the same budgets, the same recovery, several seeds.

    The dense network is trained once, by the config's own `train`, and every cell begins with its weights. Cells are
    runs below `folder`. Killed and started again, it continues; several processes in one folder share the cells.
    Writes comparison.html, .csv and .json into `folder`.

    Args:
        config: the recipe. Its method and budget are those of no cell; its method's options go to that method.
        folder: of the comparison; its runs lie below it.
        methods: names, `python:module:Class`, or names with options, as "magnitude p=1".
        budgets: each as for `prune`; "50%" is of the metric that the config bounds.
        seeds: how many; from the config's seed on.
        progress: show progress bars.

    Returns:
        What comparison.json holds: `runs`, one row per cell, and `methods`, one per method and budget. A cell in which
        a method fails (an infeasible budget, say) has a `failure`.

    Raises:
        ConfigError: an unknown method or option, methods that recover differently, or a folder of other runs.
        MetapruneError: as `run` raises them, from the dense training.
    """
    check_arguments(compare, locals(), but=("budgets",))
    return compared(config, folder, methods=methods, budgets=budgets, seeds=seeds, progress=progress).to_dict()


def compared(
    config: RunConfig,
    folder: str | Path,
    *,
    methods: Sequence[str],
    budgets: Sequence[Budget | Mapping[str, Any] | str],
    seeds: int,
    progress: bool,
) -> Comparison:
    """Do what `compare` says; return the runs side by side."""
    if isinstance(budgets, (str, Mapping)) or not isinstance(budgets, Sequence) or not len(budgets) or not len(methods):
        raise ConfigError('methods and budgets are lists: give methods=["magnitude", "taylor"], budgets=["50%", "25%"]')
    if seeds < 1:
        raise ConfigError(f"seeds={seeds}: give 1 or more")
    folder = Path(folder)
    chosen = [method_of(config, method) for method in methods]
    bounds = [budget_of(config, budget) for budget in budgets]
    cells = list(_cells(config, folder, chosen, bounds, seeds))
    _require_apart(cells)
    _require_equal_recovery(config, [method for _, method in chosen])
    dense = _dense(config, folder)
    if not (dense.folder / "record.json").is_file():
        _tell_early(config, dense.config, [cell for cell in cells if cell.config.seed == config.seed])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoEffectWarning)  # nothing is cut there, as it should be
        _finished([dense], progress, ())
    records, failures = _finished(cells, progress, _OF_THE_METHOD)
    result = Comparison([_row(cell, folder, records, failures) for cell in cells], list(records.values()))
    result.write(folder / PAGE)
    return result


def method_of(config: RunConfig, text: str) -> tuple[str, MethodConfig]:
    """(label, method) of a name with options, as "magnitude p=1"; a name alone takes the recipe's, if it is its method.

    Raises:
        ConfigError: an unknown method or option.
    """
    try:
        name, *given = shlex.split(text) or [""]
    except ValueError as error:
        raise ConfigError(f"method {text!r} is not understood ({error}): write a name and options, as p=1") from error
    if name == config.method.name and not given:
        return name, config.method
    options = override({}, assignments(given, "method option"))
    return " ".join([name, *given]), MethodConfig(name=name, options=options)


def budget_of(config: RunConfig, budget: Budget | Mapping[str, Any] | str) -> Budget:
    """Read a budget; a bound without a metric is of the one that the recipe bounds.

    Raises:
        ConfigError: no budget, or a recipe that bounds several metrics.
    """
    if not isinstance(budget, str) or "=" in budget:
        return Budget.parse(budget)
    if len(config.budget) != 1:
        raise ConfigError(f"budget {budget!r} names no metric, and the recipe bounds several: write macs={budget}")
    return Budget.parse({next(iter(config.budget)): budget.strip()})


def _dense(config: RunConfig, folder: Path) -> Cell:
    """The run that trains the dense network and cuts nothing."""
    plain = dataclasses.replace(
        config,
        budget=Budget(macs="100%"),
        method=MethodConfig(name="uniform"),
        recover=RecoverConfig(kind="none"),
        compensate="none",
        rounds=1,
        also=(),
        latency=dataclasses.replace(config.latency, repeats=0),
    )
    return Cell("dense", plain, folder / "dense")


def _cells(
    config: RunConfig,
    folder: Path,
    methods: Sequence[tuple[str, MethodConfig]],
    budgets: Sequence[Budget],
    seeds: int,
) -> Iterator[Cell]:
    """All cells, seed by seed, so that a comparison that is stopped holds every method."""
    model = config.model
    if config.train is not None:
        weights = str(folder / "dense" / "dense.safetensors")
        model = dataclasses.replace(model, weights=weights, new_head=False)
    for seed in range(config.seed, config.seed + seeds):
        for budget in budgets:
            for label, method in methods:
                auto = method.name == AUTO and config.compensate == "none"
                of_cell = dataclasses.replace(
                    config,
                    model=model,
                    train=None,
                    also=(),
                    budget=budget,
                    method=method,
                    compensate=AUTO if auto else config.compensate,
                    seed=seed,
                )
                yield Cell(label, of_cell, folder / _name(label) / _name(budget_text(budget)) / f"seed-{seed}")


def _name(text: str) -> str:
    return re.sub(r"[^\w.,=+%-]+", "-", text)


def _require_apart(cells: Sequence[Cell]) -> None:
    """Raises ConfigError where two cells are one folder."""
    folders = [cell.folder for cell in cells]
    if twice := [cell for cell in cells if folders.count(cell.folder) > 1]:
        budget = budget_text(twice[0].config.budget)
        raise ConfigError(f"{twice[0].label} at {budget} is there twice: name every method and budget once")


def _require_equal_recovery(config: RunConfig, methods: Sequence[MethodConfig]) -> None:
    """Raises ConfigError where methods bring recoveries of their own, which differ."""
    kinds = {}
    for method in methods:
        made = None if method.name == AUTO else create_method(method.name, dict(method.options))
        kinds[method.name] = "none" if made is None and config.recover.kind == AUTO else config.recover.kind
        if made is not None:
            kinds[method.name] = recovery_after(made, config.recover.kind)
    if len(set(kinds.values())) > 1:
        each = ", ".join(f"{name}: {kind}" for name, kind in kinds.items())
        raise ConfigError(f"methods recover differently ({each}): set recover.kind, as --set recover.kind=finetune")


def _tell_early(config: RunConfig, dense: RunConfig, cells: Sequence[Cell]) -> None:
    """Check what cells need of network, data and budget before the training, and warn of budgets that cannot be met.

    Raises:
        InfeasibleBudgetError, PlanError, NotAvailableError: a budget that no method can meet.
        ConfigError, DataError: what `prepared_of` finds.
    """
    inputs, prepared = load_inputs(config), {}
    refused: dict[Budget, list[Exception]] = {}
    for cell in cells:
        budget = cell.config.budget
        try:
            if cell.label not in prepared:
                trial = dataclasses.replace(cell.config, model=config.model, budget=dense.budget, train=config.train)
                method = create_method(trial.method.name, dict(trial.method.options))
                prepared[cell.label] = prepared_of(trial, inputs, method, progress=False)
            dataclasses.replace(prepared[cell.label], budget=budget).require_feasible()
        except _OF_THE_METHOD as error:
            refused.setdefault(budget, []).append(error)
            if len(refused[budget]) == len({c.label for c in cells}):
                raise
            log.warning("warning: %s at %s: %s", cell.label, budget_text(budget), first_line(error))


def _finished(
    cells: Sequence[Cell], progress: bool, tolerated: tuple[type[Exception], ...]
) -> tuple[dict[Path, dict[str, Any]], dict[Path, str]]:
    """Do the cells that are not done, leave those of other processes to them, and wait; records and failures."""
    records: dict[Path, dict[str, Any]] = {}
    failures: dict[Path, str] = {}
    waiting = list(cells)
    while waiting:
        busy = []
        for cell in waiting:
            try:
                records[cell.folder] = run(cell.config, cell.folder, progress=progress)
                log.info("%s: %d of %d runs are done", cell.folder, len(records), len(cells))
            except BusyError:
                busy.append(cell)
            except tolerated as error:
                failures[cell.folder] = first_line(error)
                log.warning("warning: %s: %s", cell.folder, failures[cell.folder])
        if len(busy) == len(waiting):
            time.sleep(POLL_S)
        waiting = busy
    return records, failures


def _row(cell: Cell, folder: Path, records: Mapping[Path, Any], failures: Mapping[Path, str]) -> RunRow:
    where = str(cell.folder.relative_to(folder))
    if cell.folder in failures:
        budget = budget_text(cell.config.budget)
        return RunRow(cell.label, budget, cell.config.seed, where, failure=failures[cell.folder])
    return run_row(records[cell.folder], cell.label, where)
