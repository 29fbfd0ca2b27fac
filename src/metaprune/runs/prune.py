"""THE flow, in one screen: trace -> propose -> cut -> prove -> recover -> measure (`prune`), and around it
load -> train -> ... -> save -> report (`run`).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn

from metaprune.runs.config import RunConfig
from metaprune.data import Data, as_data
from metaprune.core.errors import ConfigError, InfeasibleBudgetError, NoEffectWarning, PlanError
from metaprune.export.archive import named_tensors, save
from metaprune.core.files import tensors_digest, write_json
from metaprune.latency import LatencyTable
from metaprune.latency.side_by_side import latency_ms
from metaprune.protocol.method import Method, PruneTask, recovery_after, require_feasible
from metaprune.protocol.registry import create_method
from metaprune.network import Network, trace
from metaprune.runs.record import describe_cut, describe_masks, environment
from metaprune.recover.config import RecoverConfig, parse_recover
from metaprune.recover.run import recover as recover_model
from metaprune.recover.scratch import Initialise, initialise_from, reinitialise
from metaprune.report import write_report
from metaprune.core.rng import Rng
from metaprune.runs.folder import Phases, RunFolder, log
from metaprune.runs.inputs import Inputs, load_inputs, require_fit
from metaprune.runs.sections import sections_of
from metaprune.surgery.cut import Pruned, cut
from metaprune.surgery.keep_module import ModuleRules, module_rules
from metaprune.train.evaluate import evaluate
from metaprune.train.loop import train
from metaprune.train.masks import held_at_zero, set_to_zero
from metaprune.train.modes import device_of
from metaprune.values import Budget, Constraints, Cost, Plan, Proposal, as_patterns


@dataclass(frozen=True)
class Result:
    """model: the smaller network. plan: what was kept. record: every figure, JSON-able. pruned: the proof."""

    model: nn.Module
    plan: Plan
    record: dict[str, Any]
    pruned: Pruned

    def save(self, folder: str | Path, *, spec: str | None = None, options: Mapping[str, Any] | None = None) -> Path:
        """Write safetensors and JSON; `metaprune.load(folder)` reads them back. `spec`: how the original is made."""
        path = save(self.pruned, folder, spec=spec, options=dict(options or {}))
        write_json(path / "record.json", self.record)
        return path


def prune(
    model: nn.Module,
    example_inputs: Any,
    example_kwargs: dict[str, Any] | None = None,
    *,
    budget: Budget | Mapping[str, Any] | str,
    method: str | Method = "magnitude",
    method_options: Mapping[str, Any] | None = None,
    data: Data | str | Sequence[Any] | None = None,
    recover: RecoverConfig | str | None = None,
    round_to: int = 1,
    min_keep: int = 1,
    ignore: Sequence[str] = (),
    only: Sequence[str] = (),
    ratios: Mapping[str, float] | None = None,
    ties: Sequence[Sequence[str]] = (),
    keep_module: bool = False,
    free_outputs: bool | Sequence[str] = False,
    form: Literal["auto", "module", "graph"] = "auto",
    verify: bool = True,
    latency_table: str | Path | None = None,
    seed: int = 0,
    checkpoint_dir: Path | None = None,
    progress: bool = True,
) -> Result:
    """A smaller network within `budget`, proved equal to its masked original, and recovered. `model` is not changed.

    Args:
        example_inputs: a tensor or a tuple of positional inputs; the first dimension of the first tensor is the batch.
        budget: upper bounds, as {"macs": "50%", "params": 1e6} or "macs=50%".
        method: a name of `metaprune.methods` or a method object; `method_options` go to the name.
        data: a Data, a spec string, or (train, val[, test]) loaders or datasets; some methods and recovery need it.
        recover: None (what the method asks for, mostly nothing), none, bn, finetune, distil, scratch, or a
            RecoverConfig.
        round_to, min_keep, ignore, only, ratios, ties: see `Constraints`.
        keep_module: only widths at which the model's own class runs; the result is then of that class.
        free_outputs: outputs that may change their width, see `trace`.
        form, verify: see `cut`.
        latency_table: file of `metaprune latency`, for a budget in latency_ms.
        checkpoint_dir: the method's long work and recovery continue from here after a kill.

    Raises:
        InfeasibleBudgetError, UntraceableError, PlanError, VerificationError, ConfigError, DataError.
    """
    rng, phases = Rng(seed), Phases()
    budget, asked = Budget.parse(budget), parse_recover(recover)
    constraints = Constraints(
        round_to=round_to, min_keep=min_keep, ignore=as_patterns(ignore), only=as_patterns(only),
        ratios=dict(ratios or {}), ties=cast("Any", ties), keep_module=keep_module,
    )
    how = create_method(method, dict(method_options or {}))
    recovery = replace(asked, kind=recovery_after(how, asked.kind))
    splits = None if data is None else as_data(data)
    if splits is None and (how.needs_data or recovery.kind != "none"):
        what = f"method {how.name!r}" if how.needs_data else f"recover={recovery.kind!r}"
        raise ConfigError(f"{what} needs data: pass data=... (--data on the command line)")

    with phases("trace"):
        network = trace(model, example_inputs, example_kwargs, free_outputs=free_outputs)
        table = use_table(network, latency_table)
        require_fit(network.model, splits)
        rules = module_rules(network, seed) if keep_module else ModuleRules()
        constraints, form = rules.applied_to(constraints), "module" if keep_module and form == "auto" else form
        if recovery.kind == "scratch":  # what cannot be initialised shows now, not after a search
            reinitialise(copy.deepcopy(network.model), Rng(seed))
    with phases("propose"):
        place = None if checkpoint_dir is None else checkpoint_dir / "method"
        task = PruneTask(network, splits, constraints, folder=place, progress=progress)
        proposal = _proposed(how, task, budget, rng.child("method", how.name), rules)
        _require_within(network.cost(proposal.plan, masks=proposal.masks), budget.bounds(network.cost()), how.name)
        if not proposal.plan.keep and proposal.weights is None and not proposal.masks:
            warnings.warn(f"the full network meets {budget.to_dict()}: nothing is cut", NoEffectWarning, stacklevel=2)
            recovery = replace(recovery, kind="none") if asked.kind == "auto" else recovery
    with phases("cut"):
        pruned = cut(network, proposal.plan, form=form, verify=verify, weights=proposal.weights, masks=proposal.masks)
    quality = {"dense": _quality(network.model, splits), "cut": _quality(pruned.model, splits)}
    with phases("recover"):
        place = None if checkpoint_dir is None else checkpoint_dir / "recover"
        history = _recovered(pruned, splits, recovery, rng.child("recover"), place, progress)
        if history is not None:
            quality["recovered"] = _quality(pruned.model, splits)
    record = {
        **environment(seed, device_of(pruned.model)), "method": how.name, "budget": budget.to_dict(),
        "bounds": budget.bounds(network.cost()), **describe_cut(pruned), "masks": describe_masks(pruned, proposal),
        "seconds": phases.seconds,
        "quality": {"split": _judge(splits)[0], **quality} if any(quality.values()) else None,
        "history": {"recover": history}, "recovery": _effort(pruned, recovery, history),
        "method_details": dict(proposal.details),
        "latency_table": table,
        "module_rules": asdict(rules) if keep_module else None,
    }
    return Result(pruned.model, pruned.plan, record, pruned)


def _proposed(how: Method, task: PruneTask, budget: Budget, rng: Rng, rules: ModuleRules) -> Proposal:
    """An infeasible budget says what `keep_module` left whole, and why."""
    try:
        return how.propose(task, budget, rng)
    except InfeasibleBudgetError as error:
        if not rules.whole:
            raise
        text = f"{error}. keep_module leaves {len(rules.whole)} of {len(task.network.space)} groups whole: {rules.why}"
        raise InfeasibleBudgetError(text, error.smallest) from error


def _recovered(
    pruned: Pruned, data: Data | None, how: RecoverConfig, rng: Rng, checkpoint_dir: Path | None, progress: bool
) -> dict[str, Any] | None:
    """Recover `pruned.model` in place; the training history, or None if nothing was asked for."""
    if data is None or how.kind == "none":
        return None
    network = pruned.network
    identity: dict[str, Any] = {"plan": pruned.plan.to_dict(), "weights": tensors_digest(network.tensors)}
    masks = network.masks_at(pruned.plan, pruned.masks)
    if masks:
        identity["masks"] = tensors_digest(masks)
    with held_at_zero(pruned.model, masks):
        return recover_model(
            pruned.model, network.model, data, how, rng=rng, device=device_of(pruned.model), progress=progress,
            checkpoint_dir=checkpoint_dir, identity=identity, initialise=_initialiser(pruned, masks, rng),
        ).to_dict()


def _effort(pruned: Pruned, how: RecoverConfig, history: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Kind of recovery, samples of its epochs, and MACs: forward and backward (3 x), in distillation the teacher's."""
    if history is None:
        return None
    samples = sum(round(row["samples_per_s"] * row["seconds"]) for row in history["rows"])
    teacher = float(pruned.network.cost().macs) if how.kind == "distil" else 0.0
    each = 3 * float(pruned.network.cost(pruned.plan).macs) + teacher
    return {"kind": how.kind, "samples": samples, "macs": samples * each}


