"""Meta-training in its own folder: `fit`, for every method that learns."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from pathlib import Path

from metaprune.core.arguments import check_arguments
from metaprune.core.errors import ConfigError, DamagedFileError, NotAvailableError
from metaprune.core.files import part_of
from metaprune.core.rng import Rng
from metaprune.protocol.artifact import INFO, Artifact
from metaprune.protocol.method import LearnedMethod, completed
from metaprune.protocol.registry import create_method
from metaprune.runs.config import RunConfig
from metaprune.runs.folder import Phases, RunFolder, log
from metaprune.runs.inputs import load_inputs, resolve_device
from metaprune.runs.record import environment
from metaprune.runs.run import prepared_of, train_dense
from metaprune.train.engine import engine
from metaprune.train.processes import by_main_process, main_process_first


def fit(config: RunConfig, folder: str | Path, *, progress: bool = True) -> Artifact:
    """Meta-train the recipe's method into `folder`. Killed and started again, it continues where it was.

    Launched as several processes (`accelerate launch`, `torchrun`), a method that can shares the work; the main process
    writes the folder, which all have to see, and the others return the same artifact.

    Raises:
        ConfigError: the method does not learn, or the folder holds another run.
        NotAvailableError: several processes, and a method that does not share its work.
    """
    check_arguments(fit, locals())
    method = create_method(config.method.name, dict(config.method.options))
    if not isinstance(method, LearnedMethod):
        raise ConfigError(f"method {method.name!r} learns nothing beforehand: `metaprune prune RECIPE` runs it")
    declared = completed(method)
    if config.also and not declared.many_networks:
        raise ConfigError(f"method {method.name!r} is meta-trained on one network: leave out the [[also]] tables")
    with (
        ExitStack() as held,
        engine("no", resolve_device(config.device)) as accelerator,
    ):  # joins the launch, if there is one
        if accelerator.num_processes > 1 and not declared.shares_work:
            raise NotAvailableError(f"method {method.name!r} meta-trains in one process: start it without a launcher")
        with main_process_first() as main:
            run_folder = RunFolder(folder, config, writes=main)
            if (earlier := _earlier(run_folder, method.name)) is not None:
                return earlier
            held.enter_context(run_folder.held())
        with run_folder.logged():
            artifact = _fitted(config, method, run_folder, progress and main)
            by_main_process(lambda: artifact.save(run_folder.path))
    return artifact


def _earlier(run_folder: RunFolder, method: str) -> Artifact | None:
    """What an earlier start fitted; None where there is nothing, or it is damaged and has to be made again."""
    if not part_of(run_folder.path, INFO).is_file():
        return None
    try:
        artifact = Artifact.load(run_folder.path, method)
    except DamagedFileError as error:
        log.warning("warning: %s", error)
        return None
    log.info("%s is fitted already", run_folder.path)
    return artifact


def _fitted(config: RunConfig, method: LearnedMethod, run_folder: RunFolder, progress: bool) -> Artifact:
    """What `method` learned on the recipe's networks and data, with the figures of the run."""
    phases, tasks = Phases(), []
    each = [dataclasses.replace(config, model=model, also=()) for model in (config.model, *config.also)]
    with phases("load"):  # all of them, before the first is trained for hours
        inputs = [load_inputs(one) for one in each]
    for n, (one, given) in enumerate(zip(each, inputs, strict=True)):
        at = RunFolder(run_folder.path / f"also-{n}", one, writes=run_folder.writes) if n else run_folder
        if n:
            at.claim()
        with phases("trace"):
            prepared = prepared_of(one, given, method, progress)
        train_dense(one, given, prepared, at, phases)
        given.save_dense(at.path / "dense.safetensors")
        tasks.append(prepared.task(at.path))
    with phases("fit"):
        artifact = method.fit(tasks, Rng(config.seed).child("method", method.name))
    info = {**artifact.info, **environment(config.seed, inputs[0].device), "phases": phases.seconds}
    return dataclasses.replace(artifact, info=info)
