"""Warnings travel: said to the user as ever, kept in the record without paths, and on top of the report."""

import json
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import metaprune as mp
from metaprune.cli.main import main
from metaprune.core.strict import from_dict
from metaprune.core.warned import collected_warnings, without_paths
from metaprune.report.rows import headline
from metaprune.runs.config import RunConfig
from metaprune.runs.run import run
from metaprune.runs.schema import upgraded

X = torch.randn(2, 4)


def net():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def test_a_block_collects_each_text_once_and_hides_nothing():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with collected_warnings() as texts:
            for _ in range(2):
                warnings.warn("b of /home/me/data/cats.npz", stacklevel=1)
            warnings.warn("a", FutureWarning, stacklevel=1)
    assert texts == ["b of cats.npz"]
    assert [str(w.message) for w in seen] == ["b of /home/me/data/cats.npz"] * 2 + ["a"]


@pytest.mark.parametrize("times", [1, 2])
def test_what_the_caller_filters_is_filtered_and_recorded_all_the_same(times):
    for _ in range(times):  # Python itself shows a warning of one line once per process
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("ignore")
            with collected_warnings() as texts:
                warnings.warn("quiet", stacklevel=1)
        assert (texts, seen) == (["quiet"], [])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with collected_warnings() as texts, pytest.raises(UserWarning, match="loud"):
            warnings.warn("loud", stacklevel=1)
    assert texts == ["loud"]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("imagefolder:/home/me/cats: skipped /mnt/a/1.png, /mnt/a/2.png", "imagefolder:cats: skipped 1.png, 2.png"),
        ("see https://a.org/b and runs/x/y or 1/2", "see https://a.org/b and runs/x/y or 1/2"),
        ("at ~/models/net.pt (C:\\Users\\me\\net.pt)", "at net.pt (net.pt)"),
    ],
)
def test_paths_of_the_machine_are_left_out(text, left):
    assert without_paths(text) == left


def test_prune_records_its_warnings():
    for _ in range(2):
        with pytest.warns(mp.NoEffectWarning, match="nothing is cut"):
            record = mp.prune(net(), X, budget="macs=100%", progress=False).record
        assert [w for w in record["warnings"] if "nothing is cut" in w]
    assert mp.prune(net(), X, budget="macs=60%", progress=False).record["warnings"] == []


def test_older_records_have_none():
    assert upgraded({"method": "x"})["warnings"] == []
    assert upgraded({"schema": 1})["warnings"] == []


@pytest.fixture
def images(tmp_path):
    draw = np.random.default_rng(0)
    labels = np.arange(120) % 3
    pixels = (draw.integers(0, 60, (120, 8, 8)) + 60 * labels[:, None, None]).astype(np.uint8)
    np.savez(tmp_path / "d.npz", images=pixels, labels=labels)
    return f"npz:{tmp_path / 'd.npz'}"


def config(images, **changes):
    base = {
        "model": {"spec": "zoo:mlp", "options": {"image_size": 8, "widths": [16, 16]}},
        "data": {"spec": images},
        "budget": {"macs": "60%"},
        "latency": {"repeats": 0},
    }
    return from_dict(RunConfig, {**base, **changes})


def test_random_weights_are_on_top_of_the_report_and_no_headline(images, tmp_path):
    with pytest.warns(UserWarning, match="random weights"):
        record = run(config(images), tmp_path / "run", progress=False)
    page = (tmp_path / "run/report.html").read_text()
    assert any("random weights" in w for w in record["warnings"])
    assert record["warnings"] == json.loads((tmp_path / "run/record.json").read_text())["warnings"]
    assert "accuracy" not in headline(record)
    assert page.index("random weights") < page.index("<h2>")
    assert record["splits"]["carved"]
    assert "(cut out of train)" in page
    assert str(tmp_path) not in "".join(record["warnings"])


def test_given_weights_on_a_carved_split_are_warned_of(images, tmp_path, recwarn):
    mp_model = tmp_path / "w.pt"
    from metaprune.models import create

    torch.save(create("zoo:mlp", image_size=8, widths=[16, 16], num_classes=3, in_channels=1).state_dict(), mp_model)
    model = {"spec": "zoo:mlp", "options": {"image_size": 8, "widths": [16, 16]}, "weights": str(mp_model)}
    record = run(config(images, model=model), tmp_path / "run", progress=False)
    assert any("cut out of the training part" in w for w in record["warnings"])
    assert "accuracy" in headline(record)
    assert not any("random weights" in w for w in record["warnings"])


@pytest.mark.parametrize("name", ["a[/b]", "[red]x", "[link=x]y", ":smile:"])
def test_folder_names_are_text(images, tmp_path, name, capsys):
    arguments = ["prune", "--model", "zoo:mlp", "--data", images, "--budget", "macs=60%", "--quiet"]
    arguments += ["--set", "model.options.image_size=8", "--set", "latency.repeats=0", "--run", str(tmp_path / name)]
    assert main(arguments) == 0
    assert f"{name}/report.html" in capsys.readouterr().out.replace("\n", "")
    assert main(["report", str(tmp_path / name)]) == 0
    assert f"{name}/report.html" in capsys.readouterr().out.replace("\n", "")
    assert main(["export", str(tmp_path / name), "--format", "pt2"]) == 0
    assert f"{name}/model.pt2" in capsys.readouterr().out.replace("\n", "")
