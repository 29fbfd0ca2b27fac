"""`metaprune models`: what specs there are."""

from __future__ import annotations

from dataclasses import dataclass

from metaprune.runs.verb_tools import console


@dataclass(frozen=True)
class Models:
    """List the model specs that ship with metaprune, and how to name others."""

    def run(self) -> int:
        from metaprune.models import MODEL_SCHEMES

        out = console()
        for scheme in MODEL_SCHEMES.names():
            source = MODEL_SCHEMES.get(scheme)
            if source.names is None:
                out.print(source.form)
            for name in () if source.names is None else source.names():
                out.print(f"{scheme}:{name}")
        return 0
