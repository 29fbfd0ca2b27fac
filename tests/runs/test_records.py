"""Records: a schema that is checked, everything that was asked for, and the same run again from the record alone."""

import json

import pytest
import torch
from torch import nn

import metaprune as mp
from metaprune.core.errors import ConfigError, DataError
from metaprune.core.strict import from_dict
from metaprune.recover.config import RecoverConfig
from metaprune.runs.config import RunConfig, read_recipe
from metaprune.runs.prune import prune
from metaprune.runs.replay import replay, replay_run
from metaprune.runs.run import run
from metaprune.runs.schema import SCHEMA, Record, read_record, upgraded
from metaprune.testing.method_suite import small_data, small_network
from metaprune.train.config import TrainConfig
from metaprune.values import Constraints

pytestmark = pytest.mark.filterwarnings("ignore")
EXAMPLE = torch.zeros(2, 1, 28, 28)
RECIPE = {
    "model": {"spec": "zoo:resnet8", "options": {"width": 0.25}},
    "data": {"spec": "builtin:digits", "limit": 200},
    "train": {"epochs": 1, "batch_size": 64, "lr": 0.05},
    "budget": {"macs": "60%"},
    "method": {"name": "taylor", "options": {"batches": 1}},
    "constraints": {"min_keep": 2},
    "recover": {"kind": "finetune", "train": {"epochs": 1, "batch_size": 64}},
    "latency": {"repeats": 0},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "first"
    return run(from_dict(RunConfig, RECIPE), folder, progress=False), folder


def comparable(record):
    """What has to be equal in a repeated run: everything but times, dates and the command."""
    drop = {"created", "seconds", "command", "samples_per_s", "config", "method_details"}

    def stripped(value):
        if isinstance(value, dict):
            return {k: stripped(v) for k, v in value.items() if k not in drop}
        return [stripped(v) for v in value] if isinstance(value, list) else value

    return stripped(json.loads(json.dumps(record)))


def test_a_record_holds_what_was_asked_for_with_defaults(finished):
    record, folder = finished
    assert record["schema"] == SCHEMA and set(record) == set(Record.__dataclass_fields__)
    assert record == read_record(folder / "record.json")
    assert record["method_options"]["batches"] == 1 and record["method_options"]["scope"] == "global"
    assert record["constraints"]["min_keep"] == 2 and record["constraints"]["round_to"] == 1
    assert record["recover"]["kind"] == "finetune" and record["recover"]["train"]["momentum"] == 0.9
    assert record["objective"]["kind"] == "classification" and record["objective"]["primary"]["name"] == "accuracy"
    config = json.loads((folder / "config.json").read_text())
    assert config["method"]["options"]["scope"] == "global"


def test_a_run_repeats_from_its_record_alone(finished, tmp_path):
    record, folder = finished
    again = replay_run(json.loads((folder / "record.json").read_text()), tmp_path / "again", progress=False)
    assert comparable(again) == comparable(record)
    same = [(place / "model.safetensors").read_bytes() for place in (folder, tmp_path / "again")]
    assert same[0] == same[1]
    assert read_recipe(folder / "record.json") == read_recipe(folder / "config.json") == from_dict(RunConfig, RECIPE)


def test_a_call_of_prune_repeats_from_its_record_and_what_a_record_cannot_hold():
    model, data = small_network("cnn"), small_data()
    first = prune(
        model,
        EXAMPLE,
        budget="macs=60%",
        method="taylor",
        method_options={"batches": 1},
        data=data,
        recover=RecoverConfig(train=TrainConfig(epochs=1, batch_size=32)),
        constraints=Constraints(round_to=2),
        seed=3,
        progress=False,
    )
    again = replay(json.loads(json.dumps(first.record)), model, EXAMPLE, data=data, progress=False)
    assert comparable(again.record) == comparable(first.record) and again.plan == first.plan
    other = replay(first.record, model, EXAMPLE, data=data, seed=4, recover="none", progress=False)
    assert other.record["seed"] == 4 and other.record["recovery"] is None
    with pytest.raises(ConfigError, match=r"metaprune\.replay"):
        replay_run(first.record, "nowhere")


def test_a_loop_of_ones_own_is_recorded_as_such():
    seen = []

    def loop(model, data):
        seen.append(data)
        with torch.no_grad():
            next(model.parameters()).mul_(0.5)

    model, data = small_network("cnn"), small_data()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    result = prune(model, EXAMPLE, budget="macs=60%", data=data, recover=loop, progress=False)
    assert seen == [data] and result.record["recovery"]["kind"] == result.record["recover"]["kind"] == "own loop"
    assert result.record["quality"]["recovered"] != result.record["quality"]["cut"]
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    with pytest.raises(ConfigError, match=r"pass recover="):
        replay(result.record, model, EXAMPLE, data=data)
    assert replay(result.record, model, EXAMPLE, data=data, recover=loop, progress=False).plan == result.plan
    without = prune(small_network("cnn"), EXAMPLE, budget="macs=60%", recover=loop, progress=False)
    assert seen[-1] is None and without.record["quality"] is None

    def grow(model, data):
        next(m for m in model.modules() if isinstance(m, nn.Conv2d)).weight = nn.Parameter(torch.zeros(1, 1, 1, 1))

    with pytest.raises(ConfigError, match="shapes or names"):
        prune(small_network("cnn"), EXAMPLE, budget="macs=60%", recover=grow, form="module", progress=False)


def test_constraints_are_an_object_or_keywords():
    model = small_network("cnn")
    whole = prune(model, EXAMPLE, budget="macs=60%", constraints=Constraints(round_to=4), progress=False)
    parts = prune(model, EXAMPLE, budget="macs=60%", round_to=4, progress=False)
    assert whole.plan == parts.plan and whole.record["constraints"] == parts.record["constraints"]
    with pytest.raises(ConfigError, match="exclude each other"):
        prune(model, EXAMPLE, budget="macs=60%", constraints=Constraints(), round_to=4)
    with pytest.raises(ConfigError, match="no Constraints"):
        prune(model, EXAMPLE, budget="macs=60%", constraints={"round_to": 4})


def test_older_newer_and_damaged_records(tmp_path):
    old = {
        "quality": None,
        "history": {
            "recover": {
                "rows": [
                    {
                        "epoch": 1,
                        "train_loss": 0.5,
                        "train_accuracy": 0.8,
                        "val_loss": None,
                        "val_accuracy": None,
                        "lr": 0.1,
                        "seconds": 1.0,
                        "samples_per_s": 2.0,
                    }
                ]
            }
        },
    }
    new = upgraded(old)
    assert new["schema"] == SCHEMA and new["objective"] is None
    assert new["history"]["recover"]["rows"][0] == {
        "epoch": 1,
        "lr": 0.1,
        "seconds": 1.0,
        "samples_per_s": 2.0,
        "train": {"loss": 0.5, "accuracy": 0.8},
        "val": None,
    }
    with pytest.raises(ConfigError, match="recorded no options"):
        replay(old, small_network("cnn"), EXAMPLE)
    with pytest.raises(ConfigError, match="install a newer one"):
        upgraded({"schema": SCHEMA + 1})
    (tmp_path / "record.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        read_record(tmp_path / "record.json")
    (tmp_path / "record.json").write_text("[]")
    with pytest.raises(DataError, match="no record"):
        read_record(tmp_path / "record.json")
    with pytest.raises(ConfigError, match="no "):
        read_record(tmp_path / "nothing.json")


def test_own_outputs_cannot_be_trained_on(tmp_path):
    config = from_dict(RunConfig, {**RECIPE, "objective": {"kind": "match_outputs"}})
    with pytest.raises(ConfigError, match="nothing to train"):
        run(config, tmp_path / "run", progress=False)


def test_an_impossible_budget_under_keep_module_shows_before_training(tmp_path, monkeypatch):
    import metaprune.runs.run as module

    monkeypatch.setattr(module, "train", lambda *_, **__: pytest.fail("trained"))
    recipe = {**RECIPE, "constraints": {"keep_module": True, "min_keep": 16}, "budget": {"macs": "0.5%"}}
    with pytest.raises(mp.MetapruneError, match=r"smallest|budget"):
        run(from_dict(RunConfig, recipe), tmp_path / "run", progress=False)


def test_a_method_of_classes_refuses_other_objectives_by_name():
    x = torch.randn(32, 1, 28, 28)
    loaders = [torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, x.mean((1, 2, 3))), 16) for _ in range(2)]
    with pytest.raises(ConfigError, match=r"'stamp' is for data with classes.*objective 'regression'"):
        prune(small_network("cnn"), EXAMPLE, budget="params=50%", method="stamp", data=loaders, objective="regression")


def test_the_record_and_the_log_say_which_groups_a_pattern_names(caplog):
    model = small_network("cnn")
    space = mp.trace(model, torch.zeros(2, 1, 28, 28)).space
    first, last = space.groups[0].name, space.groups[-1].name
    limits = mp.Constraints(ignore=(f"={first}",), ratios={f"={last}": 0.5}, min_keep={"*": 2})
    with caplog.at_level("INFO", logger="metaprune"):
        result = mp.prune(model, torch.zeros(2, 1, 28, 28), budget="macs=70%", method="uniform", constraints=limits)
    patterns = result.record["space"]["patterns"]
    assert patterns[f"ignore ={first}"] == [first] and patterns[f"ratio ={last}"] == [last]
    assert patterns["min_keep *"] == [g.name for g in space]
    assert f"ignore ={first}: 1 group, {first}" in caplog.text
