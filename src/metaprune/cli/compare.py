"""`metaprune compare RECIPE --methods a,b --budgets 75%,50%`: methods at equal budgets with equal training."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from metaprune.core.errors import ConfigError
from metaprune.runs.config import read_recipe
from metaprune.runs.verb_tools import assignments, console


@dataclass(frozen=True)
class Compare:
    """Compare methods on one network: same budgets, same recovery, several seeds; curves and a table in one page.

    The dense network is trained once. Every cell is a run in its own folder. The same command continues what was
    stopped; given on several machines that share the folder, or with --workers, processes share the cells.
    """

    recipe: tyro.conf.Positional[Path]
    """TOML recipe; its training makes the dense network, and its recovery follows every cut."""
    methods: str
    """Names, with options where wanted, as 'magnitude p=1,magnitude p=2,taylor'; python:module:Class, too."""
    budgets: str
    """Bounds, as 75%,50%,25% of what the recipe bounds, or macs=50%,params=30%; each is a budget of its own."""
    seeds: int = 3
    """How many seeds, from the recipe's on."""
    workers: int = 1
    """Processes on this machine that take cells."""
    set: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="KEY=VALUE")] = ()
    """Any key of the recipe, as recover.train.epochs=3; may be repeated."""
    run_folder: Annotated[Path | None, tyro.conf.arg(name="run")] = None
    """Folder of the comparison; by default runs/compare-NAME-DIGEST."""
    trust: bool = False
    """Run the code that the config of another user's run names."""
    quiet: bool = False
    """No progress bars."""

    def run(self) -> int:
        if self.workers < 1:
            raise ConfigError(f"--workers {self.workers}: give 1 or more")
        config = read_recipe(self.recipe, assignments(self.set, "--set"), trust=self.trust)
        folder = self.run_folder or Path("runs") / f"compare-{self.recipe.stem}-{config.digest()[:8]}"
        from metaprune.report.comparison import Comparison
        from metaprune.report.text import print_whole
        from metaprune.runs.compare import PAGE, compared
        from metaprune.runs.workers import sigterm_exits, workers

        command = [sys.executable, "-m", "metaprune.cli.main", *self._arguments(folder)]
        with sigterm_exits(), workers(command, self.workers - 1):
            result: Comparison = compared(
                config,
                folder,
                methods=_parts(self.methods),
                budgets=_parts(self.budgets),
                seeds=self.seeds,
                progress=not self.quiet,
            )
        out = console()
        print_whole(result.table(), out)
        out.print(f"{folder / PAGE}, and .csv and .json beside it", soft_wrap=True)
        return 0

    def _arguments(self, folder: Path) -> list[str]:
        """Those of a worker."""
        given = ["compare", str(self.recipe), "--methods", self.methods, "--budgets", self.budgets]
        given += ["--seeds", str(self.seeds), "--run", str(folder), "--quiet"]
        for item in self.set:
            given += ["--set", item]
        return [*given, "--trust"] if self.trust else given


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
