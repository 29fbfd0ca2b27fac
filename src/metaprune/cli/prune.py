"""`metaprune prune RECIPE`: the main job."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from metaprune.core.errors import ConfigError
from metaprune.runs.config import RunConfig, from_dict, override, read_recipe
from metaprune.runs.verb_tools import assignments, show_result


@dataclass(frozen=True)
class Prune:
    """Train or load, trace, propose, cut, prove, recover, measure, save, report.

    The same command continues a run that was killed.
    """

    recipe: tyro.conf.Positional[Path | None] = None
    """TOML recipe, or the record.json of a run to repeat; flags override it. Without one, give at least --model and
    --budget."""
    model: str | None = None
    """Model spec, as zoo:resnet20."""
    weights: str | None = None
    """Weight file for the model."""
    data: str | None = None
    """Data spec, as builtin:fashion-mnist."""
    objective: str | None = None
    """What the network is trained for and judged by, as regression or next_token; by default what the data say."""
    budget: str | None = None
    """Upper bounds, as macs=50% or macs=50%,params=1e6; nonzero=50% for masks of single weights."""
    method: str | None = None
    """Name of a method (`metaprune methods` lists them), or python:module:Class; by default auto."""
    only: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="PATTERN")] = ()
    """What may shrink: globs over groups, modules and LAYER:ROLE, as 'layer1*' or '*:heads'; may be repeated."""
    keep_module: bool = False
    """Only widths at which the model's own class still runs."""
    keep_config: bool = False
    """Only widths that the config of a transformers model can say, so that save_pretrained works."""
    recover: str | None = None
    """none, bn, finetune, distil, scratch; by default what the method asks for, mostly nothing."""
    latency_table: str | None = None
    """File of `metaprune latency`, for a budget in latency_ms."""
    seed: int | None = None
    """Seed of everything random."""
    device: str | None = None
    """cpu, cuda, mps or auto."""
    set: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="KEY=VALUE")] = ()
    """Any other key of the recipe, as train.epochs=3; may be repeated."""
    run_folder: Annotated[Path | None, tyro.conf.arg(name="run")] = None
    """Folder of this run; by default runs/NAME-DIGEST, so that equal commands share one."""
    trust: bool = False
    """Run the code that the config of another user's run names."""
    quiet: bool = False
    """No progress bars."""

    def run(self) -> int:
        config = self.config()
        folder = self.run_folder or Path("runs") / f"{self._name()}-{config.digest()[:8]}"
        from metaprune.runs.run import run

        record = run(config, folder, progress=not self.quiet, command=shlex.join(["metaprune", *sys.argv[1:]]))
        show_result(record, folder / "report.html")
        return 0

    def config(self) -> RunConfig:
        overrides = self._overrides()
        if self.recipe is not None:
            return read_recipe(self.recipe, overrides, trust=self.trust)
        if self.model is None or self.budget is None:
            raise ConfigError("give a recipe, or at least --model and --budget (see metaprune prune --help)")
        return from_dict(RunConfig, override({}, overrides))

    def _overrides(self) -> dict[str, Any]:
        flags = {
            "model.spec": self.model,
            "model.weights": self.weights,
            "data.spec": self.data,
            "objective.kind": self.objective,
            "method.name": self.method,
            "recover.kind": self.recover,
            "seed": self.seed,
            "device": self.device,
            "latency.table": self.latency_table,
        }
        overrides: dict[str, Any] = {key: value for key, value in flags.items() if value is not None}
        if self.only:
            overrides["constraints.only"] = list(self.only)
        if self.keep_module:
            overrides["constraints.keep_module"] = True
        if self.keep_config:
            overrides["constraints.keep_config"] = True
        if self.budget is not None:
            from metaprune.values import Budget

            overrides["budget"] = Budget.parse(self.budget).to_dict()
        return {**overrides, **assignments(self.set, "--set")}

    def _name(self) -> str:
        if self.recipe is not None:
            return self.recipe.stem
        return f"{self.model}_{self.method or 'auto'}".replace(":", "_").replace("/", "_")
