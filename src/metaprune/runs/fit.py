"""Learned methods in stages: meta-train once (`fit`), then serve budgets (`search`) or data sets (`adapt`)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from metaprune.core.errors import ConfigError, NotAvailableError
from metaprune.core.files import write_json
from metaprune.core.rng import Rng
from metaprune.core.strict import from_dict, override
from metaprune.methods.metagraph.method import MetaGraph
from metaprune.methods.pruningnet.method import FITTED_OPTIONS, PruningNet
from metaprune.methods.pruningnet.session import Session
from metaprune.methods.stamp.method import FITTED_OPTIONS as STAMP_OPTIONS
from metaprune.methods.stamp.method import Stamp
from metaprune.network import trace
from metaprune.protocol.artifact import INFO, Artifact
from metaprune.protocol.method import Learned, Task, recovery_after
from metaprune.protocol.registry import create_method
from metaprune.runs.config import DataConfig, MethodConfig, RunConfig
from metaprune.runs.folder import Phases, RunFolder, log
from metaprune.runs.inputs import Inputs, load_inputs, resolve_device
from metaprune.runs.prune import attach_latency_table, run, train_dense
from metaprune.runs.record import environment
from metaprune.search.study import best_within, front
from metaprune.surgery.keep_module import module_rules
from metaprune.train.engine import engine
from metaprune.train.processes import by_main_process, main_process_first
from metaprune.values import Budget


def fit(config: RunConfig, folder: str | Path, *, progress: bool = True) -> Artifact:
    """Meta-train the recipe's method into `folder`. Killed and started again, it continues where it was.

    Launched as several processes (`accelerate launch`, `torchrun`), stamp shares the work; the main process writes the
    folder, which all have to see, and the others return the same artifact.

    Raises:
        ConfigError: the method does not learn, or the folder holds another run.
        NotAvailableError: several processes and another method than stamp.
    """
    method = create_method(config.method.name, dict(config.method.options))
    if not isinstance(method, Learned):
        raise ConfigError(f"method {method.name!r} learns nothing beforehand: `metaprune prune RECIPE` runs it")
    if config.also and not isinstance(method, MetaGraph):
        raise ConfigError(f"method {method.name!r} is meta-trained on one network: leave out the [[also]] tables")
    with engine("no", resolve_device(config.device)) as accelerator:  # joins the launch, if there is one
        if accelerator.num_processes > 1 and not isinstance(method, Stamp):
            raise NotAvailableError(f"method {method.name!r} meta-trains in one process: start it without a launcher")
        with main_process_first() as main:
            place = RunFolder(folder, config, writes=main)
        if (place.path / INFO).is_file():
            log.info("%s is fitted already", place.path)
            return Artifact.load(place.path, method.name)
        with place.logged():
            artifact = _fitted(config, method, place, progress and main)
            by_main_process(lambda: artifact.save(place.path))
    return artifact


def _fitted(config: RunConfig, method: Learned, place: RunFolder, progress: bool) -> Artifact:
    """What `method` learned on the recipe's networks and data, with the figures of the run."""
    phases, tasks = Phases(), []
    each = [dataclasses.replace(config, model=model, also=()) for model in (config.model, *config.also)]
    with phases("load"):  # all of them, before the first is trained for hours
        inputs = [load_inputs(one) for one in each]
    for n, (one, given) in enumerate(zip(each, inputs, strict=True)):
        at = RunFolder(place.path / f"also-{n}", one) if n else place
        train_dense(one, given, at, phases, progress)
        tasks.append(_task(one, given, at.path, progress))
    with phases("fit"):
        artifact = method.fit(tasks, Rng(config.seed).child("method", method.name))
    info = {**artifact.info, **environment(config.seed, inputs[0].device), "phases": phases.seconds}
    return dataclasses.replace(artifact, info=info)


def _task(config: RunConfig, inputs: Inputs, folder: Path, progress: bool) -> Task:
    network = trace(inputs.model, inputs.args, inputs.kwargs)
    network, _ = attach_latency_table(network, config.latency.table)
    constraints = config.constraints
    if constraints.keep_module:
        constraints = module_rules(network, config.seed).applied_to(constraints)
    return Task(network, inputs.data, constraints, folder=folder, progress=progress)


