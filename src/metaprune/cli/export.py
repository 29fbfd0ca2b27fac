"""`metaprune export RUN --format onnx`: the pruned network for other runtimes, checked by running it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from metaprune.core.errors import NotAvailableError
from metaprune.runs.verb_tools import console


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

    def run(self) -> int:
        from metaprune.export.archive import example_inputs, load
        from metaprune.export.exporters import export_model

        args, kwargs = example_inputs(self.run_folder)
        path = self.out or self.run_folder / f"model.{self.format}"
        try:
            model = load(self.run_folder, form=self.form)
        except NotAvailableError as error:
            raise NotAvailableError(f"{error}. On the command line: --form graph") from error
        report = export_model(model, args, kwargs, path, format=self.format)
        console().print(
            f"{report.path}: {report.bytes:,} bytes, differs from the network by {report.error:.1e} (relative)",
            soft_wrap=True,
        )
        return 0
