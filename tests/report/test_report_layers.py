"""Cost by layer, and the runs that lie beside one: exact figures, small tables, no name is markup."""

import json

import numpy as np
import pytest
import torch
from report_pages import EVIL, Page
from report_records import full, minimal
from torch import nn

import metaprune as mp
from metaprune.latency import LatencyTable, build_table
from metaprune.latency.segments import axis_values, segments_of
from metaprune.report.html import render_report, write_report
from metaprune.report.layer_rows import LayerRow, layer_rows
from metaprune.report.neighbours import neighbours

LAYERS = [
    {"name": "conv1", "macs": [2_000_000, 500_000], "ms": [1.5, 0.75]},
    {"name": "add", "macs": [0, 0], "ms": [0.1, 0.1]},
]


class Timer:
    """Milliseconds that are the sizes of a segment; a pass takes 0.5 ms more than twice their sum."""

    few_widths = False

    def __init__(self, network):
        self.list, self.sizes = segments_of(network, 2)

    def segments(self, widths):
        sizes = self.sizes.of(widths)
        return np.stack([1.0 + sum(axis_values(a, sizes) for a in s.axes) for s in self.list], axis=1)

    def whole(self, widths):
        return 0.5 + 2 * self.segments(widths).sum(axis=1)


def test_layers_add_up_to_the_network(tmp_path):
    layers = (nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model, x = nn.Sequential(*layers, nn.Linear(32, 4)).eval(), torch.randn(2, 3, 9, 9)
    network = mp.trace(model, x)
    build_table(network, (x,), samples=20, structures=4, timer=Timer(network)).save(tmp_path / "t.json")
    asked = {"budget": "macs=50%", "latency_table": tmp_path / "t.json", "round_to": 8, "progress": False}
    record = mp.prune(model, x, **asked).record
    offset = LatencyTable.load(tmp_path / "t.json").offset_ms
    for k, when in enumerate(("before", "after")):
        cost = record["cost"][when]
        assert sum(layer["macs"][k] for layer in record["layers"]) == cost["macs"]
        assert offset + sum(layer["ms"][k] for layer in record["layers"]) == pytest.approx(cost["latency_ms"])
    assert [layer["name"] for layer in record["layers"]] == ["0", "2", "5"]
    bare = mp.prune(model, x, budget="macs=50%", progress=False).record["layers"]
    assert all(layer["ms"] is None and layer["macs"][0] for layer in bare)


def test_rows_of_layers():
    rows = layer_rows({"layers": LAYERS})
    assert rows[0] == LayerRow("conv1", ("2.00 M", "500.00 k", "25%"), ("1.50 ms", "0.750 ms", "50%"))
    assert rows[1].macs == ("0", "0", "")
    odd = [None, 3, {}, {"name": "a", "macs": [1]}, {"name": "b", "macs": [1, None], "ms": "no"}]
    assert layer_rows({"layers": odd}) == layer_rows({}) == layer_rows({"layers": None}) == []


def test_the_page_shows_layers_folded_and_times_only_where_there_are_some():
    text = render_report(full() | {"layers": LAYERS})
    assert "Cost by layer" in text and "time before" in text and "0.750 ms" in text
    untimed = render_report(full() | {"layers": [layer | {"ms": None} for layer in LAYERS]})
    assert "Cost by layer" in untimed and "time before" not in untimed
    assert "Cost by layer" not in render_report(full())
    many = [LAYERS[0] | {"name": f"layers.{i}.attention.projection"} for i in range(300)]
    assert len(render_report(full() | {"layers": many}, plotly_file="x.js")) < 200_000
    evil = Page(render_report(full() | {"layers": [LAYERS[0] | {"name": EVIL}]}, plotly_file="x.js"))
    assert EVIL in evil.text


def beside(folder, name, **changes):
    at = folder / name
    at.mkdir()
    (at / "record.json").write_text(json.dumps(full() | changes))
    (at / "network.json").write_text("{}")
    return at


def test_runs_beside_are_those_of_the_same_model_and_data(tmp_path):
    record = full() | {"constraints": {"ignore": [], "round_to": 1}}
    here = beside(tmp_path, "a")
    assert neighbours(record, here) is None
    rest = {"constraints": {"ignore": [], "round_to": 8}, "recover": {"kind": "bn"}}
    beside(tmp_path, "b", method="taylor", seed=3, **rest)
    beside(tmp_path, "other-model", model="zoo:vgg")
    beside(tmp_path, "other-data", data="builtin:digits")
    beside(tmp_path, "odd", cost=[1], quality="none")
    (beside(tmp_path, "broken") / "record.json").write_text("{")
    (tmp_path / "empty").mkdir()
    table = neighbours(record, here)
    assert table.header == ("run", "method", "budget", "MACs", "left", "Accuracy")
    assert table.rows == [
        ("a (this run)", "magnitude", "macs=50%", "20.20 M", "49.8%", "90.80%"),
        ("b", "taylor", "macs=50%", "20.20 M", "49.8%", "90.80%"),
    ]
    assert table.differences == [
        'these runs differ in recover: null and {"kind": "bn"}',
        'these runs differ in constraints: {"round_to": 1} and {"round_to": 8}',
    ]
    assert neighbours(minimal() | {"model": None}, here) is None
    for name in ("a", "b"):
        path = tmp_path / name / "record.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"quality": None}))
    assert neighbours(record | {"quality": None}, here).header[-1] == "left"


def test_the_page_of_a_run_shows_them(tmp_path):
    here = beside(tmp_path, "a")
    beside(tmp_path, "b", method=EVIL)
    page = Page(write_report(full(), here / "report.html").read_text())
    assert "Runs beside this one" in page.text and EVIL in page.text
    assert "Runs beside this one" not in write_report(full(), tmp_path / "alone" / "report.html").read_text()