@dataclass(frozen=True)
class Fitted:
    """A fitted run: its recipe, and its PruningNet on the network, ready to search."""

    folder: Path
    config: RunConfig
    session: Session

    @classmethod
    def open(cls, folder: str | Path, overrides: dict[str, Any] | None = None, progress: bool = True) -> Fitted:
        """overrides: options of the method that a search may change (searcher, storage, latency table, ...).

        Raises:
            ConfigError: no fitted run there, or a method that searches nothing.
        """
        folder = Path(folder).resolve()
        _require_unfitted(overrides or {}, FITTED_OPTIONS, ("budget", "model", "train"))
        config = _fitted_config(folder, overrides or {}, "pruningnet")
        method = create_method(config.method.name, dict(config.method.options))
        if not isinstance(method, PruningNet):
            raise ConfigError(
                f"{folder} holds a {config.method.name}, which searches nothing; `search` is for pruningnet"
            )
        inputs = load_inputs(_with_dense(config, folder))
        task = _task(config, inputs, folder, progress)
        return cls(folder, config, method.session(task, Artifact.load(folder, method.name)))

    @property
    def rng(self) -> Rng:
        return Rng(self.config.seed).child("method", self.config.method.name)

    def require(self, budget: Budget) -> None:
        """Raises InfeasibleBudgetError, NotAvailableError or ConfigError for a budget that cannot be searched under."""
        method, task = self.session.method, self.session.task
        method.require_feasible(task, budget)
        if task.allocator(budget).full_network_fits:
            raise ConfigError(f"the full network meets {budget.to_dict()}: there is nothing to search")

    def best(self, budget: Budget) -> dict[str, Any]:
        """Search alone: the best structure's widths, score and costs. `network` goes on from there."""
        self.require(budget)
        network = self.session.task.network
        bounds = budget.bounds(network.cost())
        candidates = self.session.search([bounds], self.rng)
        found = best_within(candidates, network.cost_model(), bounds)
        if found is None:
            raise ConfigError("the search ended without a structure within the budget; use --searcher evolution")
        return self._described(np.array(found.widths), found.score) | {"evaluated": len(candidates)}

    def pareto(self, targets: int = 8) -> list[dict[str, Any]]:
        """One search over `targets` budgets of MACs, from the smallest structure's to the full network's; its front."""
        network, codec = self.session.task.network, self.session.codec
        ends = network.cost_model().metric("macs", codec.widths(np.stack([codec.smallest, codec.full])))
        bounds = [{"macs": float(b)} for b in np.geomspace(ends[0], ends[1], targets)]
        candidates = self.session.search(bounds, self.rng)
        macs = network.cost_model().metric("macs", np.array([c.widths for c in candidates]))
        rows = [self._described(np.array(candidates[i].widths), candidates[i].score) for i in front(candidates, macs)]
        write_json(self.folder / "front.json", {"targets": bounds, "evaluated": len(candidates), "front": rows})
        return rows

    def network(self, budget: Budget, folder: Path | None = None, *, progress: bool = True) -> tuple[dict, Path]:
        """The whole way to a network: search (or what an earlier search found), cut, recover, save, report."""
        config, place = self.run_of(budget, folder)
        method = dataclasses.replace(self.session.method, artifact=str(self.folder), storage=self.session.storage)
        return run(config, place, method=method, progress=progress), place

    def run_of(self, budget: Budget, folder: Path | None = None) -> tuple[RunConfig, Path]:
        """Config and folder of the run that makes the network.

        Raises:
            ConfigError: the folder holds another run, or recovery would throw away inherited weights.
        """
        options = {k: v for k, v in self.config.method.options.items() if k != "storage"}  # it may hold a password
        options["artifact"] = str(self.folder)
        config = dataclasses.replace(
            self.config, budget=budget, method=MethodConfig(name=self.config.method.name, options=options), train=None,
            model=_with_dense(self.config, self.folder).model,
        )
        name = _in_path(budget)
        searcher = self.session.method.search.searcher
        place = folder or self.folder / "networks" / (name if searcher == "evolution" else f"{name}-{searcher}")
        recovery_after(self.session.method, config.recover.kind)
        RunFolder(place, config, writes=False)
        return config, place

    def _described(self, widths: np.ndarray, score: float) -> dict[str, Any]:
        space = self.session.task.network.space
        cost = self.session.task.network.cost(widths).to_dict()
        return {"widths": {g.name: int(w) for g, w in zip(space, widths, strict=True)}, "score": score, "cost": cost}


