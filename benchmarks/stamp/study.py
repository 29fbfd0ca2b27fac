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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from edge_popup import edge_popup
from script import armenian

import metaprune as mp
from metaprune.core.rng import Rng
from metaprune.data import load_data
from metaprune.methods import create_method
from metaprune.methods.criteria.magnitude import Magnitude
from metaprune.methods.gates.method import Gates
from metaprune.methods.pruningnet.method import PruningNet
from metaprune.methods.stamp.method import Stamp
from metaprune.models import create
from metaprune.protocol.artifact import Artifact
from metaprune.protocol.method import PruneTask
from metaprune.recover.config import RecoverConfig
from metaprune.search.allocate import top
from metaprune.search.config import EvolutionConfig, SearchConfig
from metaprune.train.evaluate import evaluate
from metaprune.train.loop import train
from metaprune.values import Budget, Plan, Proposal

TARGETS = {"emoji": 600, "animal-shapes": 500, "armenian": 400, "mnist": 200}  # training images of each
STEPS, BATCH, TESTED = 200, 64, 1500
TUNE = mp.TrainConfig(batch_size=BATCH, lr=0.05, channels_last=True)
BUDGETS = ("25%", "12%", "50%", "6%")
ADAPT_STEPS = 20
GRID = tuple(i / 10 for i in range(1, 11))  # of PruningNet
PARTS = ("core", "peers", "ablations", "curve")


@dataclass(frozen=True)
class Given:
    """A method that proposes what it is given."""

    plan: Plan
    weights: Mapping[str, torch.Tensor] | None = None
    name: ClassVar[str] = "given"
    needs_data: ClassVar[bool] = False

    def propose(self, task: PruneTask, budget: Budget, rng: Rng) -> Proposal:
        return Proposal(self.plan, self.weights)


