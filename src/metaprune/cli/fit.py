"""`metaprune fit METHOD RECIPE`: meta-train once; `search` then serves many budgets, `adapt` many data sets."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from metaprune.cli.common import assignments, console
from metaprune.runs.config import read_recipe


@dataclass(frozen=True)
class Fit:
    """Meta-train a learned method on the network and data of a recipe. The same command continues a killed run.

    stamp: `torchrun --nproc-per-node 2 -m -- metaprune.cli.main fit stamp ...` is data parallel.
    """

    method: tyro.conf.Positional[str]
    """pruningnet, stamp or metagraph."""
    recipe: tyro.conf.Positional[Path]
    """TOML recipe."""
    set: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="KEY=VALUE")] = ()
    """Any key of the recipe, as method.options.weights=shared; may be repeated."""
    run_folder: Annotated[Path | None, tyro.conf.arg(name="run")] = None
    """Folder of this fit; by default runs/fit-NAME-DIGEST."""
    quiet: bool = False
    """No progress bars."""

    def run(self) -> int:
        config = read_recipe(self.recipe, {"method.name": self.method, **assignments(self.set, "--set")})
        folder = self.run_folder or Path("runs") / f"fit-{self.recipe.stem}-{config.digest()[:8]}"
        from metaprune.runs.fit import fit
        from metaprune.train.processes import is_main_process

        info = fit(config, folder, progress=not self.quiet).info
        if not is_main_process():
            return 0
        out = console()
        cost = info["options"].get("metric", "params")
        again = " ".join(f"--set {shlex.quote(s)}" for s in (f"method.name={self.method}", *self.set))
        following = {
            "pruningnet": f"metaprune search {folder} --budget macs=50%",
            "stamp": f"metaprune adapt {folder} --data builtin:emoji --budget {cost}=25%",
            "metagraph": f"metaprune prune {self.recipe} {again} --set method.options.artifact={folder}",
        }
        out.print(
            f"{info['parameters']:,} parameters of {self.method}, trained in {info['seconds']:.0f} s "
            f"({info['macs']:.3g} MACs)\nfitted: {folder}\nnext: {following.get(self.method, '')}",
            highlight=False,
            soft_wrap=True,
        )
        return 0
