"""The rows of a report: figures, their wording, and what happens to what was not measured."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
from report_records import full, minimal

from metaprune.report import rows, units
from metaprune.report.naming import pretty_data, pretty_model


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.00 k"),
        (999_996, "1.00 M"),
        (40_552_000, "40.55 M"),
        (0.5, "0.50"),
        (None, "–"),
        (math.nan, "–"),
        (4.1e9, "4.10 G"),
        (True, "–"),
    ],
)
def test_quantities(value, text):
    assert units.quantity(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.035, "35 ms"),
        (0.9999, "1.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.7, "1 h 00 min"),
        (3720, "1 h 02 min"),
    ],
)
def test_durations_carry_over(seconds, text):
    assert units.duration(seconds) == text


def test_changes():
    assert units.relative_change(2, 1) == "-50.0%"
    assert units.relative_change(3, 3) == "0.0%"
    assert units.relative_change(10_000, 9_999) == "0.0%"  # never "-0.0%"
    assert units.relative_change(0, 3) == "–"
    assert units.point_change(0.912, 0.908) == "-0.40 pp"
    assert units.times(2.01, 1, "fewer", "more") == "2.01x fewer"
    assert units.times(1, 1.3, "faster", "slower") == "1.30x slower"
    assert units.times(1, 1.001, "fewer", "more") == "unchanged"
    assert units.shortened("layer1.0.conv1", 9) == "laye…onv1"


def test_summary_of_a_full_record():
    found = {row.key: row for row in rows.summary_rows(full())}
    assert list(found) == [
        "metric",
        "metric_cut",
        "loss",
        "macs",
        "params",
        "latency_ms",
        "file_bytes",
        "memory_mb",
    ]
    macs = found["macs"]
    assert (macs.before, macs.after, macs.change, macs.factor) == ("40.55 M", "20.20 M", "-50.2%", "2.01x fewer")
    accuracy = found["metric"]
    assert (accuracy.label, accuracy.after, accuracy.change) == ("Accuracy (test)", "90.80%", "-0.40 pp")
    assert (
        found["latency_ms"].detail == "batch 64, 1 thread, 20 repeats, quartiles 12.1 to 12.9 ms, then 7.00 to 7.30 ms"
    )
    assert found["memory_mb"].before == "1.23 MB"


def test_summary_holds_only_what_was_measured():
    assert [row.key for row in rows.summary_rows(minimal())] == ["macs", "params", "memory_mb"]
    assert rows.summary_rows({}) == []
    record = full()
    record["quality"]["recovered"] = None
    record["latency_ms"]["after"] = math.nan
    found = {row.key: row for row in rows.summary_rows(record)}
    assert found["metric"].after == "63.40%"
    assert "metric_cut" not in found and "latency_ms" not in found


def test_every_function_takes_an_empty_record():
    for record in ({}, dict.fromkeys(full())):
        made = [
            rows.group_rows,
            rows.lock_rows,
            rows.phase_rows,
            rows.history_rows,
            rows.budget_rows,
            rows.summary_rows,
        ]
        assert all(make(record) == [] for make in made)
        assert rows.headline(record) == "Model: no figures in this record"


def test_groups():
    first, second = rows.group_rows(full())
    assert (first.name, first.before, first.after, first.kept_text) == ("conv1", 16, 9, "56%")
    assert second.kept == 1.0


def test_locks_are_counted_by_reason():
    spatial, output = rows.lock_rows(full(), examples=2)
    assert (spatial.reason, spatial.operators, spatial.dims, spatial.indices) == (
        "spatial dimension",
        ("conv2d",),
        3,
        9,
    )
    assert spatial.examples == ("a.weight:2", "a.weight:3")
    assert (output.reason, output.operators, output.dims) == ("output of the network", (), 1)


@pytest.mark.parametrize(
    ("reason", "parts"),
    [
        ("conv2d in a.b (why (really))", ("conv2d", "why (really)")),
        ("add (broadcast)", ("add", "broadcast")),
        ("fft in mix", ("fft", "fft")),
        ("never leaves this dimension", ("", "never leaves this dimension")),
    ],
)
def test_reasons_are_split(reason, parts):
    assert rows.split_reason(reason) == parts


def test_phases_and_history():
    phases = rows.phase_rows(full())
    assert [(p.phase, p.text) for p in phases] == [
        ("train", "5 min 00 s"),
        ("cut", "300 ms"),
        ("recover", "1 min 40 s"),
    ]
    assert sum(p.part for p in phases) == pytest.approx(1.0)
    history = rows.history_rows(full())
    assert [(r.phase, r.epoch, r.step) for r in history] == [("train", 1, 1), ("train", 2, 2), ("recover", 1, 3)]
    assert history[-1].val_metric is None


def test_budgets():
    (row,) = rows.budget_rows(full())
    assert (row.metric, row.asked, row.bound, row.reached, row.met) == ("MACs", "50%", "20.28 M", "20.20 M", True)
    record = full()
    record["bounds"] = {"macs": 1e6, "latency_ms": 8.0, "params": 131_000.0}
    assert [r.met for r in rows.budget_rows(record)] == [False, True, True]
    record["latency_ms"] = None
    assert rows.budget_rows(record)[1].met is None
    record = full() | {"bounds": {"latency_ms": 8.0}}
    record["cost"]["after"]["latency_ms"] = 7.5  # what the table says is what was bounded; a stopwatch may differ
    (row,) = rows.budget_rows(record)
    assert row.met and row.reached == "7.50 ms predicted by the table (7.10 ms measured)"


def test_headline():
    assert rows.headline(full()) == (
        "ResNet-20 on Fashion-MNIST: 49.8% of MACs, accuracy 91.2% -> 90.8% (test), "
        "cut proved equal to its masked original to 4.5e-16"
    )
    assert rows.headline(minimal()).endswith("equality of the cut with its masked original not checked")
    record = full() | {"budget": {"latency_ms": "60%"}}
    assert "57.7% of latency" in rows.headline(record)


def test_names():
    assert [pretty_model(s) for s in ("zoo:vgg19_bn", "timm:resnet50.a1_in1k", "python:my.nets:build", None)] == [
        "VGG-19-BN",
        "resnet50.a1_in1k",
        "my.nets:build",
        "Model",
    ]
    assert [pretty_data(s) for s in ("builtin:cifar10", "imagefolder:/data/cats/", "mine")] == [
        "CIFAR-10",
        "cats",
        "mine",
    ]


def test_rows_import_neither_torch_nor_plotly():
    code = "import sys, metaprune.report.rows; sys.exit(bool({'torch', 'plotly', 'jinja2'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