def _initialiser(pruned: Pruned, masks: Mapping[str, torch.Tensor], rng: Rng) -> Initialise | None:
    """New weights for training from scratch, under the same masks; a module form without masks makes its own."""
    fresh = _initialise_graph(pruned, rng) if pruned.form == "graph" else None
    if not masks:
        return fresh

    def masked(model: nn.Module) -> None:
        if fresh is None:
            reinitialise(model, rng.child("initialise"))
        else:
            fresh(model)
        set_to_zero(model, masks)

    return masked


def _initialise_graph(pruned: Pruned, rng: Rng) -> Initialise:
    """Those of a re-initialised original, cut to size."""
    network = pruned.network
    alive = network.survivors(pruned.plan)

    def tensors_of(fresh: nn.Module) -> Mapping[str, torch.Tensor]:
        return network.sliced(alive, tensors=named_tensors(fresh)[0])

    return initialise_from(network.model, tensors_of, rng.child("initialise"))


def run(
    config: RunConfig,
    folder: str | Path,
    *,
    method: Method | None = None,
    progress: bool = True,
    command: str | None = None,
) -> dict[str, Any]:
    """A whole run in its own folder; returns the record. Killed and started again, it continues where it was.

    `method` stands in for the config's, with what a file that is passed on should not hold (a storage's password).
    """
    method = method or create_method(config.method.name, dict(config.method.options))
    if config.also and not config.method.options.get("artifact"):
        raise ConfigError(
            f"[[also]] names more networks for `metaprune fit {config.method.name}`: run that, then prune with --set "
            "method.options.artifact=FOLDER; or leave the tables out"
        )
    place, phases = RunFolder(folder, config), Phases()
    if place.finished is not None:
        log.info("%s is finished already", place.path)
        return place.finished
    with place.logged():
        with phases("load"):
            inputs = load_inputs(config)
        dense = train_dense(config, inputs, place, phases, progress)
        limits = {f.name: getattr(config.constraints, f.name) for f in fields(Constraints)}
        result = prune(
            inputs.model, inputs.args, inputs.kwargs, budget=config.budget, method=method, data=inputs.data,
            recover=config.recover, **limits, form=config.form, seed=config.seed,
            latency_table=config.latency.table, checkpoint_dir=place.path / "checkpoints", progress=progress,
        )
        with phases("measure"):
            latency = _latency(config, inputs, result)
        with phases("save"):
            save(result.pruned, place.path, spec=config.model.spec, options=inputs.options)
        if result.record["quality"] and config.model.new_head and config.train is None:
            result.record["quality"]["untrained_head"] = True  # `dense` says nothing of the pretrained network
        files = {"before": dense["bytes"], "after": (place.path / "model.safetensors").stat().st_size}
        record = {
            **result.record, "command": command, "config": config.to_dict(), "model": config.model.spec,
            "data": None if config.data is None else config.data.spec, "latency_ms": latency, "file_bytes": files,
            "seconds": {**phases.seconds, **result.record["seconds"]},
            "history": {"train": dense["history"], **result.record["history"]},
        }
        write_report(record, place.path / "report.html", sections_of(record))
        write_json(place.path / "record.json", record)  # last: it marks the run as finished
    return record