def adapt(
    folder: str | Path, data: DataConfig, budget: Budget, overrides: dict[str, Any] | None = None,
    out: Path | None = None, *, progress: bool = True,
) -> tuple[dict[str, Any], Path]:
    """A fitted STAMP on another data set: adapt, freeze the mask, cut, train the small network, save, report.

    Images are brought to the channels and, unless `data.image_size` says otherwise, the size of the reference data.

    Returns:
        the record, and the folder of the network (by default FOLDER/targets/NAME-BUDGET).

    Raises:
        ConfigError: no fitted run there, or of a method that does not adapt.
    """
    folder = Path(folder).resolve()
    changes = overrides or {}
    _require_unfitted(changes, STAMP_OPTIONS, ("budget", "model", "train", "data"))
    config = _fitted_config(folder, changes, "stamp")
    if config.method.name != Stamp.name:
        raise ConfigError(f"{folder} holds a {config.method.name}: `adapt` is for stamp, `search` for pruningnet")
    options = {**config.method.options, "artifact": str(folder)}
    shape = Artifact.load(folder, Stamp.name).info["shape"]
    if len(shape) == 3:
        data = dataclasses.replace(
            data, channels=data.channels or shape[0], image_size=data.image_size or shape[1]
        )
    recover = config.recover
    if options.get("variant") == "structure" and recover.kind != "scratch":
        recover = dataclasses.replace(recover, kind="scratch")
    model = dataclasses.replace(config.model, weights=str(folder / "dense.safetensors"), new_head=True)
    model = dataclasses.replace(model, options={k: v for k, v in model.options.items() if k != "num_classes"})
    config = dataclasses.replace(
        config, data=data, budget=budget, train=None, recover=recover, model=model,
        method=MethodConfig(name=Stamp.name, options=options),
    )
    place = out or folder / "targets" / f"{data.spec.replace(':', '-').replace('/', '_')}-{_in_path(budget)}"
    return run(config, place, progress=progress), place


def _in_path(budget: Budget) -> str:
    """`macs-50pct_params-1000000`."""
    return "_".join(f"{m}-{v}" for m, v in budget.to_dict().items()).replace("%", "pct")


def _fitted_config(folder: Path, overrides: dict[str, Any], method: str) -> RunConfig:
    """The recipe of a fitted run. Raises ConfigError where there is none."""
    if (folder / "config.json").is_file() and not (folder / INFO).is_file():
        raise ConfigError(f"the run in {folder} is not finished: `metaprune fit` as it was started goes on with it")
    if not (folder / INFO).is_file():
        raise ConfigError(f"{folder} holds no fitted run: make one with `metaprune fit {method} RECIPE --run {folder}`")
    return from_dict(RunConfig, override(json.loads((folder / "config.json").read_text()), overrides))


def _require_unfitted(overrides: dict[str, Any], fitted: Sequence[str], tables: Sequence[str]) -> None:
    """Raises ConfigError for options of the method, and tables of the recipe, that cannot change after the fit."""
    for key in overrides:
        if key.partition(".")[0] in tables:
            raise ConfigError(
                f"{key} does nothing here: the network is the fit's, budget and data have their arguments"
            )
        option = key.removeprefix("method.options.").partition(".")[0]
        if key.startswith("method.options.") and option in fitted:
            raise ConfigError(f"{key} was decided by the fit: run `metaprune fit` with it, into another folder")


def _with_dense(config: RunConfig, folder: Path) -> RunConfig:
    """The network as the fit saw it: trained there, if it was."""
    if config.train is None:
        return config
    return dataclasses.replace(
        config, model=dataclasses.replace(config.model, weights=str(folder / "dense.safetensors"))
    )


def start_workers(command: Sequence[str], count: int) -> list[Any]:
    """`count` more processes that run `command`; each takes its share of the search through the storage."""
    import subprocess

    return [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(count)]
