"""The report's section on measured widths."""

import math

import pytest
import torch
from report_records import full, minimal

import metaprune as mp
from metaprune.methods.criteria.report import curve_rows, section
from metaprune.report import write_report
from metaprune.runs.sections import sections_of
from metaprune.testing.method_suite import small_data, small_network

EXAMPLE = torch.zeros(2, 1, 28, 28)


@pytest.fixture(scope="module")
def record():
    return mp.prune(small_network("cnn"), EXAMPLE, budget="macs=50%", data=small_data(), progress=False).record


def test_every_measured_group_has_a_line_and_a_kept_share(record, tmp_path):
    rows, measured = curve_rows(record), record["method_details"]["sensitivity"]["curves"]
    assert [row.losses for row in rows] == [
        c["losses"] if isinstance(c["losses"], tuple) else tuple(c["losses"]) for c in measured
    ]
    kept = {g["name"]: g["after"] / g["before"] for g in record["space"]["groups"]}
    assert [row.kept for row in rows] == [kept[c["groups"][0]] for c in measured]
    prices = record["method_details"]["sensitivity"]["prices"]
    assert 0 < prices["relaxed"]["macs"] < prices["loss"]
    assert section(record).facts[-1].name == "5% more MACs"
    (made,) = [s for s in sections_of(record) if s.id == "sensitivity"]
    assert len(made.figures[0].figure.data) == len(rows)
    write_report(record, tmp_path / "report.html", sections_of(record))
    assert "What narrow groups cost" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("bad", [None, 3, [None], [{"groups": ["a"], "shares": [0.5], "losses": [math.nan]}], [{}]])
def test_records_without_curves_or_with_odd_ones_have_no_section(bad):
    for record in (minimal(), full()):
        assert section(record) is None
        record["method_details"] = {"sensitivity": {"curves": bad}}
        assert section(record) is None


def test_names_of_groups_are_escaped(record):
    record = {
        **record,
        "method_details": {"sensitivity": {"curves": [{"groups": ["<b>x</b>"], "shares": [0.5], "losses": [0.1]}]}},
    }
    assert "<b>x" not in section(record).figures[0].figure.data[0].name