def use_table(network: Network, table: str | Path | None) -> dict[str, Any] | None:
    """Let budgets know the milliseconds of a latency table; returns what it says of itself, for the record.

    Raises:
        ConfigError: no table, or one of another network.
    """
    if table is None:
        return None
    found = LatencyTable.load(table)
    found.check(network)
    network.use_latency(found.predict_ms)
    if found.warning is not None:
        warnings.warn(found.warning, stacklevel=2)
    return dict(found.info)


def train_dense(config: RunConfig, inputs: Inputs, place: RunFolder, phases: Phases, progress: bool) -> dict[str, Any]:
    """Train the dense network if asked to (resumable), and write it to the run folder."""
    history = None
    if config.train is not None and inputs.data is not None:
        with phases("trace"):  # an impossible budget or a wrong pattern shows now, not after hours of training
            network = trace(inputs.model, inputs.args, inputs.kwargs)
            use_table(network, config.latency.table)
            how = create_method(config.method.name, dict(config.method.options))
            require_feasible(how, PruneTask(network, inputs.data, config.constraints), config.budget)
            recovery_after(how, config.recover.kind)
        with phases("train"):
            history = train(
                inputs.model, inputs.data, config.train, rng=Rng(config.seed).child("train"), device=inputs.device,
                checkpoint_dir=place.checkpoints("train"), progress=progress,
                identity={"weights": tensors_digest(network.tensors)},
            ).to_dict()
    elif config.model.weights is None and not config.model.spec.startswith(("python:", "hf:")):
        log.warning("warning: the network has random weights; give model.weights, or a [train] table with data")
    return {"history": history, "bytes": inputs.save_dense(place.path / "dense.safetensors")}


