"""Pages of figures and tables: one HTML file, no network, no other file, all user text escaped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs, get_plotlyjs_version

from metaprune._version import __version__
from metaprune.core.files import write_text
from metaprune.report.section import SectionFigure

_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class PageTable:
    """A table of text. texts: how many of the first columns are no numbers."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: int = 1


def write_page(
    path: str | Path,
    headline: str,
    *,
    facts: Sequence[tuple[str, str]] = (),
    warnings: Sequence[str] = (),
    figures: Sequence[SectionFigure] = (),
    tables: Sequence[PageTable] = (),
) -> Path:
    """Write a page of figures, then tables, to `path`, whole or not at all, and return it. Missing folders are made.

    What draws the figures goes beside it, once in a folder.

    Raises:
        OSError: the file cannot be written.
    """
    path = Path(path)
    drawings = [drawn(f.key, f.heading, f.figure, f.note) for f in figures]
    text = rendered(
        "page.html.jinja",
        has_figures=bool(drawings),
        plotly_file=SCRIPT,
        title=headline,
        headline=headline,
        facts=facts,
        warnings=warnings,
        figures=drawings,
        tables=tables,
        version=__version__,
    )
    return write_html(path, text)


SCRIPT = f"plotly-{get_plotlyjs_version()}.min.js"
"""What draws figures, where it lies beside their page."""


def write_html(page: Path, text: str) -> Path:
    """Write a page whole or not at all, and beside it, once in a folder, the script that it asks for."""
    if f'src="{SCRIPT}"' in text and not page.with_name(SCRIPT).exists():
        write_text(page.with_name(SCRIPT), get_plotlyjs())
    write_text(page, text)
    return page


def rendered(template: str, *, has_figures: bool, plotly_file: str = "", **parts: Any) -> str:
    """Fill in a template that extends the frame of all pages.

    plotly_file: the script beside the page that draws its figures; without, it is in the page.
    """
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    css = Markup((_HERE / "report.css").read_text(encoding="utf-8"))
    plotly_file = plotly_file if has_figures else ""
    plotly = Markup(get_plotlyjs()) if has_figures and not plotly_file else ""
    return environment.get_template(template).render(css=css, plotly=plotly, plotly_file=plotly_file, **parts)


def drawn(key: str, caption: str, figure: Any, note: str = "") -> dict[str, Any]:
    """Make what a template shows of a figure."""
    height = figure.layout["height"]
    return {"key": key, "caption": caption, "note": note, "height": height, "json": _figure_json(figure)}


def _figure_json(figure: Any) -> Markup:
    """The figure as JSON that is safe inside a script element: no `<`, so nothing in it can end the element."""
    return Markup(figure.to_json().replace("<", "\\u003c"))
