"""Notebooks from tutorials: `python docs/site/notebooks.py` writes examples/notebooks, and a test compares.

A tutorial's code runs in the tests, so that its notebook has been run too.
"""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FOLDER = "examples/notebooks"
TUTORIALS = ("first-prune", "compare", "learned-method")
_BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```\n?', re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\((?!http)([^)#\s]+)(#[^)]*)?\)")


def notebook(name: str) -> str:
    """Write one tutorial as JSON of nbformat 4.5: prose as Markdown, bash as `!` lines, files by `%%writefile`."""
    text, cells, at = (ROOT / f"docs/tutorials/{name}.md").read_text(), [], 0
    for block in _BLOCK.finditer(text):
        language, title, code = block.groups()
        if language not in ("python", "bash") and title is None:
            continue  # only shown: it stays in the prose
        cells.append(_cell("markdown", _links(text[at : block.start()])))
        if title is not None:
            code = f"%%writefile {title}\n{code}"
        elif language == "bash":
            code = re.sub(r"^", "!", code.strip(), flags=re.MULTILINE)
        cells.append(_cell("code", code))
        at = block.end()
    cells.append(_cell("markdown", _links(text[at:])))
    cells = [{"id": f"cell-{i}", **cell} for i, cell in enumerate(c for c in cells if c["source"])]
    about = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return json.dumps({"cells": cells, "metadata": about, "nbformat": 4, "nbformat_minor": 5}, indent=1) + "\n"


def _cell(kind: str, text: str) -> dict[str, Any]:
    extra = {"execution_count": None, "outputs": []} if kind == "code" else {}
    return {"cell_type": kind, "metadata": {}, **extra, "source": text.strip("\n").splitlines(keepends=True)}


def _links(prose: str) -> str:
    """Links of a page in docs/tutorials, as seen from the notebooks' folder."""

    def moved(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join("docs/tutorials", match[1]))
        return f"]({posixpath.relpath(path, FOLDER)}{match[2] or ''})"

    return _LINK.sub(moved, prose)


def main() -> None:
    """Write all notebooks."""
    for name in TUTORIALS:
        path = ROOT / FOLDER / f"{name}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(notebook(name))


if __name__ == "__main__":
    main()
