"""`metaprune export RUN --format onnx`: the pruned network for other runtimes, checked by running it."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from metaprune.cli.target import target_config
from metaprune.core.errors import ConfigError, NotAvailableError
from metaprune.core.read import read_json
from metaprune.runs.trust import require_trusted
from metaprune.runs.verb_tools import console

if TYPE_CHECKING:
    from torch import nn

    from metaprune.export.exporters import ExportReport


@dataclass(frozen=True)
class Export:
    """Export the pruned network of a run and compare the exported file's outputs with the network's."""

    run_folder: tyro.conf.Positional[Path]
    """Folder of the run (or of result.save)."""
    format: Literal["pt2", "onnx"] = "onnx"
    """pt2: torch.export; onnx: ONNX, run with ONNX Runtime."""
    out: Path | None = None
    """File to write; by default model.FORMAT in the run's folder."""
    form: Literal["auto", "module", "graph"] = "auto"
    """graph: load a module form without its class."""
    time: bool = False
    """Export the dense network of the run, too, and time both in turns, in the runtime of the format."""
    batch: int | None = None
    """Samples per forward pass that is timed; by default those of the example, mostly 2."""
    repeats: int = 20
    """A time is the median of this many runs."""
    trust: bool = False
    """Run the code that the config of another user's run names."""

    def run(self) -> int:
        from metaprune.export.archive import load
        from metaprune.export.exporters import export_model
        from metaprune.export.inputs import example_inputs

        if self.batch is not None and not self.time:
            raise ConfigError(f"--batch {self.batch} is of what is timed: give --time, too")
        config = self.run_folder / "config.json"
        if config.is_file():
            require_trusted(self.run_folder, read_json(config, remedy="run its command again"), trust=self.trust)
        args, kwargs = example_inputs(self.run_folder)
        path = self.out or self.run_folder / f"model.{self.format}"
        dense = self._dense() if self.time else None  # before the work: a folder may have none
        try:
            model = load(self.run_folder, form=self.form)
        except NotAvailableError as error:
            raise NotAvailableError(f"{error}. On the command line: --form graph") from error
        report = export_model(model, args, kwargs, path, format=self.format)
        out = console()
        out.print(
            f"{report.path}: {report.bytes:,} bytes, differs from the network by {report.error:.1e} (relative)",
            soft_wrap=True,
        )
        if dense is not None:
            out.print(self._timed(dense, report, args, kwargs), soft_wrap=True)
        return 0

    def _dense(self) -> nn.Module:
        """The network that the run pruned. Raises ConfigError where the folder does not hold it."""
        from metaprune.export.archive import read_archive
        from metaprune.models import create

        if not (self.run_folder / "config.json").is_file():
            raise ConfigError(
                f"{self.run_folder} is of result.save and holds no dense network to time: leave --time out, or give "
                "both to metaprune.export.timed.time_exports in Python"
            )
        model = target_config(str(self.run_folder), {}, trust=self.trust).model
        options = {**model.options, **read_archive(self.run_folder)["options"]}  # classes and channels of the data
        return create(model.spec, weights=model.weights, **options)

    def _timed(self, dense: nn.Module, pruned: ExportReport, args: tuple, kwargs: dict[str, Any]) -> str:
        from metaprune.export.exporters import export_model
        from metaprune.export.timed import RUNTIMES, time_exports

        with tempfile.TemporaryDirectory() as folder:
            whole = export_model(dense, args, kwargs, Path(folder) / f"dense.{self.format}", format=self.format)
            before, after = time_exports([whole, pruned], args, kwargs, batch=self.batch, repeats=self.repeats)
        threads = f"{after['threads']} thread{'s' if after['threads'] != 1 else ''}"
        return (
            f"{RUNTIMES[self.format]}: dense {before['median']:.3f} ms, pruned {after['median']:.3f} ms, "
            f"{before['median'] / after['median']:.2f} times as fast (batch {after['batch']}, {threads}, "
            f"median of {after['repeats']} in turns)"
        )