class Study:
    def __init__(self, fitted: Path, out: Path, validation: bool = False):
        self.fitted, self.out, self.validation = fitted, out, validation
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
            "network": self.spec,
            "shape": self.shape,
            "targets": TARGETS,
            "steps": STEPS,
            "batch": BATCH,
            "tune": dataclasses.asdict(TUNE),
            "stamp": info["options"],
            "conditioning": info["conditioning"],
            "meta_training": {k: info[k] for k in ("macs", "seconds", "data", "parameters")},
            "torch": torch.__version__,
            "python": platform.python_version(),
            "threads": torch.get_num_threads(),
        }
        self.out.write_text(json.dumps({"config": config, "rows": self.rows}, indent=1) + "\n")
        row = self.rows[key]
        print(key, f"{row['accuracy']:.4f} params {row['params']} cpu {row['cpu_s']:.0f} s", flush=True)

    def target(self, name: str, seed: int) -> tuple[Any, torch.nn.Module]:
        """The data, and the pretrained network with a new head."""
        wanted = {"seed": seed, "limit": TARGETS[name], "image_size": self.shape[1], "channels": self.shape[0]}
        data = armenian(**wanted) if name == "armenian" else load_data(f"builtin:{name}", **wanted)
        with Rng(seed).child("model").torch_global():
            model = create(
                self.spec,
                weights=self.fitted / "dense.safetensors",
                new_head=True,
                num_classes=data.num_classes,
                in_channels=self.shape[0],
            )
        judged = data.val if self.validation else data.test
        return replace(data, val=data.val.take(64), test=judged.take(TESTED)), model

    def tuned(self, data: Any) -> mp.TrainConfig:
        return replace(TUNE, epochs=STEPS / -(-len(data.train) // BATCH))

    def trained(
        self, model: torch.nn.Module, data: Any, method: Any, seed: int, kind: str = "finetune"
    ) -> dict[str, Any]:
        """Test accuracy of a plan after the one training that all get; the MACs of that training."""
        result = mp.prune(
            model,
            torch.zeros(2, *self.shape),
            budget={"params": "100%"},
            method=method,
            data=data,
            recover=RecoverConfig(kind=kind, train=self.tuned(data)),
            seed=seed,
            progress=False,  # type: ignore[arg-type]
        )
        after = result.record["cost"]["after"]
        return {
            "accuracy": result.record["quality"]["recovered"]["accuracy"],
            "params": after["params"],
            "macs": after["macs"],
            "training_macs": 3.0 * after["macs"] * STEPS * BATCH,
        }

    # ------------------------------------------------------------------------------------------ contenders

    def run(self, name: str, budget: str, seed: int, parts: Sequence[str]) -> None:
        data, model = self.target(name, seed)
        network = mp.trace(model, torch.zeros(2, *self.shape))
        task, place = PruneTask(network, data), f"{name}/{budget}/{seed}"
        stamp = self.stamp(f"{place}/STAMP", task, model, seed)
        if {"core", "curve"} & set(parts):
            self.widths(place, model, data, network, stamp, seed)
            self.once(f"{place}/train, Taylor, train", lambda: self.train_then_prune(name, budget, seed))
            whole = f"{name}/100%/{seed}/full fine-tuning"
            self.once(whole, lambda: self.trained(model, data, Given(Plan()), seed))
        if "core" in parts:
            self.stamp(f"{place}/STAMP, no adaptation", task, model, seed, adapt_steps=0, mask="generator")
            self.weights(place, model, data, network, stamp, seed)
        if "peers" in parts:
            self.peers(place, task, model, seed)
        if "ablations" in parts:
            self.ablations(place, task, model, stamp, seed)

    def stamp(self, key: str, task: PruneTask, model: Any, seed: int, **options: Any) -> Proposal:
        budget, began = Budget(params=key.split("/")[1]), time.process_time()
        method = Stamp(**{"fitted": self.artifact, "adapt_steps": ADAPT_STEPS, **options})
        found = method.propose(task, budget, Rng(seed))
        spent = {
            "adapt_cpu_s": time.process_time() - began,
            "adapt_macs": sum(found.details["stamp"]["macs"].values()),
            "mask": np.packbits(np.concatenate(found.plan.masks(task.network.space))).tobytes().hex(),
        }
        self.once(key, lambda: self.trained(model, task.data, Given(found.plan, found.weights), seed) | spent)
        return found

    def at_widths(self, network: mp.Network, widths: Any, seed: int) -> dict[str, Plan]:
        """Random and magnitude channels."""
        draw, space = np.random.default_rng(seed), network.space
        scores = {"random": [draw.random(g.width) for g in space]}
        scores["magnitude"] = Magnitude(p=1).scores(PruneTask(network), Plan(), Rng(0))
        return {
            label: Plan.of(space, [top(s, int(w)) for s, w in zip(each, widths, strict=True)])
            for label, each in scores.items()
        }

    def widths(self, place: str, model: Any, data: Any, network: Any, stamp: Proposal, seed: int) -> None:
        """Other channels at STAMP's own widths, and uniform widths."""
        for label, plan in self.at_widths(network, stamp.plan.widths(network.space), seed).items():
            key = f"{place}/{label}, STAMP's widths, pretrained weights"
            self.once(key, lambda p=plan: self.trained(model, data, Given(p), seed))
        budget = Budget(params=place.split("/")[1])
        plan = create_method("uniform", {"fill": True}).propose(PruneTask(network, data), budget, Rng(seed)).plan
        self.once(f"{place}/magnitude, uniform widths", lambda: self.trained(model, data, Given(plan), seed))

    def weights(self, place: str, model: Any, data: Any, network: Any, stamp: Proposal, seed: int) -> None:
        """What the mask adds and what the weights add; the structure alone."""
        own = mp.trace(_with(model, {**network.tensors, **(stamp.weights or {})}), torch.zeros(2, *self.shape))
        for label, plan in self.at_widths(own, stamp.plan.widths(network.space), seed).items():
            key = f"{place}/{label}, STAMP's widths, STAMP's weights"
            self.once(key, lambda p=plan: self.trained(model, data, Given(p, stamp.weights), seed))
        for label, kind in (("mask, pretrained weights", "finetune"), ("structure, new weights", "scratch")):
            key = f"{place}/STAMP's {label}"
            self.once(key, lambda k=kind: self.trained(model, data, Given(stamp.plan), seed, k))

    def ablations(self, place: str, task: PruneTask, model: Any, stamp: Proposal, seed: int) -> None:
        """Without what was meta-learned, part by part; and under the masks of other targets."""
        tensors = self.artifact.tensors
        made = Stamp()._as_fitted(task, self.artifact)
        fresh = made._learner(task, Rng(seed), task.network.tensors).generator.state_dict()
        plain = {n.replace("reference.", "network."): t for n, t in tensors.items() if n.startswith("reference.")}
        untrained = {f"generator.{n}": t for n, t in fresh.items() if not n.startswith("bank")}
        for label, changed in (("weights", plain), ("generator", untrained), ("nothing", {**plain, **untrained})):
            artifact = replace(self.artifact, tensors={**tensors, **changed})
            said = "nothing meta-trained" if label == "nothing" else f"{label} not meta-trained"
            self.stamp(f"{place}/STAMP, {said}", task, model, seed, fitted=artifact)
        own, budget, _ = place.split("/")
        ends = np.cumsum(task.network.space.widths)[:-1]
        for other in TARGETS:
            row = self.rows.get(f"{other}/{budget}/{seed}/STAMP")
            if other != own and row is not None:
                bits = np.unpackbits(np.frombuffer(bytes.fromhex(row["mask"]), np.uint8))[
                    : task.network.space.widths.sum()
                ]
                plan = Plan.of(task.network.space, np.split(bits.astype(bool), ends))
                key = f"{place}/the mask of {other}, STAMP's weights"
                self.once(key, lambda p=plan: self.trained(model, task.data, Given(p, stamp.weights), seed))

    def peers(self, place: str, task: PruneTask, model: Any, seed: int) -> None:
        """Methods that learn on the target: gates without a set, a searched structure, SNIP, a subnetwork at random."""
        data, budget = task.data, Budget(params=place.split("/")[1])
        small = SearchConfig(evolution=EvolutionConfig(population=16, generations=5, parents=4))
        net = replace(self.tuned(data), epochs=2 * STEPS * BATCH / len(data.train), lr=0.1, schedule="linear")  # type: ignore[arg-type]
        methods = {
            **{f"gates, {g}, on the target": Gates(gate=g, steps=STEPS) for g in ("concrete", "vib", "beta_bernoulli")},
            "PruningNet on the target": PruningNet(
                weights="generated", train=net, search=small, calibration=256, grid=GRID, batch_size=128
            ),
            "SNIP by channel": create_method("snip"),
        }
        for label, method in methods.items():

            def make(m: Any = method) -> dict[str, Any]:
                found = m.propose(task, budget, Rng(seed))
                macs = _spent(found.details)
                return self.trained(model, data, Given(found.plan, found.weights), seed) | {"adapt_macs": macs}

            self.once(f"{place}/{label}", make)
        self.once(f"{place}/edge-popup, single weights", lambda: self.edge_popup(place, seed))

    def edge_popup(self, place: str, seed: int) -> dict[str, Any]:
        """Its share of the weights, not of the channels; twice the steps, as scores have to move further."""
        name, budget, _ = place.split("/")
        data, model = self.target(name, seed)
        macs = float(mp.trace(model, torch.zeros(2, *self.shape)).cost().macs)
        share, config = float(budget[:-1]) / 100, self.tuned(data)
        subnet = edge_popup(model, data, share, replace(config, epochs=2 * config.epochs, lr=0.1), Rng(seed))
        params = sum(round(share * s.numel()) for s in subnet.scores.values())
        accuracy = evaluate(subnet, data.test)["accuracy"]
        return {"accuracy": accuracy, "params": params, "macs": macs, "training_macs": 6.0 * macs * STEPS * BATCH}

    def train_then_prune(self, name: str, budget: str, seed: int) -> dict[str, Any]:
        data, model = self.target(name, seed)
        network, began = mp.trace(model, torch.zeros(2, *self.shape)), time.process_time()
        train(model, data, self.tuned(data), rng=Rng(seed).child("dense"), progress=False)
        plan = create_method("taylor_batch").propose(PruneTask(network, data), Budget(params=budget), Rng(seed)).plan
        full, spent = 3.0 * network.cost().macs * BATCH * (STEPS + 10), time.process_time() - began
        return self.trained(model, data, Given(plan), seed) | {
            "dense_macs": full,
            "dense_cpu_s": spent,
            "dense": evaluate(model, data.test)["accuracy"],
        }


def _spent(details: Any) -> float:
    """MACs that a method took before the small network's training."""
    if "gates" in details:
        return details["gates"]["macs"]
    return sum(float(details.get(part, {}).get("macs") or 0.0) for part in ("fit", "search"))


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
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS, help="none: STAMP alone")
    parser.add_argument("--validation", action="store_true", help="judge on the validation split: to choose options")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    study = Study(options.fitted, options.out, options.validation)
    for budget in options.budgets:
        for seed in options.seeds:
            for name in options.targets:
                study.run(name, budget, seed, options.parts)


if __name__ == "__main__":
    main()
