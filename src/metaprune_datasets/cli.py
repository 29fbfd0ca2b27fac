"""`metaprune data list | get NAME`: the built-in data sets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from metaprune.core.errors import ConfigError
from metaprune.runs.verb_tools import console


@dataclass(frozen=True)
class ListData:
    """List the built-in data sets, weights and texts, and whether they are on this machine."""

    def run(self) -> int:
        from metaprune_datasets.builtin import builtin, builtin_names
        from metaprune_datasets.cache import is_cached
        from metaprune_datasets.files import FILE_SETS, has_files

        out = console()
        rows = [(f"builtin:{name}", name, builtin(name).about, is_cached(name)) for name in builtin_names()]
        rows += [(entry.use, name, entry.about, has_files(name)) for name, entry in FILE_SETS.items()]
        for use, name, about, here in rows:
            state = "here" if here else f"metaprune data get {name}"
            out.print(f"{use:<27} {about}  [{state}]", soft_wrap=True)
        return 0


@dataclass(frozen=True)
class GetData:
    """Fetch built-in data sets, weights or texts into the cache folder, with their checksums."""

    names: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="NAME [NAME ...]")]
    """Names of sets, as fashion-mnist or smollm2-135m."""
    folder: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """Take them from this folder instead of their packages."""

    def run(self) -> int:
        from metaprune_datasets.builtin import get_builtin

        out = console()
        if not self.names:
            raise ConfigError("name at least one set: `metaprune data list` has them")
        for name in self.names:
            path = get_builtin(name, progress=lambda text: out.print(text), folder=self.folder)
            out.print(f"{name}: {path}", soft_wrap=True)
        return 0


@dataclass(frozen=True)
class DataVerb:
    """Built-in data sets."""

    command: tyro.conf.OmitSubcommandPrefixes[  # `get --from`, not `command:get --command.from`
        tyro.conf.OmitArgPrefixes[
            Annotated[ListData, tyro.conf.subcommand("list")] | Annotated[GetData, tyro.conf.subcommand("get")]
        ]
    ]

    def run(self) -> int:
        return self.command.run()
