"""A whole run in its own folder: load -> train -> prune -> measure -> save -> report."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, cast

import torch

from metaprune.calibration.config import Compensate
from metaprune.core.arguments import check_arguments
from metaprune.core.errors import ConfigError, first_line, one_line_error
from metaprune.core.files import tensors_digest, write_json
from metaprune.core.modes import modes_restored
from metaprune.core.read import understood
from metaprune.core.rng import Rng
from metaprune.core.warned import collected_warnings
from metaprune.data.loader_split import dead_loader_workers_told
from metaprune.export.archive import require_savable, save
from metaprune.latency.side_by_side import latency_ms
from metaprune.protocol.method import Method
from metaprune.protocol.registry import create_method
from metaprune.report import write_report
from metaprune.runs.config import RunConfig
from metaprune.runs.folder import Phases, RunFolder, log, parts_of
from metaprune.runs.inputs import RunInputs, has_random_weights, load_inputs
from metaprune.runs.prepare import Prepared, prepare
from metaprune.runs.prune import prune_prepared
from metaprune.runs.result import Result
from metaprune.runs.sections import sections_of
from metaprune.train.loop import train
from metaprune.train.require import require_trainable


def run(
    config: RunConfig,
    folder: str | Path,
    *,
    method: Method | None = None,
    progress: bool = True,
    command: str | None = None,
) -> dict[str, Any]:
    """Do a whole run in its own folder and return the record. Killed and started again, it continues where it was.

    `method` stands in for the config's, with what a file that is passed on should not hold (a storage's password).
    """
    check_arguments(run, locals())
    method = method or create_method(config.method.name, dict(config.method.options))
    if config.also and not config.method.options.get("artifact"):
        raise ConfigError(
            f"[[also]] names more networks for `metaprune fit {config.method.name}`: run that, then prune with --set "
            "method.options.artifact=FOLDER; or leave the tables out"
        )
    run_folder = RunFolder(folder, config)
    if (record := _finished(run_folder)) is not None:
        return record
    with run_folder.held(), run_folder.logged(), collected_warnings() as warned, dead_loader_workers_told():
        return _run(config, run_folder, method, progress, command, warned)


def _finished(run_folder: RunFolder) -> dict[str, Any] | None:
    """The record of a run that is done; a report that is missing is written again, where that is possible."""
    record = run_folder.finished
    if record is None:
        return None
    log.info("%s is finished already", run_folder.path)
    page = run_folder.path / "report.html"
    if not _is_whole(page):
        try:
            with understood(str(run_folder.path / "record.json"), "delete it, and run the command again"):
                write_report(record, page, sections_of(record))
        except OSError as error:
            log.warning("warning: %s is not there and cannot be written: %s", page, first_line(error))
    return record


def _is_whole(page: Path) -> bool:
    return page.is_file() and page.read_bytes()[-200:].rstrip().endswith(b"</html>")


def _run(
    config: RunConfig, run_folder: RunFolder, method: Method, progress: bool, command: str | None, warned: list[str]
) -> dict[str, Any]:
    phases = Phases()
    with phases("load"):
        inputs = load_inputs(config)
    with phases("trace"):
        prepared = prepared_of(config, inputs, method, progress)
        require_savable(prepared.network, prepared.form)
    history = train_dense(config, inputs, prepared, run_folder, phases)
    dense_bytes = inputs.save_dense(run_folder.path / "dense.safetensors")
    result = prune_prepared(prepared, phases=phases, checkpoint_dir=run_folder.path / "checkpoints")
    with phases("measure"):
        latency = _latency(config, inputs, result)
    with phases("save"):
        save(result.pruned, run_folder.path, spec=config.model.spec, options=inputs.options)
    parts = parts_of(run_folder.path)
    record: dict[str, Any] = {
        **result.record,
        "command": command,
        "config": config.to_dict(),
        "model": config.model.spec,
        "data": None if config.data is None else config.data.spec,
        "latency_ms": latency,
        "file_bytes": {"before": dense_bytes, "after": parts["model.safetensors"]["bytes"]},
        "files": parts,
        "history": {"train": history, **result.record["history"]},
    }
    if record["quality"] and config.train is None:
        record["quality"]["untrained_head"] = config.model.new_head
        record["quality"]["untrained"] = has_random_weights(config.model)
    record["warnings"] = warned
    write_report(record, run_folder.path / "report.html", sections_of(record))
    write_json(run_folder.path / "record.json", record)  # last: it marks the run as finished
    return record


def prepared_of(config: RunConfig, inputs: RunInputs, method: Method, progress: bool) -> Prepared:
    """Everything that a run of `config` needs before anything long begins.

    Raises what `prepare` raises, ConfigError where there is nothing to train on, and before a training what
    `Prepared.require_feasible` raises: an impossible budget shows now, not after hours.
    """
    objective = None if inputs.data is None else inputs.data.objective
    if config.train is not None and objective is not None and objective.is_label_free:
        raise ConfigError(
            f"objective {objective.name!r} judges a network by its own outputs, so there is nothing to train it on: "
            "give model.weights, and leave out the [train] table"
        )
    prepared = prepare(
        inputs.model,
        inputs.args,
        inputs.kwargs,
        budget=config.budget,
        method=method,
        constraints=config.constraints,
        data=inputs.data,
        recover=config.recover,
        compensate=cast("Compensate", config.compensate),
        rounds=config.rounds,
        form=config.form,
        latency_table=config.latency.table,
        batch_size=config.batch_size,
        seed=config.seed,
        progress=progress,
    )
    if config.train is not None:
        if prepared.data is not None:
            require_trainable(prepared.data, config.train)
        prepared.require_feasible()
    if config.latency.repeats:
        _require_batch(config, inputs)
    return prepared


def _require_batch(config: RunConfig, inputs: RunInputs) -> None:
    """Run the network once at the batch size that it is timed with, before hours are spent."""
    args, kwargs = inputs.batch_of(config.latency.batch_size)
    try:
        with modes_restored(inputs.model), torch.random.fork_rng(devices=[]), torch.no_grad():
            inputs.model.eval()(*args, **kwargs)
    except Exception as error:  # a user's forward may raise anything
        raise ConfigError(
            f"the network does not run on latency.batch_size={config.latency.batch_size} samples "
            f"({one_line_error(error)}): set another, or latency.repeats=0, which measures nothing"
        ) from error


def train_dense(
    config: RunConfig, inputs: RunInputs, prepared: Prepared, run_folder: RunFolder, phases: Phases
) -> dict[str, Any] | None:
    """Train the dense network if asked to (resumable); the history, or None."""
    if config.train is not None and inputs.data is not None:
        with phases("train"):
            return train(
                inputs.model,
                inputs.data,
                config.train,
                rng=Rng(config.seed).child("train"),
                device=inputs.device,
                checkpoint_dir=run_folder.checkpoints("train"),
                progress=prepared.progress,
                identity={"weights": tensors_digest(prepared.network.tensors)},
            ).to_dict()
    if has_random_weights(config.model):
        warnings.warn(
            "the network has random weights, so no figure of quality means anything; give model.weights, or a [train] "
            "table with data",
            stacklevel=2,
        )
    return None


def _latency(config: RunConfig, inputs: RunInputs, result: Result) -> dict[str, Any] | None:
    """Dense and pruned network in turns, on an example repeated to the configured batch size."""
    if config.latency.repeats == 0:
        return None
    table = result.record["latency_table"]
    batch = config.latency.batch_size if table is None else table["batch"]
    args, kwargs = inputs.batch_of(batch)
    before, after = latency_ms([inputs.model, result.model], args, kwargs, repeats=config.latency.repeats)
    return {
        "before": before["median"],
        "after": after["median"],
        "spread_before": before["quartiles"],
        "spread_after": after["quartiles"],
        "predicted": result.record["cost"]["after"].get("latency_ms"),
        "batch": batch,
        "threads": torch.get_num_threads(),
        "repeats": config.latency.repeats,
    }
