"""The report's section on the search: its rows, its figures, and pages of records with and without it."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
from typing import Any

import pytest
from report_pages import EVIL, Page, rendered, summarise
from report_records import full, minimal, searched
from rich.console import Console

from metaprune.methods.pruningnet import report_rows as rows
from metaprune.methods.pruningnet.report_plots import search_figures
from metaprune.report.plots import MANY_GROUPS, figures

KEYS = ["search-scores", "search-front", "search-kept"]


def found(record: dict[str, Any]) -> dict[str, Any]:
    return record["method_details"]["search"]


def drawn(record: dict[str, Any]) -> dict[str, Any]:
    return {f.key: f.figure for f in search_figures(record)}


def test_generations():
    first, second, third = rows.generation_rows(searched())
    assert (first.number, first.done, first.best, first.median) == (1, 2, 0.5, 0.375)
    assert (second.number, second.done, second.best, second.median) == (2, 4, 0.75, 0.5625)
    assert (third.number, third.done, third.best, third.median) == (3, 5, 0.5, 0.5)  # the last one is half full


def test_a_search_without_generations_counts_structures():
    record = searched()
    assert list(drawn(record)["search-scores"].data[0].x) == [1, 2, 3]
    found(record)["searcher"] = "greedy"
    figure = drawn(record)["search-scores"]
    assert list(figure.data[0].x) == [2, 4, 5]
    assert figure.layout.xaxis.title.text == "structures looked at"


def test_front_is_the_cheapest_way_to_every_score():
    # by cost: 17 M 0.5 | 18 M 0.5 (no better) | 19 M 0.375 (worse) | 20 M 0.25 (worse) | 20.2 M 0.75
    assert [row.index for row in rows.front_rows(searched())] == [4, 3]
    record = searched()
    found(record)["costs"]["macs"] = [20e6] * 5
    assert [row.index for row in rows.front_rows(record)] == [3]  # one cost: the best score alone
    found(record)["scores"] = [0.5] * 5
    assert [row.index for row in rows.front_rows(record)] == [0]  # and of equal ones the first


def test_winner_and_bound_in_the_figure():
    figure = drawn(searched())["search-front"]
    named = {trace.name: trace for trace in figure.data}
    assert list(named["structures"].y) == [25, 50, 37.5, 75, 50]
    assert list(named["Pareto front"].x) == [17e6, 20.2e6]
    assert (list(named["winner"].x), list(named["winner"].y)) == ([20.2e6], [75])
    (line,) = figure.layout.shapes
    assert line.x0 == line.x1 == 20.276e6
    assert any(note.text == "budget 20.28 M" for note in figure.layout.annotations)


def test_latency_is_the_cost_where_it_is_bounded():
    record = searched()
    assert rows.cost_metric(record) == "macs"
    found(record)["costs"]["latency_ms"] = [5.0, 4.0, 3.0, 2.0, 1.0]
    assert rows.cost_metric(record) == "macs"
    record["bounds"] = {"macs": 1e9, "latency_ms": 4.5}
    assert rows.cost_metric(record) == "latency_ms"
    assert [row.index for row in rows.front_rows(record)] == [4, 3]
    figure = drawn(record)["search-front"]
    assert figure.layout.shapes[0].x0 == 4.5 and "ms" in figure.layout.xaxis.title.text
    record["bounds"] = {"params": 3}
    assert rows.cost_metric(record) == "params"
    record["bounds"] = None
    assert rows.cost_metric(record) == "macs"
    assert not drawn(record)["search-front"].layout.shapes


def test_kept_shares():
    conv, second = rows.keep_rows(searched())  # both have 16 channels
    assert (conv.name, conv.width, conv.before, conv.winner, conv.uniform) == ("conv1", 9, 16, 9 / 16, 0.5)
    assert (second.winner, second.uniform) == (1.0, 0.75)
    assert list(drawn(searched())["search-kept"].data[-1].y) == [50, 75]
    record = searched()
    del found(record)["uniform_widths"]  # of an older run
    assert rows.keep_rows(record)[0].uniform is None and len(drawn(record)["search-kept"].data) == 1


def test_facts():
    facts = {row.name: row for row in rows.fact_rows(searched())}
    assert {name: row.value for name, row in facts.items()} == {
        "Weights": "generated",
        "Sampling": "sandwich",
        "Distillation": "yes",
        "Generator parameters": "2.54 M",
        "Genes": "2",
        "Sub-training": "1,200 images",
        "Sub-validation": "300 images",
        "Fit: MACs": "19.65 G",
        "Fit: wall time": "1 min 05 s",
        "Structures scored": "5",
        "Best score": "75.00%",
        "Search: MACs": "18.31 G",
    }
    assert facts["Sampling"].detail.startswith("4 structures per mini-batch")
    assert facts["Best score"].detail == "on sub-validation; structure 4"
    record = searched()
    record["seconds"]["propose"] = 12.0
    record["method_details"]["fit"]["split"]["sub_validation"] = "data.val"
    facts = {row.name: row.value for row in rows.fact_rows(record)}
    assert (facts["Search: wall time"], facts["Sub-validation"]) == ("12.0 s", "data.val")


def damaged() -> list[dict[str, Any]]:
    """Records that lack the new parts, have them empty, or have them cut short."""
    made = [{}, full(), minimal(), dict.fromkeys(searched()), full() | {"method_details": {}, "latency_table": None}]
    made += [full() | {"method_details": {"fit": None, "search": {}}, "latency_table": {}}]
    return made


@pytest.mark.parametrize("record", damaged())
def test_without_a_search_there_is_no_section(record):
    assert rows.generation_rows(record) == rows.front_rows(record) == rows.keep_rows(record) == []
    assert (rows.winner(record), rows.cost_metric(record)) == (None, None)
    assert rows.search_text(record) == "" and rows.fact_rows(record) == [] and search_figures(record) == []
    page = Page(rendered(record))
    assert not any(attributes.get("id") == "search" for _, attributes in page.elements)
    assert "Search" not in page.text


@pytest.mark.parametrize("key", sorted(found(searched())))
def test_any_part_of_a_search_may_be_missing(key):
    for value in (None, [], "?"):
        record = searched()
        found(record)[key] = value
        assert "</html>" in rendered(record)
    del record["method_details"]["search"][key]
    assert "</html>" in rendered(record)


def test_candidates_without_a_number_are_left_out():
    record = searched()
    found(record)["scores"][0] = math.nan
    found(record)["costs"]["macs"][4] = None
    found(record)["widths"][2] = [12]
    assert [row.index for row in rows.scored(record)] == [1, 2, 3, 4]
    assert [row.index for row in rows.front_rows(record)] == [1, 3]
    found(record)["best"] = 0
    assert rows.winner(record) is None and rows.keep_rows(record) == []


def test_the_page_shows_the_search():
    record = json.loads(json.dumps(searched()))
    page = Page(rendered(record))
    assert any(attributes.get("id") == "search" for _, attributes in page.elements)
    for part in (
        "Searched 5 structures, best: 75.00% accuracy on sub-validation.",
        "Best and median score by generation",
        "Score against MACs",
        "Share kept by group",
        "predicted against measured",
        "2.54 M",
        "Pareto front",
    ):
        assert part in page.text, part
    places = [a["id"].removeprefix("figure-") for t, a in page.elements if a.get("class") == "figure"]
    data = [json.loads(script) for script in page.scripts if script.startswith("{")]
    assert [place for place in places if place.startswith("search-")] == KEYS
    assert places[-1] == "latency-table" and len(places) == len(data) == len(figures(record)) + len(KEYS) + 1
    stars = [t for figure in data for t in figure["data"] if t.get("name") == "winner" and t["type"] == "scatter"]
    assert [t["y"] for t in stars] == [[75.0]]


def test_names_of_a_search_are_escaped():
    record = searched()
    record["method_details"]["fit"]["options"] = {"weights": EVIL, "sampling": EVIL, "distil": EVIL}
    record["method_details"]["fit"]["split"]["sub_validation"] = EVIL
    record["latency_table"] |= {"runtime": EVIL, "device_name": EVIL, "batch": EVIL}
    record["bounds"] = {EVIL: 3.0}
    found(record).update(searcher=EVIL, groups=[EVIL, "layer1.0.conv1"], costs={EVIL: [1, 2, 3, 4, 5]})
    record["space"]["groups"][0]["name"] = EVIL
    page = Page(rendered(record))
    assert len(page.scripts) == len(Page(rendered(searched())).scripts)
    assert not any(script.startswith("alert") for script in page.scripts)
    for key in ("search-front", "search-kept"):
        assert "<script" not in drawn(record)[key].to_json().replace("\\u003c", "<")


@pytest.mark.parametrize("count", [1, MANY_GROUPS, 150])
def test_any_number_of_groups(count):
    record = searched()
    names = [f"a.very.long.path.of.modules.that.differs.only.in.its.middle{i}.and.ends.alike" for i in range(count)]
    record["space"]["groups"] = [{"name": name, "before": 64, "after": 32} for name in names]
    found(record).update(groups=names, widths=[[32] * count] * 5)
    figure = drawn(record)["search-kept"]
    assert len(figure.data[0].x) == count
    assert figure.layout.xaxis.ticktext is None or len(set(figure.layout.xaxis.ticktext)) == count


def test_the_terminal_gets_one_line():
    texts = []
    for record in (searched(), full()):
        out = Console(file=io.StringIO(), width=120, force_terminal=False)
        summarise(record, out)
        texts.append(out.file.getvalue())  # type: ignore[attr-defined]
    line = "Searched 5 structures, best: 75.00% accuracy on sub-validation\n"
    assert texts[0].replace(line, "") == texts[1] and line in texts[0]


def test_search_rows_import_neither_torch_nor_plotly():
    code = (
        "import sys, metaprune.methods.pruningnet.report_rows; "
        "sys.exit(bool({'torch', 'plotly', 'jinja2'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
