"""A method's part of the report: a section of plain text, facts and figures. No torch, no plotly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from metaprune.report.units import duration, finite, quantity

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True, slots=True)
class FactRow:
    """One line of a section's table. detail: what the value means; may be empty."""

    name: str
    value: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class SectionFigure:
    """A drawing with its heading and a note on what it shows. half: two of them share a row."""

    key: str
    heading: str
    note: str
    figure: go.Figure
    half: bool = False


@dataclass(frozen=True, slots=True)
class Section:
    """What a method tells of a run, beside what all methods do.

    id: anchor in the page. text: a sentence without its full stop. closing: a line for the terminal. Each may be empty.
    """

    id: str
    title: str
    text: str = ""
    facts: Sequence[FactRow] = ()
    figures: Sequence[SectionFigure] = ()
    closing: str = ""


def effort_rows(what: str, part: Mapping[str, Any], detail: str) -> list[FactRow]:
    """Facts on the `macs` and `seconds` that a part of a record holds."""
    macs, seconds = finite(part.get("macs")), finite(part.get("seconds"))
    rows = [FactRow(f"{what}: MACs", quantity(macs), detail)] if macs is not None else []
    return rows + ([FactRow(f"{what}: wall time", duration(seconds))] if seconds is not None else [])


def method_part(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Read what a method left under `name` in a record; empty where it left nothing."""
    return mapping_or_empty(mapping_or_empty(record.get("method_details")).get(name))


def mapping_or_empty(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def list_or_empty(value: Any) -> Sequence[Any]:
    return value if isinstance(value, Sequence) and not isinstance(value, str) else ()
