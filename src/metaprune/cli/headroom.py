"""`metaprune headroom RECIPE_OR_MODEL --budgets 26%,7.2%`: is there anything to be won by searching widths?"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from metaprune.cli.target import target_config
from metaprune.core.errors import ConfigError
from metaprune.runs.verb_tools import assignments, console


@dataclass(frozen=True)
class Headroom:
    """Measure whether structures of equal cost differ by more than seeds do, before a search is paid for.

    Uniform widths, widths tilted to either end, the last width whole, and random ones, each with several seeds, judged
    on the validation part. Prints a table and, per budget, an answer: search, or do not. The same command continues.
    """

    target: tyro.conf.Positional[str]
    """TOML recipe, folder of a run (its dense network), or model spec, as zoo:resnet20. What follows the cut is the
    recipe's recovery; of a model spec with weights least squares, without them training from scratch."""
    budgets: str
    """Bounds, as 57%,26%,7.2% of the MACs (or of what the recipe bounds), or params=10%; each is one of its own."""
    data: str | None = None
    """Data spec, as builtin:glyphs; needed with a model spec."""
    weights: str | None = None
    """Weight file for the model."""
    seeds: int = 3
    """How many seeds, from the recipe's on; at least 2."""
    workers: int = 1
    """Processes on this machine that take runs."""
    set: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="KEY=VALUE")] = ()
    """Any key of the recipe, as recover.train.epochs=5; may be repeated."""
    run_folder: Annotated[Path | None, tyro.conf.arg(name="run")] = None
    """Folder of the runs; by default runs/headroom-NAME-DIGEST."""
    trust: bool = False
    """Run the code that the config of another user's run names."""
    quiet: bool = False
    """No progress bars."""

    def run(self) -> int:
        if self.workers < 1:
            raise ConfigError(f"--workers {self.workers}: give 1 or more")
        config = self.config()
        name = Path(self.target).stem.replace(":", "-")
        folder = self.run_folder or Path("runs") / f"headroom-{name}-{config.digest()[:8]}"
        from metaprune.report.text import print_whole
        from metaprune.runs.compare import PAGE
        from metaprune.runs.headroom import measured_headroom
        from metaprune.runs.workers import sigterm_exits, workers

        command = [sys.executable, "-m", "metaprune.cli.main", *self._arguments(folder)]
        budgets = [part.strip() for part in self.budgets.split(",") if part.strip()]
        with sigterm_exits(), workers(command, self.workers - 1):
            result, answers = measured_headroom(
                config, folder, budgets=budgets, seeds=self.seeds, progress=not self.quiet
            )
        out = console()
        print_whole(result.table(), out)
        for answer in answers:
            out.print(f"{answer.budget}: {answer.text(result.metric)}", soft_wrap=True)
        out.print(f"{folder / PAGE}, and .csv and .json beside it", soft_wrap=True)
        return 0

    def config(self) -> Any:
        """The recipe; of a model spec alone, one that trains from scratch where nothing gives weights."""
        from metaprune.runs.inputs import has_random_weights

        flags = {"model.weights": self.weights, "data.spec": self.data}
        given = {k: v for k, v in flags.items() if v is not None} | assignments(self.set, "--set")
        config = target_config(self.target, given, trust=self.trust)
        if config.data is None:
            raise ConfigError("headroom is measured on data: give --data, as builtin:glyphs")
        is_recipe = Path(self.target).suffix in (".toml", ".json") or Path(self.target).is_dir()
        if is_recipe or "recover.kind" in given:
            return config
        kind = "scratch" if has_random_weights(config.model) else "none"
        return target_config(self.target, {**given, "recover.kind": kind}, trust=self.trust)

    def _arguments(self, folder: Path) -> list[str]:
        """Those of a worker."""
        given = ["headroom", self.target, "--budgets", self.budgets, "--seeds", str(self.seeds)]
        given += ["--run", str(folder), "--quiet"]
        for flag, value in (("--data", self.data), ("--weights", self.weights)):
            given += [] if value is None else [flag, value]
        for item in self.set:
            given += ["--set", item]
        return [*given, "--trust"] if self.trust else given
