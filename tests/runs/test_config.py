"""Recipes: strict, replayable."""

import json

import pytest

from metaprune.core.errors import ConfigError
from metaprune.methods.stamp.method import Stamp
from metaprune.runs.config import RunConfig, from_dict, override, read_recipe

GOOD = """
seed = 3
[model]
spec = "zoo:resnet8"
options = { widths = [8, 16, 32] }
[data]
spec = "builtin:digits"
[train]
epochs = 2
[budget]
macs = "50%"
params = 1000
[method]
name = "taylor"
options = { steps = 2 }
[constraints]
ignore = ["conv1"]
ratios = { layer1 = 0.5 }
[recover]
kind = "distil"
train = { lr = 0.01 }
"""


def write(tmp_path, text):
    path = tmp_path / "r.toml"
    path.write_text(text)
    return path


def test_a_recipe_reads_and_replays(tmp_path):
    config = read_recipe(write(tmp_path, GOOD), {"train.epochs": 5, "method.options.batches": 3})
    assert config.train.epochs == 5.0
    assert config.method.options == {
        "scope": "global",
        "allocate": "criterion",
        "steps": 2,
        "normalise": "mean",
        "batches": 3,
    }
    assert config.constraints.ignore == ("conv1",)
    assert config.recover.train.lr == 0.01
    assert from_dict(RunConfig, json.loads(json.dumps(config.to_dict()))) == config
    assert from_dict(RunConfig, config.to_dict()).digest() == config.digest()


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("epochs = 2", "epoch = 2", "unknown key train.epoch. Did you mean 'epochs'"),
        ("[budget]", "[budgets]", "unknown key budgets. Did you mean 'budget'"),
        ("seed = 3", 'seed = "three"', "seed='three' must be int"),
        ('kind = "distil"', 'kind = "distill"', "Did you mean 'distil'"),
        ('macs = "50%"', 'macs = "half"', "neither a number nor a share"),
        ('spec = "zoo:resnet8"', "", "key model.spec is missing"),
        ("seed = 3", "seed = ", "not valid TOML"),
        ("epochs = 2", "epochs = -2", "epochs"),
        ("layer1 = 0.5", "layer1 = 1.5", "give a number in"),
        ("layer1 = 0.5", 'layer1 = "half"', "constraints.ratios.layer1='half' must be float"),
        ("seed = 3", "latency = { repeats = -1 }", "latency.repeats=-1"),
        ("seed = 3", "latency = { batch_size = 0 }", "latency.batch_size=0"),
        ('spec = "zoo:resnet8"', 'spec = "zoo:resnet8"\ninput_shape = [3, -1, 32]', "model.input_shape=-1"),
    ],
)
def test_mistakes_are_named(tmp_path, before, after, message):
    assert before in GOOD
    with pytest.raises(ConfigError, match=message):
        read_recipe(write(tmp_path, GOOD.replace(before, after, 1)))


def test_a_missing_recipe_names_the_closest(tmp_path):
    write(tmp_path, GOOD).rename(tmp_path / "resnet.toml")
    with pytest.raises(ConfigError, match="Did you mean 'resnet'"):
        read_recipe(tmp_path / "resnt.toml")


def test_recovery_without_data_is_refused():
    with pytest.raises(ConfigError, match="need data"):
        from_dict(RunConfig, {"model": {"spec": "x"}, "budget": {"macs": 1}, "recover": {"kind": "bn"}})


def test_override_does_not_change_its_input():
    data = {"a": {"b": 1}}
    assert override(data, {"a.b": 2, "c.d": 3}) == {"a": {"b": 2}, "c": {"d": 3}}
    assert data == {"a": {"b": 1}}
    with pytest.raises(ConfigError, match="not a table"):
        override(data, {"a.b.c": 1})


def test_a_list_of_another_length_than_the_option_has_is_refused():
    with pytest.raises(ConfigError, match=r"shares=\[0\.5\] must be a list of 2 values"):
        from_dict(Stamp, {"shares": [0.5]}, "stamp")
