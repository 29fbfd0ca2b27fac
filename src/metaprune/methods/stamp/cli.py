"""`metaprune adapt RUN --data TARGET --budget params=25%`: many data sets from one fitted STAMP."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from metaprune.core.errors import ConfigError
from metaprune.runs.verb_tools import assignments, show_result


@dataclass(frozen=True)
class Adapt:
    """Fit a meta-trained network to a data set it has not seen, prune it for that data, train the small network."""

    run_folder: tyro.conf.Positional[Path]
    """Folder of `metaprune fit stamp`."""
    data: str
    """Target data: builtin:NAME, imagefolder:DIR, npz:FILE, hf:NAME_OR_DIR or python:module:function."""
    budget: str
    """Upper bounds, as params=25% or macs=30%; nonzero=25% of one fitted with variant = "filter"."""
    steps: int | None = None
    """Gradient steps before the mask is frozen; by default the recipe's (20). 0: channels by statistics of the data,
    weights by least squares, head by ridge regression, and no training: seconds."""
    set: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="KEY=VALUE")] = ()
    """Any other key of the recipe, as recover.train.epochs=20; may be repeated."""
    out: Annotated[Path | None, tyro.conf.arg(name="run")] = None
    """Folder of the network; by default RUN/targets/DATA-BUDGET, which the report of later targets compares with."""
    trust: bool = False
    """Run the code that the config of another user's run names."""
    quiet: bool = False
    """No progress bars."""

    def run(self) -> int:
        from metaprune.core.strict import from_dict, override
        from metaprune.methods.stamp.adapt import adapt
        from metaprune.runs.config import DataConfig
        from metaprune.values import Budget

        overrides = assignments(self.set, "--set")
        chosen = {k.removeprefix("data."): overrides.pop(k) for k in list(overrides) if k.startswith("data.")}
        if "spec" in chosen:
            raise ConfigError("--set data.spec: the data are what --data says")
        if self.steps is not None:
            overrides["method.options.adapt_steps"] = self.steps
        data = from_dict(DataConfig, override({"spec": self.data}, chosen), "data")
        record, run_folder = adapt(
            self.run_folder,
            data,
            Budget.parse(self.budget),
            overrides,
            self.out,
            progress=not self.quiet,
            trust=self.trust,
        )
        show_result(record, run_folder / "report.html")
        return 0


VERBS = {"adapt": Adapt}
