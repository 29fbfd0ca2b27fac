"""`metaprune report RUN ...`: the table of a finished run and its page anew; of several runs, a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from metaprune.core.errors import ConfigError, DataMissingError
from metaprune.core.read import understood
from metaprune.runs.verb_tools import console, show_result


@dataclass(frozen=True)
class Report:
    """Print the before/after table of a finished run and write its report.html again; compare several runs."""

    run_folders: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of finished runs."""
    out: Path = Path("comparison.html")
    """Page of a comparison; CSV and JSON go beside it."""
    self_contained: bool = False
    """Put what draws the figures (4.5 MB) into the page of a run, to send it by itself."""

    def run(self) -> int:
        if not self.run_folders:
            raise ConfigError("report is of a run: give its folder, or several to compare them")
        if len(self.run_folders) > 1:
            return self._compare()
        from metaprune.report import write_report
        from metaprune.runs.sections import sections_of

        folder = self.run_folders[0]
        record = _record(folder)
        with understood(str(folder / "record.json"), "run its command again"):
            page = folder / "report.html"
            write_report(record, page, sections_of(record), self_contained=self.self_contained)
            show_result(record, page)
        return 0

    def _compare(self) -> int:
        """Print the table of several runs, and write their page."""
        if self.out.suffix != ".html":
            raise ConfigError(f"--out {self.out} is no page: give a name such as comparison.html")
        from metaprune.report.comparison import Comparison
        from metaprune.report.comparison_rows import labels_of, run_row
        from metaprune.report.text import print_whole

        records = [_record(folder) for folder in self.run_folders]
        with understood("a record of these runs", "run its command again"):
            named = zip(records, labels_of(records), self.run_folders, strict=True)
            comparison = Comparison([run_row(record, label, str(at)) for record, label, at in named], records)
            comparison.write(self.out)
        out = console()
        print_whole(comparison.table(), out)
        out.print(f"page: {self.out}", soft_wrap=True)
        return 0


def _record(folder: Path) -> Mapping[str, Any]:
    from metaprune.runs.schema import read_record

    path = folder / "record.json"
    if not path.is_file():
        raise DataMissingError(
            f"{folder} holds no finished run (no record.json); "
            + (
                "it holds a fit: what `metaprune fit` named as the next step makes networks with it"
                if (folder / "artifact.json").is_file()
                else "start its command again to go on"
            )
        )
    return read_record(path)
