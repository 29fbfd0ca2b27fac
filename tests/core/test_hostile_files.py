"""1,000 mutations of each kind of real file: it loads and behaves as before, or one error says path and next step."""

import collections
import json
import os
import random
import shutil
import warnings
from pathlib import Path

import optuna
import pytest
import torch
from mutations import mutate_json, mutate_tensors, mutated_bytes, mutated_data
from torch import nn

import metaprune as mp
from metaprune.core.errors import DataError, MetapruneError
from metaprune.core.files import SEAL
from metaprune.core.rng import Rng
from metaprune.export.inputs import example_inputs
from metaprune.export.inspect import archive_facts
from metaprune.models import create
from metaprune.protocol.artifact import Artifact
from metaprune.runs.config import RunConfig, from_dict, read_recipe
from metaprune.runs.schema import read_record
from metaprune.search.config import EvolutionConfig, SearchConfig
from metaprune.search.encoding import WidthEncoding
from metaprune.search.study import Search
from metaprune.surgery import cut
from metaprune.testing import random_plan
from metaprune.train.checkpoint import load_checkpoint, restore, save_checkpoint
from metaprune.train.history import EpochRow, History

# METAPRUNE_MUTATIONS scales the number, as for a longer run before a release
COUNT = int(os.environ.get("METAPRUNE_MUTATIONS", "1000"))
X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


class Outcomes(collections.Counter):
    """What came of every mutation; anything but the two right ends fails with the mutation's number."""

    def of(self, number, attempt, folder=None):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                attempt()
                self["same"] += 1
            except MetapruneError as error:
                text = str(error)
                assert text.strip(), number
                assert folder is None or not isinstance(error, DataError) or str(folder) in text, (number, text)
                assert not isinstance(error, DataError) or any(word in text for word in NEXT_STEPS), (number, text)
                self[type(error).__name__] += 1
            except Exception as error:
                raise AssertionError(f"mutation {number}: {type(error).__name__}: {error}") from error

    def require(self, least_refused, count=COUNT):
        assert sum(self.values()) >= count and sum(self.values()) - self["same"] >= least_refused * count, self


NEXT_STEPS = ("again", "pass ", "delete ", "load it ", "form=", "choose", "give ", "Give ")


def unsealed(data):
    """As whoever wants to be loaded would do."""
    data.pop(SEAL, None)
    data.pop("tensors_digest", None)


def small_network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.1), nn.Linear(6, 3))
    return net.eval()


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """A graph form, and a module form of a named network."""
    folder = tmp_path_factory.mktemp("archives")
    network = mp.trace(small_network(), X)
    cut(network, random_plan(network.space, 0.5, 0), form="graph")
    result = mp.prune(small_network(), X, budget="macs=60%", form="graph", progress=False)
    result.save(folder / "graph")
    mlp = create("zoo:mlp", num_classes=3)
    mlp_x = torch.zeros(2, *mlp.input_shape)
    mp.prune(mlp.eval(), mlp_x, budget="macs=5%", progress=False).save(
        folder / "module", spec="zoo:mlp", options={"num_classes": 3}
    )
    return folder, mlp_x


def test_archives(archives, tmp_path):
    """Half with digests: nothing but the same network loads. Half without: whatever loads is harmless."""
    source, mlp_x = archives
    outcomes = Outcomes()
    expected = {form: mp.load(source / form)(x).detach() for form, x in (("graph", X), ("module", mlp_x))}
    touched = {p: p.stat().st_mtime_ns for p in source.rglob("*")}
    for number in range(COUNT):
        rng = random.Random(number)
        form = "module" if number % 8 == 0 else "graph"
        folder = shutil.copytree(source / form, tmp_path / "net", dirs_exist_ok=True)
        sealed = number % 2 == 0
        if rng.random() < 0.7:
            mutate_json(folder / "network.json", rng, None if sealed else unsealed)
        else:
            mutate_tensors(folder / "model.safetensors", rng)

        def attempt(folder=folder, form=form, sealed=sealed):
            model = mp.load(folder)
            if sealed:
                assert torch.equal(model(mlp_x if form == "module" else X), expected[form])

        outcomes.of(number, attempt, folder)
        if number % 4 == 1:
            outcomes.of(number, lambda folder=folder: (example_inputs(folder), archive_facts(folder)), folder)
    outcomes.require(0.5)
    assert touched == {p: p.stat().st_mtime_ns for p in source.rglob("*")}


def test_artifacts(tmp_path):
    tensors = {"a.weight": torch.randn(4, 3), "order.0": torch.arange(4)}
    Artifact("toy", tensors, {"options": {"hidden": [4, 3]}, "space": "abc", "seconds": 1.5}).save(tmp_path / "source")
    outcomes = Outcomes()
    for number in range(COUNT):
        rng = random.Random(number)
        folder = shutil.copytree(tmp_path / "source", tmp_path / "artifact", dirs_exist_ok=True)
        if number % 2:
            mutate_json(folder / "artifact.json", rng)
        else:
            mutate_tensors(folder / "artifact.safetensors", rng)

        def attempt(folder=folder):
            again = Artifact.load(folder, "toy")
            assert again.info["options"] == {"hidden": [4, 3]} and set(again.info) == {"options", "space", "seconds"}
            assert all(torch.equal(t, tensors[n]) for n, t in again.tensors.items())

        outcomes.of(number, attempt, folder)
    outcomes.require(0.9)


