"""Real files of the product, changed in one place: values, keys, types, bytes, sizes, tensors."""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from attempt import Attempt
from material import ARRAYS, X, classes_data, small_network
from mutations import mutate_json, mutate_tensors, mutated_bytes, mutated_data, places
from torch import nn

import metaprune as mp
from metaprune.core.files import SEAL
from metaprune.export.inputs import example_inputs
from metaprune.export.inspect import archive_facts
from metaprune.protocol.artifact import Artifact
from metaprune.runs.config import read_recipe
from metaprune.runs.schema import read_record
from metaprune.train.checkpoint import load_checkpoint, restore, save_checkpoint
from metaprune.train.history import EpochRow, History

FIRST_SEED = 1_000_000  # the tests' mutations begin at 0: these are others
SIZES = (2**40, 2**63, -(2**40), 10**18)


def unsealed(data: dict[str, Any]) -> None:
    """Drop the digests, as whoever wants to be loaded would do."""
    data.pop(SEAL, None)
    data.pop("tensors_digest", None)


def resized(path: Path, rng: random.Random) -> None:
    """Replace one whole number of a JSON file by a size that nothing has; without digests."""
    data = json.loads(path.read_text())
    unsealed(data)
    spots = []
    for where, key in places(data):
        held = data
        for part in where:
            held = held[part]
        if type(held[key]) is int:
            spots.append((held, key))
    held, key = rng.choice(spots)
    held[key] = rng.choice(SIZES)
    path.write_text(json.dumps(data))


def archives(tmp: Path) -> Iterator[Attempt]:
    """`network.json` and `model.safetensors` of a graph form; with digests nothing but the same network loads."""
    source = tmp / "source"
    mp.prune(small_network(), X, budget="macs=60%", form="graph", progress=False).save(source)
    expected = mp.load(source)(X).detach()
    for number in range(400):
        rng = random.Random(FIRST_SEED + number)
        sealed, sized = number % 2 == 0, number % 4 == 1

        def call(rng: random.Random = rng, sealed: bool = sealed, sized: bool = sized) -> str | None:
            folder = shutil.copytree(source, tmp / "net", dirs_exist_ok=True)
            if sized:
                resized(folder / "network.json", rng)
            elif rng.random() < 0.6:
                mutate_json(folder / "network.json", rng, None if sealed else unsealed)
            else:
                mutate_tensors(folder / "model.safetensors", rng)
            for read in (archive_facts, example_inputs) if not sealed else ():
                _tolerating_refusals(lambda read=read: read(folder))
            model = mp.load(folder)
            if sealed and not torch.equal(model(X), expected):
                return "loads as another network"
            if sized:
                _runs_or_raises(model)
            return None

        yield Attempt(f"mutation {FIRST_SEED + number}", call, names=(str(tmp / "net"),))


def _tolerating_refusals(call: Callable[[], Any]) -> None:
    try:
        call()
    except mp.MetapruneError as error:
        assert len(str(error).splitlines()) == 1, error


def _runs_or_raises(model: nn.Module) -> None:
    """Whoever drops the digests gets another network, but none that takes the machine with it."""
    try:
        model(X)
    except mp.MetapruneError as error:
        assert len(str(error).splitlines()) == 1, error
    except RuntimeError as error:
        assert "allocate" not in str(error), error


def plans(tmp: Path) -> Iterator[Attempt]:
    """`plan.json`: only whole channel numbers of the network's own groups."""
    network = mp.trace(small_network(), X)
    plan = mp.prune(small_network(), X, budget="macs=60%", progress=False).plan.to_dict()
    for number in range(200):

        def call(number: int = number) -> str | None:
            again = mp.Plan.from_dict(mutated_data(plan, random.Random(FIRST_SEED + number)))
            pruned = mp.cut(network, again)
            exact = all(type(i) is int for channels in again.keep.values() for i in channels)
            return None if exact and pruned.error is not None else "cut without a proof, or by other numbers"

        yield Attempt(f"mutation {FIRST_SEED + number}", call)


def artifacts(tmp: Path) -> Iterator[Attempt]:
    """`artifact.json` and `artifact.safetensors`: intact, or refused."""
    tensors = {"a.weight": torch.randn(4, 3), "order.0": torch.arange(4)}
    info = {"options": {"hidden": [4, 3]}, "space": "abc", "seconds": 1.5}
    Artifact("toy", tensors, info).save(tmp / "source")
    for number in range(150):

        def call(number: int = number) -> str | None:
            rng = random.Random(FIRST_SEED + number)
            folder = shutil.copytree(tmp / "source", tmp / "artifact", dirs_exist_ok=True)
            mutate = mutate_json if number % 2 else mutate_tensors
            mutate(folder / ("artifact.json" if number % 2 else "artifact.safetensors"), rng)
            again = Artifact.load(folder, "toy")
            same = all(torch.equal(t, tensors[n]) for n, t in again.tensors.items())
            return None if same and again.info == info else "loads as another artifact"

        yield Attempt(f"mutation {FIRST_SEED + number}", call, names=(str(tmp / "artifact"),))


