"""`metaprune load FOLDER`: try to load a saved network, or look at what the folder holds without building it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from metaprune.runs.verb_tools import console


@dataclass(frozen=True)
class Load:
    """Load a saved network and say what it is; with --inspect, only read what the folder says of itself."""

    folder: tyro.conf.Positional[Path]
    """Folder of a run, or of result.save."""
    inspect: bool = False
    """Build nothing: print form, spec, tensors, bytes, operators and whether the digests agree."""
    form: Literal["auto", "module", "graph"] = "auto"
    """graph: load a module form without its class."""

    def run(self) -> int:
        out = console()
        if self.inspect:
            from metaprune.export.inspect import archive_facts

            for name, value in archive_facts(self.folder).items():
                out.print(f"{name:<11}{value}", soft_wrap=True)
            return 0
        from metaprune.export.archive import load

        model = load(self.folder, form=self.form)
        count = sum(p.numel() for p in model.parameters())
        out.print(f"{type(model).__name__}: {count:,} parameters, loaded and intact", soft_wrap=True)
        return 0
