"""Cut my domain out of a network for four: what masks of a domain's own gain, and a target's network in seconds.

    metaprune data get digits fashion-mnist emoji glyphs animal-shapes
    python benchmarks/stamp/domains.py --out benchmarks/stamp/domains.json

One ResNet-8 is trained on four domains at once. headroom: on each, masks of its own and of others, of one width each,
right after the cut and after some steps (`metaprune.methods.stamp.headroom`), validation accuracy. targets: the four
domains and two that the network never saw; without a gradient step (`adapt --steps 0`) beside training, test accuracy,
seconds and MACs. Killed and started again, it goes on. No generator is trained here.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import json
import math
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from script import armenian
from torch import nn

import metaprune as mp
from metaprune.core.rng import Rng
from metaprune.data import load_data
from metaprune.data.types import NO_SAMPLES
from metaprune.methods import create_method
from metaprune.methods.stamp.headroom import measure
from metaprune.models import create
from metaprune.protocol.method import PruneTask
from metaprune.train.evaluate import evaluate
from metaprune.train.loop import train

DOMAINS = ("builtin:digits", "builtin:fashion-mnist", "builtin:emoji", "builtin:glyphs")
UNSEEN = ("builtin:animal-shapes", "armenian")
SHAPE = {"image_size": 28, "channels": 3}
REFERENCE = mp.TrainConfig(epochs=8, batch_size=64, lr=0.1)
IMAGES, TESTED, STEPS, BATCH = 600, 1000, 200, 64
TUNE = mp.TrainConfig(batch_size=BATCH, lr=0.03)
SHARES = (0.25, 0.1)


class Study:
    def __init__(self, out: Path, reference: Path):
        self.out = out
        self.rows: dict[str, Any] = json.loads(out.read_text())["rows"] if out.exists() else {}
        self.joined = load_data("join:" + "+".join(DOMAINS), limit=4000, **SHAPE)
        with Rng(0).torch_global():
            self.model = create("zoo:resnet8", num_classes=self.joined.num_classes, in_channels=3)
        if reference.exists():
            self.model.load_state_dict(torch.load(reference, weights_only=True))
        else:
            train(self.model, self.joined, REFERENCE, rng=Rng(0), progress=False)
            torch.save(self.model.state_dict(), reference)
        self.model.eval()

    def once(self, key: str, make: Callable[[], dict[str, Any]]) -> None:
        if key not in self.rows:
            began = time.process_time()
            row = make()
            self.rows[key] = {"cpu_s": round(time.process_time() - began, 2), **row}
            config = {
                "network": "zoo:resnet8",
                "domains": DOMAINS,
                "images": IMAGES,
                "tested": TESTED,
                "steps": STEPS,
                "tune": dataclasses.asdict(TUNE),
                "torch": torch.__version__,
                "python": platform.python_version(),
                "threads": torch.get_num_threads(),
            }
            self.out.write_text(json.dumps({"config": config, "rows": self.rows}, indent=1) + "\n")
            print(key, self.rows[key], flush=True)

    def headroom(self) -> None:
        task = PruneTask(mp.trace(self.model, torch.zeros(2, 3, 28, 28)), self.joined, batch_size=BATCH)
        for share in SHARES:
            self.once(
                f"headroom/{share:g}",
                lambda share=share: measure(task, self.joined.domains, share, "params", Rng(0).child("headroom")),
            )

    def targets(self, seed: int) -> None:
        for name in (*DOMAINS, *UNSEEN):
            data = armenian(seed=seed, limit=IMAGES, **SHAPE) if name == "armenian" else self._target(name, seed)
            self._one_target(name.removeprefix("builtin:"), dataclasses.replace(data, val=NO_SAMPLES), seed)

    def _one_target(self, name: str, data: mp.Data, seed: int) -> None:
        data = dataclasses.replace(data, test=data.test.take(TESTED))
        network = self._with_classes(data.num_classes)

        @functools.cache
        def dense() -> Any:
            return self._trained(copy.deepcopy(network.model), data, seed)

        def full() -> dict[str, Any]:
            model, macs, cpu_s = dense()
            return {"accuracy": self._accuracy(model, data), "macs": macs, "cpu_s": round(cpu_s, 2)}

        self.once(f"full network, trained/{name}/1/{seed}", full)
        for share in SHARES:
            for label, make in (
                ("closed form", lambda share: self._closed_form(network, data, share, seed, steps=0)),
                ("closed form, trained", lambda share: self._closed_form(network, data, share, seed, STEPS)),
                ("train, Taylor, train", lambda share: self._train_prune_train(dense(), data, share, seed)),
            ):
                self.once(f"{label}/{name}/{share:g}/{seed}", functools.partial(make, share))

    def _target(self, name: str, seed: int) -> mp.Data:
        return load_data(name, seed=seed, limit=IMAGES, **SHAPE)

    def _with_classes(self, classes: int) -> mp.Network:
        """The reference network with a new head."""
        model = create("zoo:resnet8", num_classes=classes, in_channels=3)
        old = {n: t for n, t in self.model.state_dict().items() if not n.startswith("linear.")}
        model.load_state_dict(old, strict=False)
        nn.init.zeros_(model.linear.weight)
        nn.init.zeros_(model.linear.bias)
        return mp.trace(model.eval(), torch.zeros(2, 3, 28, 28))

    def _closed_form(self, network: mp.Network, data: mp.Data, share: float, seed: int, steps: int) -> dict[str, Any]:
        task = PruneTask(network, data, batch_size=BATCH)
        found = create_method("stamp", {"adapt_steps": 0}).propose(task, self._budget(network, share), Rng(seed))
        model = mp.cut(network, found.plan, weights=found.weights, verify=False).model
        images, full = len(data.train), network.cost().macs
        small = network.cost(found.plan).macs
        features, taylor, solving = full, 3 * full, full + small
        macs = images * (features + taylor + solving + small)  # small: the features of the cut network
        if steps:
            model, more, _ = self._trained(model, data, seed, small)
            macs += more
        return {"accuracy": self._accuracy(model, data), "macs": macs}

    def _train_prune_train(self, dense: Any, data: mp.Data, share: float, seed: int) -> dict[str, Any]:
        model, macs, cpu_s = dense
        began = time.process_time()
        network = mp.trace(model.eval(), torch.zeros(2, 3, 28, 28))
        task = PruneTask(network, data, batch_size=BATCH)
        plan = create_method("taylor", {}).propose(task, self._budget(network, share), Rng(seed)).plan
        small = mp.cut(network, plan, verify=False).model
        small, more, _ = self._trained(small, data, seed, network.cost(plan).macs)
        spent = cpu_s + time.process_time() - began
        return {"accuracy": self._accuracy(small, data), "macs": macs + more, "cpu_s": round(spent, 2)}

    def _trained(self, model: nn.Module, data: mp.Data, seed: int, macs: float | None = None) -> Any:
        """The model after `STEPS` steps, what they cost in MACs, and CPU seconds."""
        began = time.process_time()
        macs = mp.trace(model.eval(), torch.zeros(2, 3, 28, 28)).cost().macs if macs is None else macs
        config = dataclasses.replace(TUNE, epochs=STEPS / math.ceil(len(data.train) / BATCH))
        train(model, data, config, rng=Rng(seed).child("tune"), progress=False)
        return model, 3.0 * macs * STEPS * BATCH, time.process_time() - began

    def _accuracy(self, model: nn.Module, data: mp.Data) -> float:
        return evaluate(model.eval(), data.test, objective=data.objective, batch_size=250)["accuracy"]

    @staticmethod
    def _budget(network: mp.Network, share: float) -> mp.Budget:
        return mp.Budget(params=share * network.cost().params)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--reference", type=Path, help="weights of the network for all; trained there if it is missing")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--parts", nargs="*", default=["headroom", "targets"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    study = Study(options.out, options.reference or options.out.with_suffix(".pt"))
    if "headroom" in options.parts:
        study.headroom()
    if "targets" in options.parts:
        for seed in options.seeds:
            study.targets(seed)


if __name__ == "__main__":
    main()
