"""A zoo of small trained networks, one after the other reproducible from (seed, number): made, kept and read.

Network `number` is of family `number % 6`; each family goes through the data sets, and four of five are to learn from.
A network is two files: its weights, and JSON that says what it is. The second is last: it marks the network as whole.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from metaprune.core.errors import ConfigError
from metaprune.core.files import digest_of, tensors_digest, write_sealed, write_tensors
from metaprune.core.read import read_json, read_tensors, require_seal, understood
from metaprune.core.rng import Rng
from metaprune.core.tensors import named_tensors
from metaprune.data import Data, load_data
from metaprune.methods.metagraph.zoo_networks import FAMILIES, IMAGE_SIZE, build_network
from metaprune.protocol.method import PruneTask
from metaprune.tracing import trace
from metaprune.train.config import TrainConfig
from metaprune.train.evaluate import evaluate
from metaprune.train.loop import train

DATA = ("digits", "fashion-mnist", "emoji", "animal-shapes")
TRAIN_SAMPLES = 3000
SGD = TrainConfig(epochs=3, lr=0.1, batch_size=64, augment=False)
ADAMW = TrainConfig(epochs=12, optimizer="adamw", lr=2e-3, batch_size=64, weight_decay=0.05, augment=False)
Part = Literal["train", "val", "test"]
PARTS: tuple[Part, ...] = ("train", "train", "train", "val", "test")


@dataclass(frozen=True)
class ZooNetwork:
    """A trained network of the zoo.

    Attributes:
        number: its place in the zoo.
        part: learned from, chosen by, or judged by.
        accuracy: on the validation split of its data.
    """

    number: int
    family: str
    data: str
    part: Part
    options: dict[str, Any]
    accuracy: float
    model: nn.Module

    def task(self) -> PruneTask:
        """Trace it, as a task with its data."""
        return PruneTask(trace(self.model, torch.zeros(2, 1, IMAGE_SIZE, IMAGE_SIZE)), zoo_data(self.data))


@cache
def zoo_data(name: str) -> Data:
    """Load a built-in set as grey images of 16 pixels, at most 3,000 of them to train on."""
    return load_data(f"builtin:{name}", image_size=IMAGE_SIZE, channels=1, limit=TRAIN_SAMPLES)


def make_zoo(folder: Path, networks: int, seed: int, workers: int, say: Callable[[str], None]) -> None:
    """Train the networks that `folder` does not hold yet, `workers` at once.

    Raises:
        ConfigError: the folder holds networks of another seed. DataMissingError: a data set is not in the cache.
    """
    for name in DATA:
        zoo_data(name)
    left = [n for n in range(networks) if not _is_whole(folder, n, seed)]
    say(f"{networks - len(left)} of {networks} networks are there")
    folders, seeds = [folder] * len(left), [seed] * len(left)
    if workers == 1:
        for told in map(_make, folders, left, seeds):
            say(told)
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        for told in pool.map(_make, folders, left, seeds):
            say(told)


def read_zoo(folder: Path) -> list[ZooNetwork]:
    """Read all whole networks of a zoo, in their order.

    Raises:
        ConfigError: there is none. DamagedFileError: a damaged file.
    """
    return [_read(path, described) for path, described in _descriptions(folder)]


def zoo_digest(folder: Path) -> str:
    """Digest of the weights of all networks of a zoo, as their descriptions hold them.

    Raises:
        ConfigError: there is none. DamagedFileError: a damaged description.
    """
    return digest_of([[described["number"], described["tensors_digest"]] for _, described in _descriptions(folder)])


def _descriptions(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    paths = sorted(folder.glob("[0-9]*.json"))
    if not paths:
        raise ConfigError(f"{folder} holds no zoo: make one with `metaprune zoo make --out {folder}`")
    return [(path, require_seal(path, read_json(path, remedy=_remedy(path)), _remedy(path))) for path in paths]


def _remedy(path: Path) -> str:
    return f"delete {path} and make the zoo again"


def _described(number: int, seed: int) -> dict[str, Any]:
    """What network `number` is, before it is trained."""
    turn, family = number // len(FAMILIES), list(FAMILIES)[number % len(FAMILIES)]
    options = FAMILIES[family].draw(_rng(number, seed).child("sizes").numpy())
    data, part = DATA[turn % len(DATA)], PARTS[turn % len(PARTS)]
    return {"number": number, "seed": seed, "family": family, "data": data, "part": part, "options": options}


def _rng(number: int, seed: int) -> Rng:
    return Rng(seed).child("zoo", number)


def _make(folder: Path, number: int, seed: int) -> str:
    """Train one network and write it; returns a line that tells of it."""
    torch.set_num_threads(1)
    described, rng = _described(number, seed), _rng(number, seed)
    data, family = zoo_data(described["data"]), described["family"]
    with rng.child("weights").torch_global():
        model = build_network(family, described["options"], data.num_classes)
    config = SGD if any(isinstance(m, nn.BatchNorm2d) for m in model.modules()) else ADAMW
    train(model, data, config, rng=rng.child("train"), progress=False)
    accuracy = evaluate(model, data.val, objective=data.objective)["accuracy"]
    tensors = named_tensors(model)[0]
    write_tensors(folder / f"{number:04}.safetensors", tensors)
    path = folder / f"{number:04}.json"
    write_sealed(path, {**described, "accuracy": round(accuracy, 4), "tensors_digest": tensors_digest(tensors)})
    return f"{path.stem}: {family} on {data.name}, accuracy {accuracy:.1%}"


def _is_whole(folder: Path, number: int, seed: int) -> bool:
    path = folder / f"{number:04}.json"
    if not path.is_file():
        return False
    if read_json(path, remedy=f"delete {path}").get("seed") != seed:
        raise ConfigError(f"{folder} holds networks of another seed than {seed}: give that one, or another folder")
    return True


def _read(path: Path, described: dict[str, Any]) -> ZooNetwork:
    remedy, weights = _remedy(path), path.with_suffix(".safetensors")
    tensors = read_tensors(weights, remedy=remedy, digest=described["tensors_digest"])
    with understood(str(path), remedy):
        classes = zoo_data(described["data"]).num_classes
        model = build_network(described["family"], described["options"], classes)
        model.load_state_dict(tensors)
        kept = ("number", "family", "data", "part", "options", "accuracy")
        return ZooNetwork(**{name: described[name] for name in kept}, model=model.eval())
