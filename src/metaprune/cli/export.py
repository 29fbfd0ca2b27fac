"""`metaprune export RUN --format onnx`: the pruned network for other runtimes, checked by running it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from metaprune.core.errors import NotAvailableError
from metaprune.core.read import read_json
from metaprune.runs.trust import require_trusted
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
    trust: bool = False
    """Run the code that the config of another user's run names."""

    def run(self) -> int:
        from metaprune.export.archive import load
        from metaprune.export.exporters import export_model
        from metaprune.export.inputs import example_inputs

        config = self.run_folder / "config.json"
        if config.is_file():
            require_trusted(self.run_folder, read_json(config, remedy="run its command again"), trust=self.trust)
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
