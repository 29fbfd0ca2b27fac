"""`metaprune search RUN --budget macs=50%`: many budgets from one fit."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from metaprune.core.errors import ConfigError
from metaprune.runs.verb_tools import assignments, console, show_result
from metaprune.search.config import ENVIRONMENT

_STORAGE = "method.options.storage"


@dataclass(frozen=True)
class Search:
    """Find the best structure under a budget with a fitted PruningNet; then cut, recover, save and report it.

    The same command continues a killed search. Several may run at once, on this machine or others, with one --storage.
    """

    run_folder: tyro.conf.Positional[Path]
    """Folder of `metaprune fit`."""
    budget: str | None = None
    """Upper bounds, as macs=50% or latency_ms=4.0; by default the recipe's."""
    pareto: bool = False
    """The whole front of score against MACs, from one search."""
    only_search: bool = False
    """Print the best structure; cut and train nothing."""
    workers: int = 1
    """Processes on this machine that score structures."""
    searcher: str | None = None
    """evolution, random, greedy, nsga2."""
    storage: str | None = None
    """Optuna storage: sqlite:///FILE, postgresql+psycopg://USER@HOST/DB, journal:FILE; by default that of the
    environment variable METAPRUNE_STORAGE (for a URL with a password), else RUN/search.db."""
    latency_table: str | None = None
    """File of `metaprune latency`, for a budget in latency_ms."""
    set: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="KEY=VALUE")] = ()
    """Any other key of the recipe, as recover.train.epochs=20; may be repeated."""
    out: Annotated[Path | None, tyro.conf.arg(name="run")] = None
    """Folder of the network; by default RUN/networks/BUDGET."""
    trust: bool = False
    """Run the code that the config of another user's run names."""
    quiet: bool = False
    """No progress."""

    def run(self) -> int:
        if self.workers < 1:
            raise ConfigError(f"--workers {self.workers}: give 1 or more")
        if self.pareto and self.budget is not None:
            raise ConfigError("--pareto searches all budgets at once: leave --budget out")
        if self.out is not None and (self.pareto or self.only_search):
            raise ConfigError("--run is the folder of a network, which --pareto and --only-search do not make")
        from metaprune.methods.pruningnet.search import FittedPruningNet
        from metaprune.runs.workers import sigterm_exits, workers

        fitted = FittedPruningNet.open(self.run_folder, self._overrides(), not self.quiet, trust=self.trust)
        if not self.pareto:  # what is wrong with the budget or the folder is said before anything is searched
            fitted.require(self._budget(fitted))
            if not self.only_search:
                fitted.run_of(self._budget(fitted), self.out)
        with sigterm_exits(), workers(self._worker_command(), self.workers - 1, self._storage()):
            return self._pareto(fitted) if self.pareto else self._search(fitted)

    def _budget(self, fitted: Any) -> Any:
        from metaprune.values import Budget

        return fitted.config.budget if self.budget is None else Budget.parse(self.budget)

    def _search(self, fitted: Any) -> int:
        budget = self._budget(fitted)
        best = fitted.best(budget)
        out = console()
        for name, width in best["widths"].items():
            out.print(f"{name:<40} {width:>6} of {fitted.search.task.network.space[name].width}")
        costs = ", ".join(f"{k} {v:,.6g}" for k, v in best["cost"].items())
        out.print(
            f"score {best['score']:.4f} on sub-validation, best of {best['evaluated']}; {costs}",
            soft_wrap=True,
        )
        if self.only_search:
            return 0
        record, run_folder = fitted.network(budget, self.out, progress=not self.quiet)
        show_result(record, run_folder / "report.html")
        return 0

    def _pareto(self, fitted: Any) -> int:
        rows = fitted.pareto()
        out = console()
        for row in rows:
            out.print(f"{row['cost']['macs']:>16,} MACs   score {row['score']:.4f}")
        out.print(f"front: {self.run_folder / 'front.json'}", soft_wrap=True)
        return 0

    def _overrides(self) -> dict[str, Any]:
        flags = {
            "method.options.search.searcher": self.searcher,
            _STORAGE: self.storage or os.environ.get(ENVIRONMENT),  # workers are given it there
            "latency.table": self.latency_table,
        }
        return {**{k: v for k, v in flags.items() if v is not None}, **assignments(self.set, "--set")}

    def _storage(self) -> str | None:
        return self._overrides().get(_STORAGE)

    def _worker_command(self) -> list[str]:
        """Without the storage, whose URL may hold a password: workers find it in their environment."""
        settings = [s for s in self.set if s.partition("=")[0].strip() != _STORAGE]
        options = [("--budget", self.budget), ("--searcher", self.searcher)]
        options += [("--latency-table", self.latency_table), *(("--set", s) for s in settings)]
        given = [part for flag, value in options if value is not None for part in (flag, value)]
        given += ["--trust"] if self.trust else []
        last = "--pareto" if self.pareto else "--only-search"
        return [sys.executable, "-m", "metaprune.cli.main", "search", str(self.run_folder), *given, last, "--quiet"]


VERBS = {"search": Search}
