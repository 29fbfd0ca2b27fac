"""`sensitivity`: the curves of `allocate="sensitivity"` by themselves, in Python and on the command line."""

import json

import numpy as np
import pytest
import torch

import metaprune as mp
from metaprune.calibration.config import SHARES
from metaprune.cli.main import main
from metaprune.testing import assert_untouched
from metaprune.testing.method_suite import small_data, small_network

EXAMPLE = torch.zeros(2, 1, 28, 28)


def test_the_curves_are_those_of_a_prune_with_the_same_seed():
    model = small_network("cnn")
    with assert_untouched(model):
        curves = mp.sensitivity(model, EXAMPLE, data=small_data(), criterion="magnitude", seed=3)
    record = mp.prune(
        model, EXAMPLE, budget="macs=60%", method="magnitude", method_options={"allocate": "sensitivity"},
        data=small_data(), seed=3, progress=False,
    ).record  # fmt: skip
    expected = record["method_details"]["sensitivity"]["curves"]
    assert [list(curve.groups) for curve in curves] == [curve["groups"] for curve in expected]
    assert [list(curve.losses) for curve in curves] == [curve["losses"] for curve in expected]


def test_any_objective_any_share_and_only_what_may_shrink():
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2)
    )
    samples = torch.utils.data.TensorDataset(torch.randn(96, 4), torch.randn(96, 2))
    (curve,) = mp.sensitivity(
        model, torch.ones(2, 4), data=(samples, samples), objective="regression", shares=(0.9, 0.5, 0.1),
        constraints=mp.Constraints(only=("=2",)),
    )  # fmt: skip
    assert curve.groups == ("2",) and curve.shares == (14 / 16, 8 / 16, 2 / 16)
    assert 0 < curve.losses[0] < curve.losses[2]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"criterion": "uniform"}, "scores no channels"),
        ({"criterion": "magnitud"}, "Did you mean 'magnitude'"),
        ({"shares": (0.5, 1.0)}, "above 0 and below 1"),
        ({"shares": ()}, "above 0 and below 1"),
        ({"constraints": mp.Constraints(only=("none*",))}, "none"),
    ],
)
def test_bad_input_is_told_in_one_line(given, message):
    with pytest.raises(mp.MetapruneError, match=message) as told:
        mp.sensitivity(small_network("cnn"), EXAMPLE, data=small_data(), **given)
    assert "\n" not in str(told.value)


@pytest.fixture
def patterns(tmp_path):
    draw = np.random.default_rng(0)
    np.savez(
        tmp_path / "d.npz", images=draw.integers(0, 256, (120, 1, 8, 8)).astype(np.uint8), labels=np.arange(120) % 3
    )
    return f"npz:{tmp_path / 'd.npz'}"


def test_the_verb_reads_a_model_and_the_folder_of_a_run(patterns, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = ["--set", "model.options.widths=[8, 8, 8]"]
    with pytest.warns(UserWarning, match="random weights"):
        _direct(["sensitivity", "zoo:resnet8", "--data", patterns, "--shares", "0.5", *options])
    assert "at 50%" in capsys.readouterr().out
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'[model]\nspec = "zoo:resnet8"\noptions = {{ widths = [8, 8, 8] }}\n[data]\nspec = "{patterns}"\n'
        "[train]\nepochs = 1\nlr = 0.05\n[budget]\nmacs = '60%'\n[method]\nname = 'magnitude'\n[latency]\nrepeats = 0\n"
    )
    assert main(["sensitivity", str(recipe)]) == 2
    assert "give the folder of its run" in capsys.readouterr().err
    assert main(["prune", str(recipe), "--run", "run", "--quiet"]) == 0
    assert main(["sensitivity", "run", "--only", "=layer3.0.conv1", "--out", "curves.json"]) == 0
    (curve,) = json.loads((tmp_path / "curves.json").read_text())["curves"]
    assert curve["groups"] == ["layer3.0.conv1"] and len(curve["losses"]) == len(SHARES)
    assert "layer3.0.conv1" in (tmp_path / "curves.html").read_text()


def _direct(arguments):
    """The verb itself: `main` turns warnings into lines of the log."""
    from metaprune.cli.main import parsed

    assert parsed(arguments).run() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["zoo:resnet8"], "give --data"),
        (["none.toml"], "no recipe none.toml"),
        (["zoo:resnet8", "--out", "curves.txt"], "no JSON file"),
    ],
)
def test_the_verb_refuses_in_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["sensitivity", *arguments]) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1
