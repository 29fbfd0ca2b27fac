"""`metaprune VERB ...`: a file per verb, and methods' own. Torch is imported when a verb runs, not for `--help`."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any, Union

import tyro
from safetensors import SafetensorError

from metaprune.cli.compare import Compare
from metaprune.cli.export import Export
from metaprune.cli.fit import Fit
from metaprune.cli.headroom import Headroom
from metaprune.cli.inspect import Inspect
from metaprune.cli.latency import Latency
from metaprune.cli.load import Load
from metaprune.cli.methods import Methods
from metaprune.cli.models import Models
from metaprune.cli.prune import Prune
from metaprune.cli.report import Report
from metaprune.cli.sensitivity import Sensitivity
from metaprune.core.errors import ConfigError, MetapruneError, one_line_error
from metaprune.core.plugins import Registry
from metaprune.protocol.registry import METHODS, method_names, method_spec

_FIRST: dict[str, type] = {"inspect": Inspect, "prune": Prune, "fit": Fit}
_LAST: dict[str, type] = {
    "compare": Compare,
    "report": Report,
    "sensitivity": Sensitivity,
    "headroom": Headroom,
    "latency": Latency,
    "export": Export,
    "load": Load,
    "models": Models,
    "methods": Methods,
}

VERBS = Registry("verb", "metaprune.verbs", {"data": "metaprune_datasets.cli:DataVerb"})
"""Verbs of packages that are no method's."""


def _verbs() -> dict[str, type]:
    """All verbs by name. An installed package that does not load, or whose verb's name is taken, is warned of."""
    all_verbs = dict(_FIRST)
    for name in method_names():
        try:
            verbs = method_spec(name).load_verbs()
            if taken := [verb for verb in verbs if verb in all_verbs or verb in _LAST]:
                raise ConfigError(f"its verb {taken[0]!r} is taken")
        except Exception as error:  # a broken package must not take the command line with it
            if METHODS.is_builtin(name):
                raise
            reason = error if isinstance(error, ConfigError) else one_line_error(error)
            sys.stderr.write(f"metaprune: warning: the verbs of method {name!r} are left out: {reason}\n")
            continue
        all_verbs.update(verbs)
    for name in VERBS.names():
        try:
            all_verbs[name] = VERBS.get(name)
        except ConfigError as error:
            sys.stderr.write(f"metaprune: warning: {error}\n")
    return {**all_verbs, **_LAST}


def _parsed(arguments: Sequence[str] | None) -> Any:
    choices = tuple(Annotated[kind, tyro.conf.subcommand(name)] for name, kind in _verbs().items())
    return tyro.cli(
        Union[choices],  # type: ignore[arg-type]  # noqa: UP007
        prog="metaprune",
        args=arguments,
        description="Smaller PyTorch networks under a hard budget.",
        config=(tyro.conf.DisallowNone,),
    )


def _say(message: Warning | str, *_: Any, **__: Any) -> None:
    logging.getLogger("metaprune").warning("warning: %s", message)


def _require_one_process(verb: Any) -> None:
    """Raises ConfigError under a launcher (`torchrun`, `accelerate launch`) for verbs that do not share their work."""
    count = os.environ.get("WORLD_SIZE", "1")
    if count not in ("", "1") and not isinstance(verb, Fit):
        raise ConfigError(
            f"launched as {count} processes, which would all write the same files: only `metaprune fit` shares its "
            "work. Start this verb once (search and compare have --workers)"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb. Exit code 0, 2 for an error that names its cause, 130 for Ctrl-C."""
    verb = _parsed(arguments)
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
