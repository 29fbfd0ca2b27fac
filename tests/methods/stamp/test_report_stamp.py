"""The report's section on STAMP: its rows, its figures, and pages of records with and without it."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
from typing import Any

import pytest
from report_pages import EVIL, Page, rendered
from report_records import full, minimal, searched

from metaprune.methods.stamp import report_rows as rows
from metaprune.methods.stamp.report_plots import stamp_figures
from metaprune.report.plots import MANY_GROUPS

_EPISODE = {"data": "cifar100", "ways": 5, "accuracy": 0.5, "kept_channels": 0.5}
_STAMP: dict[str, Any] = {
    "seconds": {"adapt": 2.5, "encode": 0.25},
    "macs": {"adapt": 19.65e9, "encode": 1.23e9},
    "kept_macs": 0.4981,
    "meta_training": {
        "macs": 18.31e12,
        "seconds": 65.0,
        "conditioning": {
            "jaccard_same": 0.875,
            "jaccard_different": 0.625,
            "margin": 0.25,
            "collapsed": False,
            "tasks": 8,
        },
        "history": {
            "rows": [
                {"episode": 1, "loss": 3.0, "kept_cost": 0.75, "jaccard_with_previous": 0.5, **_EPISODE},
                {"episode": 2, "loss": 2.5, "kept_cost": 0.5, "jaccard_with_previous": 0.75, **_EPISODE},
            ]
        },
    },
    "probabilities": {"conv1": [0.25, 1.0, 0.5, 0.75], "layer1.0.conv1": [0.0, 0.125]},
    "adaptation": [{"loss": x, "accuracy": 0.25, "kept_cost": 0.5} for x in (1.5, 1.375, 1.25)],
}


def stamped() -> dict[str, Any]:
    """A run of STAMP: two episodes, three steps of adaptation."""
    return full() | {"method": "stamp", "method_details": {"stamp": copy.deepcopy(_STAMP)}}


def found(record: dict[str, Any]) -> dict[str, Any]:
    return record["method_details"]["stamp"]


def drawn(record: dict[str, Any]) -> dict[str, Any]:
    return {f.key: f.figure for f in stamp_figures(record)}


def test_meta_training_by_episode():
    traces = drawn(stamped())["stamp-meta"].data
    assert {t.name: list(t.y) for t in traces} == {"loss": [3, 2.5], "kept cost": [75, 50], "mask variety": [50, 25]}
    assert list(traces[0].x) == [1, 2] and traces[0].customdata[0] == "episode 1, cifar100, 5 classes"


def test_masks_by_layer():
    strips, marks = drawn(stamped())["stamp-masks"].data
    assert list(strips.y) == list(marks.y) == ["conv1", "layer1.0.conv1"] and (strips.x0, strips.dx) == (12.5, 25)
    assert [list(line) for line in strips.z] == [[1.0, 0.75, 0.5, 0.25], [0.125, 0.125, 0.0, 0.0]]
    assert list(marks.x) == [100 * 9 / 16, 100] and list(marks.customdata) == ["9 / 16  (56%)", "16 / 16  (100%)"]
    record = stamped()
    del record["space"]["groups"][0]
    assert list(drawn(record)["stamp-masks"].data[1].y) == ["layer1.0.conv1"]


def test_time_line():
    named = {trace.name: trace.x[0] for trace in drawn(stamped())["stamp-time"].data}
    assert named == {"adapt 2.5 s": 2.5, "encode 250 ms": 0.25, "cut 300 ms": 0.3, "recover 1 min 40 s": 99.7}


def test_facts():
    facts = {row.name: row for row in rows.fact_rows(stamped())}
    assert {name: row.value for name, row in facts.items()} == {
        "Jaccard within tasks": "0.875",
        "Jaccard between tasks": "0.625",
        "Margin": "0.250",
        "Adaptation steps": "3",
        "Adapt: MACs": "19.65 G",
        "Adapt: wall time": "2.5 s",
        "Encode: MACs": "1.23 G",
        "Encode: wall time": "250 ms",
        "Training the small network: wall time": "1 min 40 s",
        "Meta-training (paid once): MACs": "18.31 T",
        "Meta-training (paid once): wall time": "1 min 05 s",
    }
    assert facts["Adaptation steps"].detail == "loss 1.500 in the first, 1.250 in the last"
    assert facts["Jaccard between tasks"].detail == "masks of different tasks; 8 tasks"
    assert rows.stamp_text(stamped()) == "Meta-trained over 2 episodes, adapted in 3 steps, 49.8% of MACs kept"
    (alone,) = rows.fact_rows({"method_details": {"stamp": {"adaptation": []}}})
    assert (alone.name, alone.value, alone.detail) == ("Adaptation steps", "0", "")


def test_break_even():
    record = stamped()
    full, samples = record["cost"]["before"]["macs"], 50_000
    record["recovery"] = {"samples": samples, "macs": 1e12}
    facts = {row.name: row.value for row in rows.fact_rows(record)}
    assert facts["Training the small network: MACs"] == "1.00 T"
    targets = 18.31e12 / (3 * full * samples - 19.65e9 - 1.23e9)
    assert facts["Meta-training pays from"] == f"{math.ceil(targets):,} targets"
    record["recovery"]["samples"] = 1  # saves less than adaptation takes
    assert "Meta-training pays from" not in {row.name for row in rows.fact_rows(record)}


def test_collapse_is_said():
    record = stamped()
    margin = "mask margin of reference tasks 0.250"
    assert rows.closing_text(record) == f"STAMP: 49.8% of MACs kept, {margin}, adapted in 2.5 s"
    for collapsed in (True, False, None):
        found(record)["meta_training"]["conditioning"]["collapsed"] = collapsed
        details = [row.detail for row in rows.fact_rows(record)]
        assert ("collapsed: every data set gets about the same mask" in details) == (collapsed is True)
        assert ("(collapsed)" in rows.closing_text(record)) == (collapsed is True)


@pytest.mark.parametrize("record", [minimal(), searched(), *({"method_details": {"stamp": x}} for x in (None, "?"))])
def test_other_methods_have_no_section(record):
    assert rows.stamp_text(record) == rows.closing_text(record) == ""
    assert rows.fact_rows(record) == stamp_figures(record) == []
    assert 'id="stamp"' not in rendered(record)


def paths(part: Any, *place: str | int) -> list[tuple[str | int, ...]]:
    """The places of all parts, nested ones too; of a list the first."""
    inner = part.items() if isinstance(part, dict) else enumerate(part[:1]) if isinstance(part, list) else ()
    return [p for key, value in inner for p in ((*place, key), *paths(value, *place, key))]


@pytest.mark.parametrize("path", paths(_STAMP), ids=lambda path: ".".join(map(str, path)))
def test_any_part_may_be_missing(path):
    for value in (None, "?", math.nan):
        record = stamped()
        holder = found(record)
        for key in path[:-1]:
            holder = holder[key]
        holder[path[-1]] = value
        stamp_figures(record)
        rows.fact_rows(record), rows.stamp_text(record), rows.closing_text(record)
    del holder[path[-1]]
    assert 'id="stamp"' in rendered(record)


def test_the_section_needs_no_other_part():
    page = Page(rendered({"method_details": {"stamp": _STAMP}}))
    assert "Masks by layer" in page.text and any("plotly.js v" in script for script in page.scripts)


def test_the_page_shows_the_section_and_escapes_names():
    record = json.loads(json.dumps(stamped()))
    record["space"]["groups"][0]["name"] = EVIL
    found(record)["probabilities"][EVIL] = [0.5]
    found(record)["meta_training"]["history"]["rows"][0]["data"] = EVIL
    page = Page(rendered(record))
    assert all(x in page.text for x in ("49.8% of MACs kept.", "Masks by layer", "Time line", "0.875", "18.31 T"))
    places = [a["id"] for _, a in page.elements if "id" in a]
    assert places[-3:] == ["figure-stamp-meta", "figure-stamp-masks", "figure-stamp-time"]
    assert not any(script.startswith("alert") for script in page.scripts)
    assert not any("<script" in figure.to_json().replace("\\u003c", "<") for figure in drawn(record).values())


@pytest.mark.parametrize("count", [1, MANY_GROUPS, 150])
def test_any_number_of_groups(count):
    names = [f"a.very.long.path.of.modules.that.differs.only.in.its.middle{i}.and.ends.alike" for i in range(count)]
    masks = {name: [i / 512 for i in range(512)] for name in names}
    strips = drawn({"method_details": {"stamp": {"probabilities": masks}}})["stamp-masks"].data[0]
    assert len(set(strips.y)) == count and len(strips.z[0]) == 100 and set(strips.z[0]) <= {i / 512 for i in range(512)}


def test_stamp_rows_import_neither_torch_nor_plotly():
    code = (
        "import sys, metaprune.methods.stamp.report_rows; "
        "sys.exit(bool({'torch', 'plotly', 'jinja2'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_targets_of_one_artifact():
    record = stamped() | {"data": "builtin:emoji"}
    assert not {"stamp-alike", "stamp-targets"} & set(drawn(record))
    found(record)["kept"] = [0, 1, 2]
    earlier = {"data": "birds", "budget": {"macs": "30%"}, "kept": [1, 2, 3], "cost": record["cost"]}
    found(record)["targets"] = [earlier | {"quality": {"recovered": {"accuracy": 0.75}}}, {"data": "unfinished"}]
    targets = rows.target_rows(record)
    assert [t.data for t in targets] == ["birds", "builtin:emoji"] and targets[0].name == "birds, macs 30%"
    assert rows.similarities(targets) == [[1, 0.5], [0.5, 1]]
    assert [list(line) for line in drawn(record)["stamp-alike"].data[0].z] == [[1, 0.5], [0.5, 1]]
    first = drawn(record)["stamp-targets"].data[0]
    assert first.name == "birds" and list(first.y) == [75] and 0 < first.x[0] <= 100
