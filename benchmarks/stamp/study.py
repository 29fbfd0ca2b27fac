"""Does reading the data set help? STAMP against its controls on data sets that meta-training never saw.

    metaprune fit stamp recipes/resnet8_cifar10_stamp_params25.toml --run runs/stamp
    python benchmarks/stamp/study.py runs/stamp --out benchmarks/stamp/resnet8.json

Every small network gets the same number of training steps on the same images of the target, and is judged on its test
split. Controls at STAMP's own widths, on the pretrained and on STAMP's adapted weights, tell apart what the mask adds
and what the weights add. Killed and started again, it goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

import metaprune as mp
from metaprune.data import load_data
from metaprune.methods import create_method
from metaprune.methods.artifact import Artifact
from metaprune.methods.base import Task
from metaprune.methods.magnitude import Magnitude
from metaprune.methods.stamp import Stamp
from metaprune.models import create
from metaprune.recover.config import RecoverConfig
from metaprune.rng import Rng
from metaprune.search.allocate import top
from metaprune.train.evaluate import evaluate
from metaprune.train.loop import train
from metaprune.values import Budget, Plan, Proposal

TARGETS = {"emoji": 600, "animal-shapes": 500, "mnist": 200}  # training images of each
STEPS, BATCH = 200, 64
TUNE = mp.TrainConfig(batch_size=BATCH, lr=0.05, channels_last=True)
BUDGETS = ("25%", "10%", "50%", "5%")


@dataclass(frozen=True)
class Given:
    """A method that proposes what it is given."""

    plan: Plan
    weights: Mapping[str, torch.Tensor] | None = None
    name: ClassVar[str] = "given"
    needs_data: ClassVar[bool] = False

    def propose(self, task: Task, budget: Budget, rng: Rng) -> Proposal:
        return Proposal(self.plan, self.weights)


class Study:
    def __init__(self, fitted: Path, out: Path):
        self.fitted, self.out = fitted, out
        self.rows: dict[str, Any] = json.loads(out.read_text())["rows"] if out.exists() else {}
        self.artifact = Artifact.load(fitted, Stamp.name)
        config = json.loads((fitted / "config.json").read_text())
        self.spec, self.shape = config["model"]["spec"], tuple(self.artifact.info["shape"])

    def once(self, key: str, make: Callable[[], dict[str, Any]]) -> None:
        if key in self.rows:
            return
        wall, cpu = time.perf_counter(), time.process_time()
        self.rows[key] = make() | {"seconds": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
        info = self.artifact.info
        config = {
            "network": self.spec, "shape": self.shape, "targets": TARGETS, "steps": STEPS, "batch": BATCH,
            "tune": dataclasses.asdict(TUNE), "stamp": info["options"], "conditioning": info["conditioning"],
            "meta_training": {k: info[k] for k in ("macs", "seconds", "data", "parameters")},
            "torch": torch.__version__, "python": platform.python_version(), "threads": torch.get_num_threads(),
        }  # fmt: skip
        self.out.write_text(json.dumps({"config": config, "rows": self.rows}, indent=1) + "\n")
        row = self.rows[key]
        print(key, f"{row['accuracy']:.4f} params {row['params']} cpu {row['cpu_s']:.0f} s", flush=True)

    def target(self, name: str, seed: int) -> tuple[Any, torch.nn.Module]:
        """The data, and the pretrained network with a new head."""
        limit = TARGETS[name]
        data = load_data(
            f"builtin:{name}", seed=seed, limit=limit, image_size=self.shape[1], channels=self.shape[0]
        )  # fmt: skip
        with Rng(seed).child("model").torch_global():
            model = create(
                self.spec, weights=self.fitted / "dense.safetensors", new_head=True, num_classes=data.num_classes,
                in_channels=self.shape[0],
            )  # fmt: skip
        return replace(data, val=data.val.take(64), test=data.test.take(3000)), model

    def tuned(self, data: Any) -> mp.TrainConfig:
        return replace(TUNE, epochs=STEPS / -(-len(data.train) // BATCH))

    def trained(
        self, model: torch.nn.Module, data: Any, method: Any, seed: int, kind: str = "finetune"
    ) -> dict[str, Any]:  # fmt: skip
        """Test accuracy of a plan after the one training that all get; the MACs of that training."""
        result = mp.prune(
            model, torch.zeros(2, *self.shape), budget={"params": "100%"}, method=method, data=data,
            recover=RecoverConfig(kind=kind, train=self.tuned(data)), seed=seed, progress=False,  # type: ignore[arg-type]
        )  # fmt: skip
        after = result.record["cost"]["after"]
        return {
            "accuracy": result.record["quality"]["recovered"]["accuracy"], "params": after["params"],
            "macs": after["macs"], "training_macs": 3.0 * after["macs"] * STEPS * BATCH,
        }  # fmt: skip

    # ------------------------------------------------------------------------------------------ contenders

    def run(self, name: str, budget: str, seed: int) -> None:
        data, model = self.target(name, seed)
        network = mp.trace(model, torch.zeros(2, *self.shape))
        task = Task(network, data)
        place = f"{name}/{budget}/{seed}"
        proposals = {}
        for label, steps in (("STAMP", 20), ("STAMP, no adaptation", 0)):
            began = time.process_time()
            found = Stamp(adapt_steps=steps, fitted=self.artifact).propose(task, Budget(params=budget), Rng(seed))
            spent = {
                "adapt_cpu_s": time.process_time() - began,
                "adapt_macs": sum(found.details["stamp"]["macs"].values()),
            }
            self.once(
                f"{place}/{label}",
                lambda p=found, s=spent: self.trained(model, data, Given(p.plan, p.weights), seed) | s,
            )
            proposals[label] = found
        self.controls(place, model, data, network, proposals["STAMP"], seed)
        self.once(f"{place}/train, Taylor, train", lambda: self.train_then_prune(name, budget, seed))
        self.once(
            f"{name}/100%/{seed}/full fine-tuning", lambda: self.trained(model, data, Given(Plan()), seed)
        )  # fmt: skip

    def controls(self, place: str, model: Any, data: Any, network: Any, stamp: Proposal, seed: int) -> None:
        """Other channels at STAMP's own widths, on two sets of weights; uniform widths; its structure alone."""
        space, widths = network.space, stamp.plan.widths(network.space)
        draw = np.random.default_rng(seed)
        random = Plan.of(space, [top(draw.random(g.width), int(w)) for g, w in zip(space, widths, strict=True)])
        for where, weights in (("pretrained", None), ("STAMP's", stamp.weights)):
            tensors = {**network.tensors, **(weights or {})}
            own = mp.trace(_with(model, tensors), torch.zeros(2, *self.shape))
            scores = Magnitude(p=1).scores(Task(own), Plan(), Rng(0))
            largest = Plan.of(space, [top(s, int(w)) for s, w in zip(scores, widths, strict=True)])
            for label, plan in (("random", random), ("magnitude", largest)):
                self.once(
                    f"{place}/{label}, STAMP's widths, {where} weights",
                    lambda p=plan, w=weights: self.trained(model, data, Given(p, w), seed),
                )
        self.once(
            f"{place}/STAMP's mask, pretrained weights", lambda: self.trained(model, data, Given(stamp.plan), seed)
        )
        self.once(
            f"{place}/STAMP's structure, new weights",
            lambda: self.trained(model, data, Given(stamp.plan), seed, "scratch"),
        )
        budget = Budget(params=place.split("/")[1])
        for label, method in (("magnitude, uniform widths", "uniform"), ("magnitude, global", "magnitude")):
            plan = create_method(method).propose(Task(network, data), budget, Rng(seed)).plan
            self.once(f"{place}/{label}", lambda p=plan: self.trained(model, data, Given(p), seed))

    def train_then_prune(self, name: str, budget: str, seed: int) -> dict[str, Any]:
        data, model = self.target(name, seed)
        network = mp.trace(model, torch.zeros(2, *self.shape))
        train(model, data, self.tuned(data), rng=Rng(seed).child("dense"), progress=False)
        plan = create_method("taylor").propose(Task(network, data), Budget(params=budget), Rng(seed)).plan
        full = 3.0 * network.cost().macs * BATCH * (STEPS + 10)
        return self.trained(model, data, Given(plan), seed) | {
            "dense_macs": full,
            "dense": evaluate(model, data.test).accuracy,
        }


def _with(model: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> torch.nn.Module:
    import copy

    changed = copy.deepcopy(model)
    changed.load_state_dict({n: t for n, t in tensors.items() if n in changed.state_dict()}, strict=False)
    return changed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fitted", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budgets", nargs="*", default=BUDGETS)
    parser.add_argument("--targets", nargs="*", default=list(TARGETS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    study = Study(options.fitted, options.out)
    for budget in options.budgets:
        for seed in options.seeds:
            for name in options.targets:
                study.run(name, budget, seed)


if __name__ == "__main__":
    main()
