"""Documents as tests read them: their prose, and their code."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

from metaprune.cli.main import main

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(\w*)(?: title=\"[^\"]+\")?\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_TITLED = re.compile(r"^```(\w*)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.DOTALL | re.MULTILINE)
GENERATED = re.compile(r"<!-- table:.*?<!-- end:[\w-]+ -->", re.DOTALL)


def code_of(page: str, language: str = "python") -> list[str]:
    """The code blocks of a page (a path below the repository's root), in order."""
    return [code for found, code in FENCE.findall((ROOT / page).read_text()) if found == language]


def section_code(page: str, heading: str, language: str = "python") -> list[str]:
    """The code blocks below one heading of a page, up to the next heading of any level."""
    text = FENCE.sub(
        lambda block: block[0].replace("\n#", "\n\0"), (ROOT / page).read_text()
    )  # comments are no headings
    _, found, rest = text.partition(f"# {heading}\n")
    assert found, f"{page} has no heading {heading!r}"
    part = re.split(r"^#+ ", rest, maxsplit=1, flags=re.MULTILINE)[0].replace("\n\0", "\n#")
    return [code for name, code in FENCE.findall(part) if name == language]


def run_blocks(blocks: list[str], page: str, namespace: dict[str, Any] | None = None) -> dict[str, Any]:
    """Run code blocks one after another in one namespace, as a reader would; returns it."""
    space = {"__name__": "page"} if namespace is None else namespace
    for number, code in enumerate(blocks):
        exec(compile(code, f"{page}, block {number}", "exec"), space)
    return space


def run_page(page: str) -> dict[str, Any]:
    """Run a page from top to bottom in the current folder; returns the namespace of its Python.

    Python is executed, a block with a title is written to that file, and lines of bash are commands of metaprune.
    `console` and `text` are shown only.
    """
    space: dict[str, Any] = {"__name__": "page"}
    for number, (language, title, code) in enumerate(_TITLED.findall((ROOT / page).read_text())):
        if title:
            Path(title).write_text(code)
        elif language == "python":
            exec(compile(code, f"{page}, block {number}", "exec"), space)
        elif language == "bash":
            for line in code.splitlines():
                program, *arguments = shlex.split(line)
                assert program == "metaprune" and main(arguments) == 0, line
    return space


def prose_of(path: Path) -> str:
    """A page without code blocks and generated tables."""
    return FENCE.sub("", GENERATED.sub("", path.read_text()))