def checkpoints(tmp: Path) -> Iterator[Attempt]:
    """A training checkpoint, half of them without digests."""
    model, identity = nn.Linear(4, 3), {"config": {"lr": 0.1}, "weights": "abc"}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(X).sum().backward()
    optimizer.step()
    row = EpochRow(epoch=1, train={"loss": 1.0}, val=None, lr=0.1, seconds=1.0, samples_per_s=2.0)
    parts = {"model": model, "optimizer": optimizer, "scaler": None, "identity": identity}
    save_checkpoint(tmp / "source", history=History([row]), **parts)
    weight = model.weight.detach().clone()
    for number in range(200):

        def call(number: int = number) -> str | None:
            rng = random.Random(FIRST_SEED + number)
            shutil.rmtree(tmp / "all", ignore_errors=True)
            folder = shutil.copytree(tmp / "source", tmp / "all")
            if number % 4 == 3:
                resized(folder / "epoch-0001" / "checkpoint.json", rng)
            elif number % 2:
                mutate_json(folder / "epoch-0001" / "checkpoint.json", rng, unsealed)
            else:
                mutate_tensors(folder / "epoch-0001" / "checkpoint.safetensors", rng)
            checkpoint = load_checkpoint(folder, identity)
            restore(checkpoint, model=model, optimizer=optimizer)
            with checkpoint.understood():
                history = checkpoint.history
            whole = torch.equal(model.weight, weight) and history.rows == [row]
            return None if number % 2 or whole else "restores another state"

        yield Attempt(f"mutation {FIRST_SEED + number}", call)


RECIPE = """seed = 3
rounds = 2
compensate = "least-squares"
[model]
spec = "zoo:resnet8"
options = { num_classes = 10 }
[budget]
macs = "50%"
[data]
spec = "builtin:digits"
[method]
name = "activation"
options = { allocate = "sensitivity", samples = 64 }
[train]
epochs = 2
"""


def configs(tmp: Path) -> Iterator[Attempt]:
    """Recipes, `config.json` and `record.json`: a config that can be written and read again, or refused."""
    recipe = tmp / "recipe.toml"
    recipe.write_text(RECIPE)
    config = read_recipe(recipe).to_dict()
    record = mp.prune(small_network(), X, data=classes_data(), budget="macs=60%", progress=False).record
    written = {"config.json": config, "record.json": {**record, "config": config}}
    for number in range(300):

        def call(number: int = number) -> str | None:
            rng = random.Random(FIRST_SEED + number)
            name = ("config.json", "record.json", "recipe.toml")[number % 3]
            if name == "recipe.toml":
                (tmp / name).write_bytes(mutated_bytes(RECIPE.encode(), rng))
            else:
                (tmp / name).write_text(json.dumps(copy.deepcopy(written[name])))
                mutate_json(tmp / name, rng)
            if name == "record.json":
                read_record(tmp / name)
            again = read_recipe(tmp / name).to_dict()
            return None if json.loads(json.dumps(again)) == again else "cannot be written again"

        yield Attempt(f"mutation {FIRST_SEED + number}", call)


def npz_bytes(tmp: Path) -> Iterator[Attempt]:
    """A data file with a byte or the header changed."""
    import numpy as np

    np.savez(tmp / "source.npz", **ARRAYS)
    data = (tmp / "source.npz").read_bytes()
    headers = [i for i in range(len(data)) if data.startswith(b"'shape': (", i)]
    for number in range(150):

        def call(number: int = number) -> str | None:
            rng, changed = random.Random(FIRST_SEED + number), bytearray(data)
            if number % 2:
                at = rng.choice(headers) + rng.randrange(-40, 30)
                changed[at] = rng.choice(b"0123456789(),'{}x<>|fiOV")
            else:
                changed = bytearray(mutated_bytes(data, rng))
            (tmp / "d.npz").write_bytes(changed)
            loaded = mp.load_data(f"npz:{tmp / 'd.npz'}")
            return None if len(loaded.train) > 0 else "an empty training split"

        yield Attempt(f"mutation {FIRST_SEED + number}", call, names=("d.npz",))