def test_checkpoints(tmp_path):
    model, identity = nn.Linear(4, 3), {"config": {"lr": 0.1}, "weights": "abc"}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(X).sum().backward()
    optimizer.step()
    row = EpochRow(epoch=1, train={"loss": 1.0}, val=None, lr=0.1, seconds=1.0, samples_per_s=2.0)
    common = {"model": model, "optimizer": optimizer, "scaler": None, "identity": identity}
    save_checkpoint(tmp_path / "source", history=History([row]), **common)
    weights, outcomes = model.weight.detach().clone(), Outcomes()
    for number in range(COUNT):
        rng = random.Random(number)
        shutil.rmtree(tmp_path / "all", ignore_errors=True)
        folder = shutil.copytree(tmp_path / "source", tmp_path / "all")
        if number % 2:
            mutate_json(folder / "epoch-0001" / "checkpoint.json", rng, unsealed if number % 4 == 1 else None)
        else:
            mutate_tensors(folder / "epoch-0001" / "checkpoint.safetensors", rng)

        def attempt(folder=folder, sealed=number % 4 != 1):
            checkpoint = load_checkpoint(folder, identity)
            restore(checkpoint, model=model, optimizer=optimizer)
            with checkpoint.understood():
                history = checkpoint.history
            assert not sealed or (torch.equal(model.weight, weights) and history.rows == [row])

        outcomes.of(number, attempt)
    outcomes.require(0.7)


def test_plans():
    network = mp.trace(small_network(), X)
    plan = random_plan(network.space, 0.5, 0)
    outcomes = Outcomes()
    for number in range(COUNT):
        data = mutated_data(plan.to_dict(), random.Random(number))

        def attempt(data=data):
            again = mp.Plan.from_dict(data)
            again.check(network.space)
            assert all(type(i) is int for channels in again.keep.values() for i in channels)

        outcomes.of(number, attempt)
    outcomes.require(0.3)


RECIPE = """seed = 3
[model]
spec = "zoo:resnet8"
options = { num_classes = 10 }
[budget]
macs = "50%"
[data]
spec = "builtin:digits"
[train]
epochs = 2
"""


def test_configs_and_records(tmp_path):
    """config.json, record.json and TOML recipes."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)
    config = read_recipe(recipe).to_dict()
    record = mp.prune(small_network(), X, budget="macs=60%", progress=False).record
    outcomes = Outcomes()
    for number in range(COUNT):
        rng = random.Random(number)
        path = tmp_path / ("config.json" if number % 3 else "record.json")
        path.write_text(json.dumps(config if number % 3 else {**record, "config": config}))
        mutate_json(path, rng)

        def attempt(path=path):
            if path.name == "record.json":
                read_record(path)
            assert isinstance(read_recipe(path), RunConfig)

        outcomes.of(number, attempt)
        if number % 3 == 2:
            recipe.write_bytes(mutated_bytes(RECIPE.encode(), rng))
            outcomes.of(number, lambda: read_recipe(recipe))
    outcomes.require(0.3)
    assert from_dict(RunConfig, config).to_dict() == config


def test_studies(tmp_path, monkeypatch):
    """A finished search that goes on from a damaged journal or database."""
    monkeypatch.setattr("metaprune.search.storage._PAUSES_S", ())
    network = mp.trace(nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 3)), X)
    config = SearchConfig(searcher="random", evolution=EvolutionConfig(population=2, generations=2, parents=2))
    bounds = {"macs": 0.7 * network.cost().macs}

    def search(url):
        codec = WidthEncoding(network.space)
        found = Search(codec, network.cost_model(), [bounds], config, Rng(0), storage=url)
        return found.run(lambda widths: {"score": float(widths.sum())})

    source = tmp_path / "source.log"
    assert search(f"journal:{source}")
    lines, outcomes = source.read_text().splitlines(), Outcomes()
    optuna.logging.disable_default_handler()
    for number in range(COUNT // 40):  # Optuna writes and locks a file in each: a fifth of a second
        rng, path = random.Random(number), Path(tmp_path / f"study-{number}.log")
        if number % 2:
            path.write_bytes(mutated_bytes(source.read_bytes(), rng))
        else:
            at = rng.randrange(len(lines))
            line = json.dumps(mutated_data(json.loads(lines[at]), rng))
            path.write_text("\n".join([*lines[:at], line, *lines[at + 1 :], ""]))

        def attempt(path=path):
            assert all(candidate.load <= 1 for candidate in search(f"journal:{path}"))

        outcomes.of(number, attempt)
        path.unlink(missing_ok=True)
    outcomes.require(0.1, COUNT // 40)
