"""`metaprune models`: what specs there are."""

from __future__ import annotations

from dataclasses import dataclass

from metaprune.runs.verb_tools import console


@dataclass(frozen=True)
class Models:
    """List the model specs that ship with metaprune, and how to name others."""

    def run(self) -> int:
        from metaprune.models import zoo_names

        out = console()
        for name in zoo_names():
            out.print(f"zoo:{name}", highlight=False)
        out.print(
            "timm: or hf:NAME_OR_DIR, torchvision:NAME (packages of that name), python:module:function (your own)",
            highlight=False,
            soft_wrap=True,
        )
        return 0
