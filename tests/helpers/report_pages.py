"""What the tests of report pages share: a parser of the page, and text that must not be run."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

from rich.console import Console

from metaprune.report.html import render_report
from metaprune.report.text import print_summary
from metaprune.runs.sections import sections_of

EVIL = "<script>alert('x')</script>"


def rendered(record: dict[str, Any]) -> str:
    """The page of a record, with what its method tells."""
    return render_report(record, sections_of(record))


def summarise(record: dict[str, Any], console: Console) -> None:
    """Print the summary of a record, with what its method tells."""
    print_summary(record, console, sections_of(record))


class Page(HTMLParser):
    """Elements of a page, the text outside scripts, and the text of each script."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.text = ""
        self.scripts: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text += data
