"""`metaprune sensitivity RECIPE_OR_MODEL`: how far the outputs move when each group alone gets narrower."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from metaprune.calibration.config import SHARES
from metaprune.cli.target import target_config
from metaprune.core.errors import ConfigError
from metaprune.core.files import write_json
from metaprune.runs.config import MethodConfig, RunConfig
from metaprune.runs.verb_tools import assignments, console

if TYPE_CHECKING:
    from metaprune.calibration.sensitivity import Curve


@dataclass(frozen=True)
class Sensitivity:
    """Narrow each channel group alone, at a few shares of its width, and measure how far the outputs move.

    What reads the group is solved anew in closed form, on training samples and without labels. Prints a table, and
    writes a JSON file and a page with the curves beside it.
    """

    target: tyro.conf.Positional[str]
    """Folder of a run (its dense network), TOML recipe, or model spec, as timm:NAME."""
    data: str | None = None
    """Data spec, as builtin:fashion-mnist; needed with a model spec."""
    weights: str | None = None
    """Weight file for the model."""
    objective: str | None = None
    """What says how far two outputs are apart, as regression or next_token; by default what the data say."""
    criterion: str = "activation"
    """Method that scores the channels; the highest stay."""
    shares: tuple[float, ...] = SHARES
    """Shares of the width; of each group, the nearest that it may take."""
    only: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="PATTERN")] = ()
    """What is measured: globs over groups, modules and LAYER:ROLE; may be repeated."""
    seed: int | None = None
    """Seed of everything random."""
    device: str | None = None
    """cpu, cuda, mps or auto."""
    set: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="KEY=VALUE")] = ()
    """Any other key of the recipe, as model.options.num_classes=10; may be repeated."""
    out: Path = Path("sensitivity.json")
    """Where the figures go; the page goes beside them, as .html."""
    trust: bool = False
    """Run the code that the config of another user's run names."""

    def run(self) -> int:
        if self.out.is_dir() or self.out.suffix != ".json":
            raise ConfigError(f"--out {self.out} is no JSON file: give a name such as sensitivity.json")
        config = self.config()
        from metaprune.protocol.registry import create_method
        from metaprune.runs.inputs import has_random_weights, load_inputs
        from metaprune.runs.run import prepared_of
        from metaprune.runs.sensitivity import measured_curves

        told = ()
        if has_random_weights(config.model):
            told = ("the network has random weights, so its curves say nothing of a trained one: give --weights FILE",)
            warnings.warn(told[0], stacklevel=2)
        inputs, method = load_inputs(config), create_method(self.criterion)
        prepared = prepared_of(config, inputs, method, progress=False)
        curves = measured_curves(prepared, self.shares)
        objective = None if prepared.data is None else prepared.data.objective
        self._show(
            curves,
            {
                "model": config.model.spec,
                "data": "" if config.data is None else config.data.spec,
                "objective": "" if objective is None else objective.name,
                "criterion": self.criterion,
                "seed": config.seed,
            },
            told,
        )
        return 0

    def config(self) -> RunConfig:
        """The run that would be made, without training, budget and recovery.

        Raises:
            ConfigError: no data, or a network that a recipe trains first and that has no weights yet.
        """
        config = target_config(self.target, self._overrides(), trust=self.trust)
        if config.train is not None and self.weights is None:
            raise ConfigError(
                f"{self.target} trains the network first: give the folder of its run, which holds the trained weights, "
                "or --weights FILE"
            )
        if config.data is None:
            raise ConfigError("sensitivity is measured on training samples: give --data, as builtin:fashion-mnist")
        return dataclasses.replace(
            config,
            budget=type(config.budget)(macs="100%"),
            method=MethodConfig(name=self.criterion),
            train=None,
            recover=type(config.recover)(kind="none"),
            compensate="least-squares",
            rounds=1,
            also=(),
            latency=dataclasses.replace(config.latency, repeats=0, table=None),
        )

    def _overrides(self) -> dict[str, Any]:
        flags = {
            "model.weights": self.weights,
            "data.spec": self.data,
            "objective.kind": self.objective,
            "seed": self.seed,
            "device": self.device,
            "constraints.only": list(self.only) or None,
        }
        return {k: v for k, v in flags.items() if v is not None} | assignments(self.set, "--set")

    def _show(self, curves: Sequence[Curve], facts: dict[str, Any], told: Sequence[str]) -> None:
        """Print the table, and write the figures and the page."""
        from metaprune.report.curves import curves_page
        from metaprune.report.text import print_whole

        table, page = curves_page(curves, self.shares, facts, self.out.with_suffix(".html"), told)
        write_json(self.out, {**facts, "curves": [dataclasses.asdict(curve) for curve in curves]})
        out = console()
        print_whole(table, out)
        out.print(f"{self.out}\npage: {page}", soft_wrap=True)