def _latency(config: RunConfig, inputs: Inputs, result: Result) -> dict[str, Any] | None:
    """Dense and pruned network in turns, on an example repeated to the configured batch size."""
    if config.latency.repeats == 0:
        return None
    table = result.record["latency_table"]
    batch = config.latency.batch_size if table is None else table["batch"]
    args, kwargs = inputs.batch_of(batch)
    before, after = latency_ms([inputs.model, result.model], args, kwargs, repeats=config.latency.repeats)
    return {
        "before": before["median"], "after": after["median"],
        "spread_before": before["quartiles"], "spread_after": after["quartiles"],
        "predicted": result.record["cost"]["after"].get("latency_ms"),
        "batch": batch, "threads": torch.get_num_threads(), "repeats": config.latency.repeats,
    }


def _judge(data: Data | None) -> tuple[str, Any]:
    """The split that figures are reported on: test, or val where the user gave no test split."""
    if data is None:
        return "", None
    return ("test", data.test) if data.test is not None else ("val", data.val)


def _quality(model: nn.Module, data: Data | None) -> dict[str, Any] | None:
    _, split = _judge(data)
    if split is None or data is None or data.num_classes < 1:
        return None
    found = evaluate(model, split)
    return {"accuracy": found.accuracy, "loss": found.loss, "samples": found.samples}


def _require_within(cost: Cost, bounds: Mapping[str, float], method: str) -> None:
    """Budgets are hard, whoever wrote the method."""
    over = [f"{m} {cost.metric(m):,.6g} > {bound:,.6g}" for m, bound in bounds.items() if cost.metric(m) > bound]
    if over:
        raise PlanError(
            f"method {method!r} proposed a plan over the budget ({'; '.join(over)}); "
            "PruneTask.allocator(budget) meets it"
        )
