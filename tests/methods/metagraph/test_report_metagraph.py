"""The report's section on the graph metanetwork, with and without what it shows; the drawing of a graph."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from report_pages import EVIL, rendered
from report_records import full, minimal

from metaprune.methods.metagraph import report_rows as rows
from metaprune.methods.metagraph.build_graph import build_network_graph
from metaprune.methods.metagraph.report_plots import graph_figure, metagraph_figures
from metaprune.models import create
from metaprune.tracing import trace

_FOUND: dict[str, Any] = {
    "strength": 0.667,
    "graph": {"nodes": 251, "edges": 11424, "uncovered": {}},
    "steps": [
        {"step": "start", "accuracy": 0.9, "macs": 1.0, "seconds": 0.1},
        {"step": "rewrite", "accuracy": 0.85, "macs": 1.0, "seconds": 2.0},
        {"step": "pruning", "accuracy": 0.7, "macs": 0.498, "seconds": 0.5},
    ],
    "moved": {"conv1.weight": 0.012, "bn1.bias": 0.5},
    "norms": {"conv1": {"before": [0, 1, 3], "after": [2, 1, 1]}},
    "meta_training": {
        "stages": {"data_models": 12.0, "meta": 60.0},
        "history": {
            "evaluations": [
                {"step": 0, "area": 0.4, "uncut_accuracy": 0.9},
                {"step": 25, "area": 0.5, "uncut_accuracy": 0.88},
            ]
        },
    },
}


def rewritten() -> dict[str, Any]:
    return full() | {"method": "metagraph", "method_details": {"metagraph": copy.deepcopy(_FOUND)}}


def test_rows_hold_what_the_record_says():
    record = rewritten()
    assert [r.area for r in rows.evaluation_rows(record)] == [0.4, 0.5]
    assert [r.name for r in rows.step_rows(record)] == ["start", "rewrite", "pruning"]
    assert rows.norm_rows(record)[0].after == (2, 1, 1)
    assert rows.moved_rows(record) == [("conv1.weight", 0.012), ("bn1.bias", 0.5)]
    assert rows.metagraph_text(record) == (
        "Rewritten by a metanetwork at strength 0.67; graph of 251 nodes and 11,424 edges"
    )
    facts = rows.fact_rows(record)
    assert (facts[2].name, facts[2].value, facts[2].detail) == (
        "Pruning",
        "70.00%",
        "validation split, 49.8% of MACs, 0.5 s",
    )


def test_the_page_has_the_section_and_its_figures():
    page = rendered(rewritten())
    assert 'id="metagraph"' in page
    assert [f.key for f in metagraph_figures(rewritten())] == [
        "metagraph-meta",
        "metagraph-steps",
        "metagraph-norms",
        "metagraph-moved",
    ]
    assert 'id="metagraph"' not in rendered(full())
    assert metagraph_figures(minimal()) == []


@pytest.mark.parametrize("part", [*_FOUND, "everything"])
@pytest.mark.parametrize("value", [None, [], {}, "text", float("nan")])
def test_any_part_may_be_missing_or_wrong(part, value):
    record = rewritten()
    if part == "everything":
        record["method_details"]["metagraph"] = value
    else:
        record["method_details"]["metagraph"][part] = value
    page = rendered(record)
    assert page.rstrip().endswith("</html>") and "<h1" in page


def test_names_are_escaped():
    record = rewritten()
    found = record["method_details"]["metagraph"]
    found["norms"], found["moved"] = {EVIL: found["norms"]["conv1"]}, {EVIL: 0.5}
    found["steps"][0]["step"] = EVIL
    assert EVIL not in rendered(record)


def test_a_graph_is_drawn_whole():
    network_graph = build_network_graph(trace(create("zoo:vit_micro"), torch.zeros(1, 1, 28, 28)))
    sites, edges = network_graph.drawn()
    assert sum(s["nodes"] for s in sites) == network_graph.nodes
    figure = graph_figure(sites, edges)
    assert len(figure.data[-1].x) == len(sites)
    assert {t.name for t in figure.data} >= {"linear", "identity", "product", "head"}


def test_a_scoring_rule_is_told_by_what_counts_most():
    details = {"rule": {"taylor": 0.5, "depth": 0.0, "macs": -0.7}, "meta_training": {"history": [{"step": 0}]}}
    record = full() | {"method": "metagraph", "method_details": {"metagraph": details}}
    told = "Ranked by a learned scoring rule; most counts macs -0.70, taylor +0.50"
    assert rows.metagraph_text(record) == told
    assert told in rendered(record)
    assert metagraph_figures(record) == []
