"""`metaprune compare RECIPE --methods a,b --budgets 75%,50%`: methods at equal budgets with equal training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import tyro

from metaprune.cli.cells import Cells, parts_of
from metaprune.runs.config import read_recipe
from metaprune.runs.verb_tools import assignments


@dataclass(frozen=True, kw_only=True)
class Compare(Cells):
    """Compare methods on one network: same budgets, same recovery, several seeds; curves and a table in one page.

    The dense network is trained once. Every cell is a run in its own folder. The same command continues what was
    stopped; given on several machines that share the folder, or with --workers, processes share the cells.
    """

    verb: ClassVar[str] = "compare"

    recipe: tyro.conf.Positional[Path]
    """TOML recipe; its training makes the dense network, and its recovery follows every cut."""
    methods: str
    """Names, with options where wanted, as 'magnitude p=1,magnitude p=2,taylor'; python:module:Class, too."""

    def run(self) -> int:
        self.require_workers()
        config = read_recipe(self.recipe, assignments(self.set, "--set"), trust=self.trust)
        folder = self.folder_of(self.recipe.stem, config)
        from metaprune.runs.compare import compared

        with self.started(folder):
            result = compared(
                config,
                folder,
                methods=parts_of(self.methods),
                budgets=parts_of(self.budgets),
                seeds=self.seeds,
                progress=not self.quiet,
            )
        self.show(result, folder)
        return 0

    def given(self) -> list[str]:
        return [str(self.recipe), "--methods", self.methods]
