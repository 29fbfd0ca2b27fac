"""`metaprune headroom RECIPE_OR_MODEL --budgets 26%,7.2%`: is there anything to be won by searching widths?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import tyro

from metaprune.cli.cells import Cells, parts_of
from metaprune.cli.target import target_config
from metaprune.core.errors import ConfigError
from metaprune.runs.verb_tools import assignments

if TYPE_CHECKING:
    from metaprune.runs.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class Headroom(Cells):
    """Measure whether structures of equal cost differ by more than seeds do, before a search is paid for.

    Uniform widths, widths tilted to either end, the last width whole, and random ones, each with several seeds (at
    least 2), judged on the validation part. Prints a table and, per budget, an answer: search, or do not. The same
    command continues.
    """

    verb: ClassVar[str] = "headroom"

    target: tyro.conf.Positional[str]
    """TOML recipe, folder of a run (its dense network), or model spec, as zoo:resnet20. What follows the cut is the
    recipe's recovery; of a model spec with weights least squares, without them training from scratch."""
    data: str | None = None
    """Data spec, as builtin:glyphs; needed with a model spec."""
    weights: str | None = None
    """Weight file for the model."""

    def run(self) -> int:
        self.require_workers()
        config = self.config()
        folder = self.folder_of(Path(self.target).stem.replace(":", "-"), config)
        from metaprune.runs.headroom import measured_headroom

        with self.started(folder):
            result, answers = measured_headroom(
                config, folder, budgets=parts_of(self.budgets), seeds=self.seeds, progress=not self.quiet
            )
        self.show(result, folder, [f"{answer.budget}: {answer.text(result.metric)}" for answer in answers])
        return 0

    def config(self) -> RunConfig:
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

    def given(self) -> list[str]:
        flags = (("--data", self.data), ("--weights", self.weights))
        return [self.target, *(part for flag, value in flags if value is not None for part in (flag, value))]
