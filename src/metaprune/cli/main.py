"""`metaprune VERB ...`: one file per verb; torch is imported when a verb runs, not for `--help`."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import tyro
from safetensors import SafetensorError

from metaprune.cli.data import DataVerb
from metaprune.cli.export import Export
from metaprune.cli.fit import Fit
from metaprune.cli.inspect import Inspect
from metaprune.cli.latency import Latency
from metaprune.cli.models import Models
from metaprune.cli.prune import Prune
from metaprune.cli.report import Report
from metaprune.core.errors import ConfigError, MetapruneError
from metaprune.methods.metagraph.cli import Graph
from metaprune.methods.pruningnet.cli import Search
from metaprune.methods.stamp.cli import Adapt

Verb = (
    Annotated[Inspect, tyro.conf.subcommand("inspect")]
    | Annotated[Prune, tyro.conf.subcommand("prune")]
    | Annotated[Fit, tyro.conf.subcommand("fit")]
    | Annotated[Search, tyro.conf.subcommand("search")]
    | Annotated[Adapt, tyro.conf.subcommand("adapt")]
    | Annotated[Graph, tyro.conf.subcommand("graph")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Latency, tyro.conf.subcommand("latency")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Models, tyro.conf.subcommand("models")]
    | Annotated[DataVerb, tyro.conf.subcommand("data")]
)


def _say(message: Warning | str, *_: Any, **__: Any) -> None:
    logging.getLogger("metaprune").warning("warning: %s", message)


def _require_one_process(verb: Any) -> None:
    """Raises ConfigError under a launcher (`torchrun`, `accelerate launch`) for verbs that do not share their work."""
    count = os.environ.get("WORLD_SIZE", "1")
    if count not in ("", "1") and not isinstance(verb, Fit):
        raise ConfigError(
            f"launched as {count} processes, which would all write the same files: only `metaprune fit` shares its "
            "work. Start this verb once (search has --workers)"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb. Exit code 0, 2 for an error that names its cause, 130 for Ctrl-C."""
    verb = tyro.cli(
        Verb,  # type: ignore[arg-type]
        prog="metaprune",
        args=arguments,
        description="Smaller PyTorch networks under a hard budget.",
        config=(tyro.conf.DisallowNone,),
    )
    # oneDNN compiles a convolution for every pair of widths; its cache of 1024 would forget them between structures
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")
    logging.basicConfig(level=logging.ERROR, format="%(message)s", stream=sys.stderr)
    logging.getLogger("metaprune").setLevel(logging.INFO)
    try:
        with warnings.catch_warnings():  # one line each, in log.txt too, without the source line that Python adds
            warnings.simplefilter("default", UserWarning)
            warnings.showwarning = _say
            _require_one_process(verb)
            return verb.run()
    except MetapruneError as error:
        sys.stderr.write(f"metaprune: {error}\n")
        return 2
    except (OSError, SafetensorError) as error:
        sys.stderr.write(
            f"metaprune: {error}. Check the path, its rights and the space left; then run the command again\n"
        )
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("metaprune: stopped; the same command continues a run\n")
        return 130


if __name__ == "__main__":
    sys.exit(main())
