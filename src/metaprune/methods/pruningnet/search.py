"""Many budgets from one fit: what the verb `search` does."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from metaprune.core.errors import ConfigError
from metaprune.core.files import write_json
from metaprune.core.rng import Rng
from metaprune.core.strict import from_dict
from metaprune.methods.pruningnet.method import PruningNet
from metaprune.methods.pruningnet.structure_search import StructureSearch
from metaprune.protocol.artifact import Artifact
from metaprune.protocol.method import recovery_after
from metaprune.runs.config import MethodConfig, RunConfig
from metaprune.runs.fitted import budget_in_path, fitted_config, with_dense
from metaprune.runs.folder import RunFolder
from metaprune.runs.inputs import load_inputs
from metaprune.runs.run import prepared_of, run
from metaprune.search.study import best_within, front
from metaprune.values import Budget

_OTHERS = ", which searches nothing; `search` is for pruningnet"


@dataclass(frozen=True)
class FittedPruningNet:
    """A fitted run: its recipe, and its PruningNet on the network, ready to search."""

    folder: Path
    config: RunConfig
    method: PruningNet
    search: StructureSearch

    @classmethod
    def open(
        cls,
        folder: str | Path,
        overrides: dict[str, Any] | None = None,
        progress: bool = True,
        *,
        trust: bool = False,
    ) -> FittedPruningNet:
        """overrides: options of the method that a search may change (searcher, storage, latency table, ...).

        Raises:
            ConfigError: no fitted run there, or a method that searches nothing.
        """
        folder = Path(folder).resolve()
        tables = ("budget", "model", "train")
        config = fitted_config(folder, overrides or {}, PruningNet.name, tables, _OTHERS, trust=trust)
        method = from_dict(PruningNet, config.method.options, PruningNet.name)
        inputs = load_inputs(with_dense(config, folder))
        task = prepared_of(dataclasses.replace(config, train=None), inputs, method, progress).task(folder)
        return cls(folder, config, method, method.session(task, Artifact.load(folder, method.name)))

    @property
    def rng(self) -> Rng:
        return Rng(self.config.seed).child("method", self.config.method.name)

    def require(self, budget: Budget) -> None:
        """Raises InfeasibleBudgetError, NotAvailableError or ConfigError for a budget that cannot be searched under."""
        task = self.search.task
        self.method.require_feasible(task, budget)
        if task.allocator(budget).full_network_fits:
            raise ConfigError(f"the full network meets {budget.to_dict()}: there is nothing to search")

    def best(self, budget: Budget) -> dict[str, Any]:
        """Search alone: the best structure's widths, score and costs. `network` goes on from there."""
        self.require(budget)
        network = self.search.task.network
        bounds = budget.bounds(network.cost())
        candidates = self.search.search([bounds], self.rng)
        best = best_within(candidates, network.cost_model(), bounds)
        if best is None:
            raise ConfigError("the search ended without a structure within the budget; use --searcher evolution")
        return self._described(np.array(best.widths), best.score) | {"evaluated": len(candidates)}

    def pareto(self, targets: int = 8) -> list[dict[str, Any]]:
        """Search once over `targets` budgets of MACs, smallest structure to full network; return the front."""
        network, codec = self.search.task.network, self.search.codec
        ends = network.cost_model().metric("macs", codec.widths(np.stack([codec.smallest, codec.full])))
        bounds = [{"macs": float(b)} for b in np.geomspace(ends[0], ends[1], targets)]
        candidates = self.search.search(bounds, self.rng)
        macs = network.cost_model().metric("macs", np.array([c.widths for c in candidates]))
        rows = [self._described(np.array(candidates[i].widths), candidates[i].score) for i in front(candidates, macs)]
        write_json(self.folder / "front.json", {"targets": bounds, "evaluated": len(candidates), "front": rows})
        return rows

    def network(self, budget: Budget, folder: Path | None = None, *, progress: bool = True) -> tuple[dict, Path]:
        """Go the whole way to a network: search (or take what an earlier search found), cut, recover, save, report."""
        config, run_folder = self.run_of(budget, folder)
        method = dataclasses.replace(self.method, artifact=str(self.folder), storage=None, runs_at=self.search.storage)
        return run(config, run_folder, method=method, progress=progress), run_folder

    def run_of(self, budget: Budget, folder: Path | None = None) -> tuple[RunConfig, Path]:
        """Config and folder of the run that makes the network.

        Raises:
            ConfigError: the folder holds another run, or recovery would throw away inherited weights.
        """
        options = {k: v for k, v in self.config.method.options.items() if k != "storage"}  # it may hold a password
        options["artifact"] = str(self.folder)
        config = dataclasses.replace(
            self.config,
            budget=budget,
            method=MethodConfig(name=self.config.method.name, options=options),
            train=None,
            model=with_dense(self.config, self.folder).model,
        )
        name = budget_in_path(budget)
        searcher = self.method.search.searcher
        run_folder = folder or self.folder / "networks" / (name if searcher == "evolution" else f"{name}-{searcher}")
        recovery_after(self.method, config.recover.kind)
        RunFolder(run_folder, config, writes=False)
        return config, run_folder

    def _described(self, widths: np.ndarray, score: float) -> dict[str, Any]:
        space = self.search.task.network.space
        cost = self.search.task.network.cost(widths).to_dict()
        return {"widths": {g.name: int(w) for g, w in zip(space, widths, strict=True)}, "score": score, "cost": cost}
