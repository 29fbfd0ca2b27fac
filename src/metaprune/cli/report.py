"""`metaprune report RUN`: the table of a finished run, and its page anew."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import tyro

from metaprune.cli.common import console
from metaprune.core.errors import DataMissingError


@dataclass(frozen=True)
class Report:
    """Print the before/after table of a finished run and write its report.html again."""

    run_folder: tyro.conf.Positional[Path]
    """Folder of the run."""

    def run(self) -> int:
        from metaprune.report import print_summary, write_report

        path = self.run_folder / "record.json"
        if not path.is_file():
            raise DataMissingError(
                f"{self.run_folder} holds no finished run (no record.json); "
                + (
                    "it holds a fit: `metaprune search` or `prune` makes networks with it"
                    if (self.run_folder / "artifact.json").is_file()
                    else "start its command again to go on"
                )
            )
        record = json.loads(path.read_text())
        page = write_report(record, self.run_folder / "report.html")
        out = console()
        print_summary(record, out)
        out.print(f"report: {page}", highlight=False, soft_wrap=True)
        return 0
