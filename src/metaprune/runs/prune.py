"""THE flow, in one screen: prepare -> propose -> cut -> prove -> recover -> measure."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn

from metaprune.calibration.compensate import Compensation
from metaprune.calibration.config import Compensate
from metaprune.core.arguments import check_arguments, shown
from metaprune.core.errors import ConfigError, NoEffectWarning, PlanError, VerificationError
from metaprune.core.modes import device_of
from metaprune.core.rng import Rng
from metaprune.core.warned import collected_warnings
from metaprune.data import Data, as_data
from metaprune.data.loader_split import dead_loader_workers_told
from metaprune.graph.capture import untouched
from metaprune.objective import Objective, create_objective, describe_objective
from metaprune.objective.functions import LossFunction, ScoreFunction
from metaprune.protocol.artifact import plain
from metaprune.protocol.method import Method, require_within
from metaprune.protocol.registry import create_method
from metaprune.recover.config import RecoverConfig
from metaprune.runs.auto import AUTO, resolved_method
from metaprune.runs.compensation import compensated
from metaprune.runs.folder import Phases
from metaprune.runs.inputs import require_fit, require_traced
from metaprune.runs.layers import layer_costs
from metaprune.runs.prepare import Form, Prepared, RecoveryLoop, prepare
from metaprune.runs.record import (
    OWN_LOOP,
    cost_record,
    describe_masks,
    effort_record,
    environment,
    options_record,
    proof_record,
    space_record,
    total_effort,
    weights_digest,
)
from metaprune.runs.recovery import recovered
from metaprune.runs.result import Result
from metaprune.runs.rounds import Round
from metaprune.runs.schema import EffortRecord, QualityRecord, Record
from metaprune.surgery.cut import Pruned, cut
from metaprune.surgery.keep_module import ModuleRules
from metaprune.train.evaluate import evaluate
from metaprune.values import Budget, Constraints, Proposal, as_patterns

log = logging.getLogger("metaprune")
_SAY_MORE = ("budget", "method", "data", "objective", "loss_fn", "score_fn", "recover", "constraints")
"""Arguments of `prune` whose own readers name all that is accepted."""


def prune(
    model: nn.Module,
    example_inputs: Any,
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    budget: Budget | Mapping[str, Any] | str,
    method: str | Method = AUTO,
    method_options: Mapping[str, Any] | None = None,
    data: Data | str | Sequence[Any] | None = None,
    objective: Objective | str | Mapping[str, Any] | None = None,
    loss_fn: LossFunction | None = None,
    score_fn: ScoreFunction | None = None,
    recover: RecoverConfig | str | RecoveryLoop | None = None,
    compensate: Compensate | Literal["auto"] = "auto",
    rounds: int = 1,
    constraints: Constraints | None = None,
    round_to: int = 1,
    min_keep: int | Mapping[str, int] = 1,
    ignore: Sequence[str] = (),
    only: Sequence[str] = (),
    ratios: Mapping[str, float] | None = None,
    ties: Sequence[Sequence[str]] = (),
    whole: Sequence[str] = (),
    keep_module: bool = False,
    keep_config: bool = False,
    free_outputs: bool | Sequence[str] = False,
    batch_dim: int = 0,
    form: Form = "auto",
    verify: bool = True,
    latency_table: str | Path | None = None,
    batch_size: int = 128,
    seed: int = 0,
    checkpoint_dir: str | Path | None = None,
    progress: bool = True,
) -> Result:
    """Make a smaller network within `budget`, proved equal to its masked original, and recover it.

    `model` is not changed.

    Args:
        model: in eval or train mode; stays as it is.
        example_inputs: a tensor or a tuple of positional inputs.
        example_kwargs: keyword inputs of the example.
        budget: upper bounds, as {"macs": "50%", "params": 1e6} or "macs=50%".
        method: a name of `metaprune.methods` or a method object; `method_options` go to the name. auto: with data,
            channels by activation, widths by measured sensitivity, and weights solved anew; without, magnitude alone.
        method_options: options of a method that is given by name.
        data: a Data, a spec string, or (train, val[, test]) loaders or datasets; some methods and recovery need it.
        objective: what the network is trained for and judged by: an object, a name, or a mapping of a name and options,
            as {"kind": "segmentation", "classes": 21}. Default: classification, where the labels are class indices.
        loss_fn: (output, target) -> mean loss [], in place of the objective's.
        score_fn: (model, split) -> float, more is better, in place of the objective's primary metric.
        recover: None (what the method asks for, mostly nothing), none, bn, finetune, distil, scratch, a RecoverConfig,
            or a loop of your own: a function of (model, data) that trains the model in place.
        compensate: none; bias: biases and BatchNorm statistics make up for dropped channels; least-squares: all weights
            of convolutions and linear layers do. Reads unlabelled samples of the training split. auto: as method auto
            says, and none with a method of your choice.
        rounds: cut and recover so many times, by the same factor of the cost each. Every round sees the network that
            the one before left; the proof is of the whole cut.
        constraints: what a plan may look like; instead of it, its parts as keywords:
        round_to: kept widths are multiples of this, or the full width.
        min_keep: channels that a group keeps at least; one number, or by pattern.
        ignore: patterns of what is left as it is.
        only: patterns of what may shrink; empty: everything.
        ratios: pattern -> keep ratio in (0, 1].
        ties: tuples of patterns whose groups keep one ratio.
        whole: patterns of what keeps all its channels, or none where its branch may go. More: see `Constraints`.
        keep_module: only widths at which the model's own class runs; the result is then of that class.
        keep_config: only widths that the config of a transformers model can say: `save_pretrained` then writes a folder
            that `from_pretrained` and other programs take.
        free_outputs: outputs that may change their width: see `trace`.
        batch_dim: the dimension of the first input that counts samples: see `trace`.
        form: auto, module or graph: see `cut`.
        verify: prove the cut: see `cut`.
        latency_table: file of `metaprune latency`, for a budget in latency_ms.
        batch_size: samples per forward pass of scoring and evaluation.
        seed: of everything random.
        checkpoint_dir: the method's long work and recovery continue from here after a kill.
        progress: show progress bars and phases.

    Raises:
        InfeasibleBudgetError: no structure meets the budget under the constraints; holds the smallest costs.
        UntraceableError: the model can be neither recorded nor exported.
        PlanError: a pattern matches nothing, or a method proposed what the network does not have.
        VerificationError: the cut network is not its masked original; nothing is handed over.
        ConfigError: an argument that is not understood; names the closest.
        DataError: data that do not fit the model or the objective.
    """
    check_arguments(prune, locals(), but=_SAY_MORE)
    parts = Constraints(
        round_to=round_to,
        min_keep=min_keep,
        ignore=as_patterns(ignore),
        only=as_patterns(only),
        ratios=dict(ratios or {}),
        ties=cast("Any", ties),
        whole=as_patterns(whole),
        keep_module=keep_module,
        keep_config=keep_config,
    )
    method, options, compensation = resolved_method(method, method_options or {}, compensate, data is not None)
    judged_by = create_objective(objective, loss_fn=loss_fn, score_fn=score_fn)
    phases = Phases()
    with collected_warnings() as warned, dead_loader_workers_told():
        with phases("trace"):
            prepared = prepare(
                model,
                example_inputs,
                example_kwargs,
                budget=Budget.parse(budget),
                method=create_method(method, options),
                constraints=_one_of(constraints, parts),
                data=None if data is None else as_data(data, objective=judged_by),
                recover=recover,
                compensate=compensation,
                rounds=rounds,
                form=form,
                free_outputs=free_outputs,
                batch_dim=batch_dim,
                latency_table=latency_table,
                batch_size=batch_size,
                seed=seed,
                progress=progress,
            )
        folder = None if checkpoint_dir is None else Path(checkpoint_dir)
        result = prune_prepared(prepared, phases=phases, checkpoint_dir=folder, verify=verify)
    result.record["warnings"] = warned
    return result


def _one_of(constraints: Constraints | None, parts: Constraints) -> Constraints:
    if constraints is None:
        return parts
    if not isinstance(constraints, Constraints):
        raise ConfigError(
            f"constraints={shown(constraints)} is no Constraints: make one, or give its parts as keywords"
        )
    if parts != Constraints():
        raise ConfigError("constraints= and its parts (round_to, ignore, ...) exclude each other: give one of them")
    return constraints


def prune_prepared(
    prepared: Prepared, *, phases: Phases, checkpoint_dir: Path | None = None, verify: bool = True
) -> Result:
    """Propose, cut, prove, recover and measure; see `prune`."""
    here, turns = Round.first(prepared), []
    for number in range(1, prepared.rounds + 1):
        if turns:
            here = here.after(prepared, number, turns[-1].pruned)
        turns.append(_turn(prepared, here, phases, checkpoint_dir, verify, is_last=number == prepared.rounds))
    pruned = turns[-1].pruned
    return Result(pruned.model, pruned.plan, _record(prepared, turns, phases).to_dict(), pruned)


@dataclass(frozen=True)
class _Turn:
    """What one round came to; figures are of the last one."""

    proposal: Proposal
    compensation: Compensation | None
    pruned: Pruned
    history: dict[str, Any] | None
    effort: EffortRecord | None
    figures: dict[str, Any]


def _turn(
    prepared: Prepared, here: Round, phases: Phases, checkpoint_dir: Path | None, verify: bool, *, is_last: bool
) -> _Turn:
    """Propose, cut, prove and recover once. prepared: of the whole run; `here`: where the round begins."""
    rng, folder = here.rng, here.folder(checkpoint_dir, is_last)
    proposal = _proposed(here.prepared, phases, rng, folder)
    with phases("compensate"):
        compensation = compensated(here.prepared, proposal, rng.child("compensate"))
    plan, weights = here.composed(proposal, compensation)
    recovery = prepared.recover
    if not plan.keep and weights is None and not proposal.masks:
        asked = prepared.budget.to_dict()
        warnings.warn(f"the full network meets {asked}: nothing is cut", NoEffectWarning, stacklevel=4)
        if prepared.asked_recover.kind == "auto":
            recovery = replace(recovery, kind="none")
    with phases("cut"):
        masks = proposal.masks
        pruned = cut(prepared.network, plan, form=prepared.form, verify=verify, weights=weights, masks=masks)
        if prepared.asked.keep_config and pruned.config.changes is None:  # beside the widths that were tried
            raise VerificationError(f"keep_config is not met: {pruned.config.why}. Try another budget, or keep_module")
        if pruned.config.why and pruned.config.changes is None:
            log.info("%s", pruned.config.why)
        if pruned.form == "graph":
            require_traced(prepared.network, prepared.data)
        if recovery.kind != "none" or prepared.free_outputs:  # what does not fit the data is told now
            require_fit(pruned.model, prepared.data)
    figures: dict[str, Any] = {}
    if is_last:
        figures = {"dense": _figures(prepared.network.model, prepared), "cut": _figures(pruned.model, prepared)}
    with phases("recover"):
        at = None if folder is None else folder / "recover"
        own_weights = proposal.weights is not None
        history = recovered(pruned, prepared, recovery, rng.child("recover"), at, own_weights)
        if is_last and history is not None:
            figures["recovered"] = _figures(pruned.model, prepared)
    effort = effort_record(pruned, recovery, history, prepared.own_loop is not None)
    return _Turn(proposal, compensation, pruned, history, effort, figures)


def _proposed(prepared: Prepared, phases: Phases, rng: Rng, folder: Path | None) -> Proposal:
    """What the method says, once it is known to meet the budget."""
    method, budget = prepared.method, prepared.budget
    with phases("propose"):
        task = prepared.task(None if folder is None else folder / "method")
        with prepared.infeasible_explained():
            proposal = method.propose(task, budget, rng.child("method", method.name))
        require_within(
            task,
            budget,
            proposal,
            lambda over, _: PlanError(
                f"method {method.name!r} proposed a plan over the budget ({over}); PruneTask.allocator(budget) meets it"
            ),
        )
    return proposal


def _record(prepared: Prepared, turns: Sequence[_Turn], phases: Phases) -> Record:
    last = turns[-1]
    pruned, proposal, figures = last.pruned, last.proposal, last.figures
    own_loop = prepared.own_loop is not None
    objective = None if prepared.data is None else prepared.data.objective
    free = prepared.free_outputs
    return Record(
        **environment(prepared.seed, device_of(pruned.model)),
        budget=prepared.budget.to_dict(),
        method=prepared.method.name,
        method_options=options_record(prepared.method),
        constraints=plain(prepared.asked),
        objective=None if objective is None else describe_objective(objective),
        recover={"kind": OWN_LOOP} if own_loop else plain(prepared.asked_recover),
        compensate=prepared.compensate,
        form=prepared.form,
        free_outputs=free if isinstance(free, bool) else list(as_patterns(free)),
        batch_dim=prepared.batch_dim,
        batch_size=prepared.batch_size,
        bounds=prepared.budget.bounds(prepared.network.cost()),
        space=space_record(pruned, prepared.asked),
        cost=cost_record(pruned),
        proof=proof_record(pruned),
        masks=describe_masks(pruned, proposal),
        quality=None if figures["dense"] is None else _quality(prepared, pruned, figures),
        rounds=prepared.rounds,
        history={
            **{f"recover round {k}": turn.history for k, turn in enumerate(turns[:-1], start=1)},
            "recover": last.history,
        },
        recovery=total_effort([turn.effort for turn in turns]),
        compensation=None if last.compensation is None else last.compensation.to_dict(),
        method_details=dict(proposal.details),
        latency_table=None if prepared.latency_table is None else dict(prepared.latency_table.info),
        layers=layer_costs(pruned, prepared.latency_table),
        module_rules=plain(prepared.rules) if prepared.rules != ModuleRules() else None,
        seconds=phases.seconds,
        splits=None if prepared.data is None else prepared.data.split_sizes(),
    )


def _quality(prepared: Prepared, pruned: Pruned, figures: dict[str, Any]) -> QualityRecord:
    return QualityRecord(split=_judged_on(prepared.data)[0], tensors=weights_digest(pruned.model), **figures)


def _judged_on(data: Data | None) -> tuple[str, Any]:
    """The split that figures are reported on: test, or val where the user gave no test split."""
    if data is None:
        return "", None
    return ("test", data.test) if data.test is not None else ("val", data.val)


def _figures(model: nn.Module, prepared: Prepared) -> dict[str, float] | None:
    """Metrics of a network on the reported split; None without data, or where nothing says what its labels mean."""
    data, (_, split) = prepared.data, _judged_on(prepared.data)
    if split is None or data is None or data.objective is None:
        return None
    with untouched(model), torch.random.fork_rng(devices=[]):  # a forward may write buffers, or draw
        return evaluate(model, split, objective=data.objective, batch_size=prepared.batch_size).to_dict()
