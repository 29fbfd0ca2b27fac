"""What verbs share that make many runs side by side in one folder: flags, workers, and what is printed."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import tyro

from metaprune.core.errors import ConfigError
from metaprune.runs.verb_tools import console

if TYPE_CHECKING:
    from metaprune.report.comparison import Comparison
    from metaprune.runs.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class Cells(ABC):
    """Flags of a verb that makes many runs. verb: its name."""

    verb: ClassVar[str]

    budgets: str
    """Bounds, as 57%,26%,7.2% of what the recipe bounds, or macs=50%,params=30%; each is a budget of its own."""
    seeds: int = 3
    """How many seeds, from the recipe's on."""
    workers: int = 1
    """Processes on this machine that take runs."""
    set: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="KEY=VALUE")] = ()
    """Any key of the recipe, as recover.train.epochs=3; may be repeated."""
    run_folder: Annotated[Path | None, tyro.conf.arg(name="run")] = None
    """Folder of the runs; by default runs/VERB-NAME-DIGEST."""
    trust: bool = False
    """Run the code that the config of another user's run names."""
    quiet: bool = False
    """No progress bars."""

    @abstractmethod
    def given(self) -> list[str]:
        """List what a worker is started with beside the flags of all."""

    def require_workers(self) -> None:
        """Raises ConfigError for no worker at all."""
        if self.workers < 1:
            raise ConfigError(f"--workers {self.workers}: give 1 or more")

    def folder_of(self, name: str, config: RunConfig) -> Path:
        return self.run_folder or Path("runs") / f"{self.verb}-{name}-{config.digest()[:8]}"

    @contextmanager
    def started(self, folder: Path) -> Iterator[None]:
        """Start the other workers, which run the same verb in the same folder."""
        from metaprune.runs.workers import sigterm_exits, workers

        command = [sys.executable, "-m", "metaprune.cli.main", self.verb, *self.given(), "--budgets", self.budgets]
        command += ["--seeds", str(self.seeds), "--run", str(folder), "--quiet"]
        for item in self.set:
            command += ["--set", item]
        with sigterm_exits(), workers([*command, "--trust"] if self.trust else command, self.workers - 1):
            yield

    def show(self, result: Comparison, folder: Path, answers: Sequence[str] = ()) -> None:
        """Print the table, what follows from it, and where the page is."""
        from metaprune.report.text import print_whole
        from metaprune.runs.compare import PAGE

        out = console()
        print_whole(result.table(), out)
        for line in (*answers, f"{folder / PAGE}, and .csv and .json beside it"):
            out.print(line, soft_wrap=True)


def parts_of(text: str) -> list[str]:
    """Split a list of the command line at its commas."""
    return [part.strip() for part in text.split(",") if part.strip()]
