"""`metaprune fit METHOD RECIPE`: meta-train once; what the method learned then serves many budgets or data sets."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from metaprune.protocol.registry import method_spec
from metaprune.runs.config import read_recipe
from metaprune.runs.verb_tools import assignments, console


@dataclass(frozen=True)
class Fit:
    """Meta-train a learned method on the network and data of a recipe. The same command continues a killed run.

    A method that shares its work runs as several processes: `torchrun --nproc-per-node 2 -m -- metaprune.cli.main
    fit ...`.
    """

    method: tyro.conf.Positional[str]
    """Name of a method that learns (`metaprune methods` lists them), or python:module:Class."""
    recipe: tyro.conf.Positional[Path]
    """TOML recipe."""
    set: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="KEY=VALUE")] = ()
    """Any key of the recipe, as method.options.weights=shared; may be repeated."""
    run_folder: Annotated[Path | None, tyro.conf.arg(name="run")] = None
    """Folder of this fit; by default runs/fit-NAME-DIGEST."""
    trust: bool = False
    """Run the code that the config of another user's run names."""
    quiet: bool = False
    """No progress bars."""

    def run(self) -> int:
        overrides = {"method.name": self.method, **assignments(self.set, "--set")}
        config = read_recipe(self.recipe, overrides, trust=self.trust)
        folder = self.run_folder or Path("runs") / f"fit-{self.recipe.stem}-{config.digest()[:8]}"
        from metaprune.runs.fit import fit
        from metaprune.train.processes import is_main_process

        info = fit(config, folder, progress=not self.quiet).info
        if not is_main_process():
            return 0
        out = console()
        again = " ".join(f"--set {shlex.quote(s)}" for s in (f"method.name={self.method}", *self.set))
        then = method_spec(self.method).next_step.format(
            folder=folder, recipe=self.recipe, again=again, options=info.get("options", {})
        )
        trained = "no parameters to train"
        if "parameters" in info:
            trained = f"{info['parameters']:,} parameters trained in {info['seconds']:.0f} s ({info['macs']:.3g} MACs)"
        out.print(
            f"{self.method}: {trained}\nfitted: {folder}" + (f"\nnext: {then}" if then else ""),
            soft_wrap=True,
        )
        return 0
