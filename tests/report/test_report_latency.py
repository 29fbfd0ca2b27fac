"""The report's section on a latency table."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
from report_pages import Page, rendered
from report_records import full, minimal, searched

from metaprune.report.latency_rows import latency_facts, latency_fit
from metaprune.report.plots import latency_figure


def test_latency_table():
    fit = latency_fit(searched())
    assert fit is not None and fit.pairs == ((10, 11), (20, 19), (30, 30))
    figure = latency_figure(searched())
    assert figure.layout.title.text == "median error 5.3%, rank correlation 0.987"
    diagonal, points = figure.data
    assert tuple(diagonal.x) == tuple(diagonal.y) == (9.0, 31.0)
    assert (list(points.x), list(points.y)) == ([10, 20, 30], [11, 19, 30])
    record = searched()
    record["latency_table"]["error"] |= {"pairs": [[5.0, 5.0]], "spearman": math.nan, "median_relative_error": None}
    figure = latency_figure(record)
    assert figure.layout.title.text == "" and figure.layout.xaxis.range[0] < 5 < figure.layout.xaxis.range[1]


def test_facts():
    facts = {row.name: row for row in latency_facts(searched())}
    assert {name: row.value for name, row in facts.items()} == {
        "Latency table": "onnxruntime",
        "Error of the table": "5.3%",
        "Predicted latency": "7.25 ms",
    }
    assert facts["Latency table"].detail == "batch 64, Some CPU"


def test_a_latency_table_alone():
    record = full() | {"latency_table": searched()["latency_table"], "method_details": {}}
    page = Page(rendered(record))
    assert "Latency table" in page.text and "Search" not in page.text and "5.3%" in page.text
    assert any(attributes.get("id") == "latency" for _, attributes in page.elements)
    record["budget"] = record["cost"] = record["quality"] = record["space"] = record["history"] = None
    assert any("plotly.js v" in script for script in Page(rendered(record)).scripts)


@pytest.mark.parametrize("record", [{}, full(), minimal(), full() | {"latency_table": {}}])
def test_without_a_table_there_is_no_section(record):
    assert latency_fit(record) is None and latency_facts(record) == []
    assert not any(attributes.get("id") == "latency" for _, attributes in Page(rendered(record)).elements)


def test_latency_rows_import_neither_torch_nor_plotly():
    code = "import sys, metaprune.report.latency_rows; sys.exit(bool({'torch', 'plotly', 'jinja2'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
