"""`metaprune report RUN`: the table of a finished run, and its page anew."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from metaprune.core.errors import DataMissingError
from metaprune.core.read import understood
from metaprune.runs.verb_tools import show_result


@dataclass(frozen=True)
class Report:
    """Print the before/after table of a finished run and write its report.html again."""

    run_folder: tyro.conf.Positional[Path]
    """Folder of the run."""

    def run(self) -> int:
        from metaprune.report import write_report
        from metaprune.runs.schema import read_record
        from metaprune.runs.sections import sections_of

        path = self.run_folder / "record.json"
        if not path.is_file():
            raise DataMissingError(
                f"{self.run_folder} holds no finished run (no record.json); "
                + (
                    "it holds a fit: what `metaprune fit` named as the next step makes networks with it"
                    if (self.run_folder / "artifact.json").is_file()
                    else "start its command again to go on"
                )
            )
        record = read_record(path)
        with understood(str(path), "run its command again"):
            show_result(record, write_report(record, self.run_folder / "report.html", sections_of(record)))
        return 0
