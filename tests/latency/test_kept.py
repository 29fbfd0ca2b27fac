"""A measurement that was stopped goes on from what it has, with the same command and to the same table."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from metaprune.cli.main import main
from metaprune.core.errors import ConfigError, DamagedFileError
from metaprune.latency import build_table, runtimes
from metaprune.latency.kept import Kept
from metaprune.tracing import trace

COMMAND = ["latency", "zoo:resnet8", "--option", "num_classes=10", "--repeats", "1", "--points", "2"]
COMMAND += ["--samples", "40", "--structures", "3"]


def elements(tensors):
    return sum(t.numel() for t in tensors)


def size_of(module):
    return 1 + elements(module.parameters()) + elements(module.buffers())


class Clock:
    """Exact times by number of elements, in place of both stopwatches; is stopped before run number `stop`."""

    def __init__(self, monkeypatch, stop=None):
        self.runs, self.stop = 0, stop
        monkeypatch.setattr(runtimes.EagerTimer, "_run", lambda timer, _, tensors: self.segments(timer, tensors))
        monkeypatch.setattr(runtimes._Timer, "_prepare", lambda _, module: size_of(module))
        monkeypatch.setattr(runtimes, "medians", lambda calls, *_: [self.tick(1e-4 * n) for n in calls])

    def tick(self, value):
        self.runs += 1
        if self.runs == self.stop:
            raise KeyboardInterrupt
        return value

    def segments(self, timer, tensors):
        return self.tick(1e-5 * elements(tensors.values()) * np.arange(1, len(timer.list) + 1))


def run(folder: Path, *more):
    return main([*COMMAND, "--out", str(folder / "t.json"), *more])


def table(path: Path):
    data = json.loads(path.read_text())
    del data["info"]["seconds"]
    return data


@pytest.mark.parametrize("left", [0.5, 0.01])  # stopped among segments, and among whole networks
def test_stopped_and_started_again_it_measures_the_rest(tmp_path, monkeypatch, capsys, left):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    whole = Clock(monkeypatch)
    assert run(tmp_path / "a") == 0
    Clock(monkeypatch, stop=whole.runs - int(left * whole.runs))
    assert run(tmp_path / "b") == 130
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["t.part.json"]
    assert "the same command continues" in capsys.readouterr().err

    assert run(tmp_path / "b", "--batch", "4") == 2  # what is there is of other settings
    assert "batch: 1 there, 4 asked" in capsys.readouterr().err

    rest = Clock(monkeypatch)
    assert run(tmp_path / "b") == 0
    assert "going on from" in capsys.readouterr().out
    assert 0 < rest.runs < whole.runs
    assert table(tmp_path / "b" / "t.json") == table(tmp_path / "a" / "t.json")
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["t.json"]


def test_what_is_kept(tmp_path):
    path = tmp_path / "k.json"
    first = Kept(path, {"a": (1, 2)})
    assert [first.once("x", lambda: [0.1, 1 / 3]), first.once("x", lambda: 9)] == [[0.1, 1 / 3]] * 2
    again = Kept(path, {"a": (1, 2)})
    assert "x" in again and "y" not in again and again.once("x", lambda: 9) == [0.1, 1 / 3]
    assert again.seconds >= json.loads(path.read_text())["seconds"] > 0
    with pytest.raises(ConfigError, match=r"a: \[1, 2\] there, 3 asked.*delete the file"):
        Kept(path, {"a": 3})
    path.write_text(path.read_text().replace("0.1", "0.2"))
    with pytest.raises(DamagedFileError, match="delete it"):
        Kept(path, {"a": (1, 2)})
    assert Kept(None, {}).once("x", lambda: 1) == 1


def test_segments_that_were_built_and_timed_are_not_built_again(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    builds = []
    Clock(monkeypatch)
    monkeypatch.setattr(
        runtimes.StandaloneTimer, "_prepare", lambda _, module, args=None: builds.append(args) or size_of(module)
    )
    network = trace(torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Linear(8, 4)), torch.ones(2, 6))
    asked = {"points": 2, "samples": 3, "structures": 2, "repeats": 1, "keep": tmp_path / "k.json"}
    tables, counts = [], []
    for _ in range(2):
        tables.append(build_table(network, (torch.ones(2, 6),), runtime="onnxruntime", **asked))
        counts.append(sum(args is not None for args in builds))
    assert counts[0] == counts[1] > 2  # segments; whole networks come without inputs
    widths = np.arange(1, 9)[:, None]
    assert (tables[0].predict_ms(widths) == tables[1].predict_ms(widths)).all()
