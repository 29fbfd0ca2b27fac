"""The page: one file that needs nothing else, in which no name is markup, and that is written whole or not at all."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from report_pages import EVIL, Page
from report_records import full, minimal
from rich.console import Console

from metaprune.report.html import render_report, write_report
from metaprune.report.plots import MANY_GROUPS, figures
from metaprune.report.text import groups_table, print_summary, summary_table


def test_the_page_needs_no_other_file():
    page = Page(render_report(full()))
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "img", "object", "embed", "base")
        assert not {"src", "href", "srcset", "action"} & set(attributes), (tag, attributes)
    policy = next(a["content"] for t, a in page.elements if t == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'")
    assert sum("plotly.js v" in script for script in page.scripts) == 1


def test_the_page_says_what_the_record_says():
    text = Page(render_report(full())).text
    for part in (
        "ResNet-20 on Fashion-MNIST: 49.8% of MACs, accuracy 91.2% → 90.8% (test)",
        "40.55 M",
        "2.01x fewer",
        "met",
        "layer1.0.conv1",
        "spatial dimension",
        "1 operator without a rule",
        "fft_rfft",
        "metaprune prune --budget macs=50%",
        "mean: depends on the width",
    ):
        assert part in text, part


def test_names_and_reasons_are_escaped():
    record = full()
    for key in ("model", "data", "method", "command", "seed", "created", "metaprune"):
        record[key] = EVIL
    record["config"] = {EVIL: EVIL}
    record["environment"] = {EVIL: EVIL}
    record["budget"] = {EVIL: EVIL}
    record["space"] = {
        "digest": EVIL,
        "groups": [{"name": EVIL, "before": 4, "after": 2, "members": [EVIL]}],
        "locked": [{"parameter": EVIL, "dim": 0, "size": 1, "locked": 1, "reason": f"op in {EVIL} ({EVIL})"}],
        "uncovered": [{"op": EVIL, "node": EVIL, "module": EVIL}],
        "notes": [EVIL],
    }
    record["history"][EVIL] = record["history"].pop("recover")
    record["seconds"] = {EVIL: 1.0}
    record["quality"]["split"] = EVIL
    record["proof"] = {"form": EVIL, "why": EVIL, "error": 0.0}
    expected = len(Page(render_report(full())).scripts)
    page = Page(render_report(record))
    assert len(page.scripts) == expected
    assert not any(script.startswith("alert") for script in page.scripts)
    assert page.text.count(EVIL) > 15  # shown as the text it is


@pytest.mark.parametrize("record", [minimal(), {}, dict.fromkeys(full())], ids=["minimal", "empty", "none"])
def test_records_with_parts_missing(record):
    page = Page(render_report(record))
    assert any(tag == "h1" for tag, _ in page.elements)
    assert bool(figures(record)) == any("plotly.js v" in script for script in page.scripts)


def test_figure_data_is_json():
    page = Page(render_report(full()))
    drawn = [script for script in page.scripts if script.startswith("{")]
    assert len(drawn) == len(figures(full())) == 5
    assert all({"data", "layout"} <= set(json.loads(script)) for script in drawn)


@pytest.mark.parametrize("count", [1, MANY_GROUPS, 150])
def test_any_number_of_groups_is_drawn(count):
    record = minimal()
    name = "a.very.long.path.of.modules.that.differs.only.in.its.middle{}.and.ends.alike"
    groups = [{"name": name.format(i), "before": 64, "after": 32, "members": []} for i in range(count)]
    record["space"]["groups"] = groups
    figure = next(f for key, _, f in figures(record) if key == "widths")
    bars = next(bar for bar in figure.data if bar.name == "after")
    places = bars.y if bars.orientation == "h" else bars.x
    assert len(set(places)) == count  # equal names would share one bar
    assert figure.layout.height < 1200


def test_the_page_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "new" / "report.html"
    assert write_report(full(), path) == path
    before = path.read_text(encoding="utf-8")
    assert sorted(p.suffix for p in path.parent.iterdir()) == [".html", ".js"]

    whole = Path.write_text

    def half(self: Path, text: str, **options):
        whole(self, text[:1000], **options)
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError, match="disk full"):
        write_report(minimal(), path)
    assert path.read_text(encoding="utf-8") == before
    assert sorted(p.suffix for p in path.parent.iterdir()) == [".html", ".js"]


def test_terminal_tables_show_names_as_they_are():
    record = full()
    record["space"]["groups"][0]["name"] = "[red]conv[/nope]"
    out = Console(file=io.StringIO(), width=120, force_terminal=False)
    print_summary(record, out)
    out.print(groups_table(record))
    text = out.file.getvalue()  # type: ignore[attr-defined]
    assert "[red]conv[/nope]" in text and "40.55 M" in text and "reached 20.20 M, met" in text
    assert summary_table({}).row_count == 0
    print_summary({}, out)
