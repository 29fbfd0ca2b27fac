"""`metaprune VERB ...`: one file per verb; torch is imported when a verb runs, not for `--help`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Annotated

import tyro

from metaprune.cli.data import DataVerb
from metaprune.cli.export import Export
from metaprune.cli.inspect import Inspect
from metaprune.cli.models import Models
from metaprune.cli.prune import Prune
from metaprune.cli.report import Report
from metaprune.errors import MetapruneError

Verb = (
    Annotated[Inspect, tyro.conf.subcommand("inspect")]
    | Annotated[Prune, tyro.conf.subcommand("prune")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Models, tyro.conf.subcommand("models")]
    | Annotated[DataVerb, tyro.conf.subcommand("data")]
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb. Exit code 0, 2 for an error that names its cause, 130 for Ctrl-C."""
    verb = tyro.cli(Verb, prog="metaprune", args=arguments, description="Smaller PyTorch networks under a hard budget.")  # type: ignore[arg-type]
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("torch", "accelerate", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    try:
        return verb.run()
    except MetapruneError as error:
        sys.stderr.write(f"metaprune: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("metaprune: stopped; the same command continues a run\n")
        return 130


if __name__ == "__main__":
    sys.exit(main())
