"""How sure a quality is, whether time follows the MACs, and what comes next."""

import re

import numpy as np
import pytest
from report_pages import Page
from report_records import full, minimal

from metaprune.cli.main import main
from metaprune.report.advice import next_steps, share_interval, speed_advice
from metaprune.report.html import render_report, write_report


@pytest.mark.parametrize(("right", "samples"), [(0.9, 50), (0.5, 200), (0.99, 1000)])
def test_the_interval_holds_the_true_share_in_95_of_100_draws(right, samples):
    draws = np.random.default_rng(0).binomial(samples, right, 4000) / samples
    inside = [low <= right <= high for low, high in (share_interval(float(d), samples) for d in draws)]
    assert 0.92 < np.mean(inside) < 0.98


def test_a_page_names_the_interval():
    record = full()
    samples = record["quality"]["dense"]["samples"]
    low, high = share_interval(record["quality"]["recovered"]["accuracy"], samples)
    assert f"after: {100 * low:.1f}% to {100 * high:.1f}% (95%)" in Page(render_report(record)).text


def timed(after_ms, widths):
    groups = [{"name": f"g{i}", "before": 64, "after": w, "members": []} for i, w in enumerate(widths)]
    return {
        "latency_ms": {"before": 10.0, "after": after_ms},
        "cost": {"before": {"macs": 100}, "after": {"macs": 50}},
        "space": {"groups": groups},
    }


def test_time_that_lags_behind_the_macs_gets_advice():
    assert speed_advice(timed(5.2, [31])) == "1.92 times as fast with 2.00 times fewer MACs"
    assert "1 of 2 narrowed groups are no multiple of 8 wide" in speed_advice(timed(9.0, [31, 32, 64]))
    assert "round_to" not in speed_advice(timed(9.0, [32])) and "larger batch" in speed_advice(timed(9.0, [32]))
    assert speed_advice({}) == speed_advice(minimal() | {"latency_ms": None}) == ""


def test_next_steps_name_the_folder_of_a_saved_network(tmp_path):
    assert next_steps(full(), "") == []
    page = write_report(full(), tmp_path / "report.html")
    assert "metaprune export" not in page.read_text()
    (tmp_path / "network.json").write_text("{}")
    text = Page(write_report(full(), page).read_text()).text
    assert f'model = metaprune.load("{tmp_path}")' in text and f"metaprune export {tmp_path} --format onnx" in text


def test_a_page_is_small_and_what_draws_it_lies_beside_it_once(tmp_path):
    page = write_report(full(), tmp_path / "report.html")
    (script,) = [p for p in tmp_path.iterdir() if p != page]
    assert page.stat().st_size < 1e6 and f'<script src="{script.name}"></script>' in page.read_text()
    assert "plotly.js v" in script.read_text()
    before = script.stat().st_mtime_ns
    write_report(full(), tmp_path / "again.html")
    assert script.stat().st_mtime_ns == before
    alone = write_report(full(), tmp_path / "alone.html", self_contained=True).read_text()
    assert not re.search(r"<script src", alone) and alone.count("plotly.js v") == 1


def test_what_is_missing_is_said(tmp_path, capsys):
    assert main(["report", str(tmp_path), "--self-contained"]) != 0
    assert "no finished run" in capsys.readouterr().err
