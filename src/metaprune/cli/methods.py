"""`metaprune methods`: what methods there are."""

from __future__ import annotations

from dataclasses import dataclass

from metaprune.core.errors import ConfigError
from metaprune.protocol.registry import method_names, method_spec
from metaprune.runs.verb_tools import console


@dataclass(frozen=True)
class Methods:
    """List the methods that ship with metaprune, and those of installed packages."""

    def run(self) -> int:
        out = console()
        for name in method_names():
            out.print(f"{name:<14}{_about(name)}", soft_wrap=True)
        out.print("python:module:Class names a method of your own")
        return 0


def _about(name: str) -> str:
    try:
        spec = method_spec(name)
        about, marks = spec.about(), {"learned": spec.learned, "needs data": spec.needs_data()}
    except ConfigError as error:
        return str(error)
    held = ", ".join(mark for mark, holds in marks.items() if holds)
    return f"{about} [{held}]" if held else about
