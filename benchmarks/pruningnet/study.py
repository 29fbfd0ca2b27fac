"""Does the search find better structures? MetaPruning's claims in miniature, controls at equal budget and training.

    python benchmarks/pruningnet/study.py mobilenet --out benchmarks/pruningnet/mobilenet_fashion.json
    python benchmarks/pruningnet/study.py glyphs --budgets 57% 26% 7.2% --out benchmarks/pruningnet/glyphs.json

A small MobileNetV1-style network on a part of Fashion-MNIST, a thin ResNet-8 on a part of CIFAR-10, five plain
convolutions on all of it, or three kinds of networks on 107 letters (`metaprune data get glyphs`), at the paper's
budgets. Every structure, whoever found it, is trained from scratch with the same schedule on the same images and
judged on the test split; nothing is chosen by it. Killed and started again, it goes on.

rank: 20 random structures; Spearman correlation of score and trained accuracy, for each back-end, with and without
recalibrated BatchNorm; the half of them that are at one budget with every seed. budgets: structures found by searches
against uniform, rules of thumb, random, magnitude.
"""

from __future__ import annotations

import argparse
import functools
import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

import metaprune as mp
from metaprune.core.rng import Rng
from metaprune.data import load_data
from metaprune.methods import create_method
from metaprune.methods.pruningnet.method import PruningNet
from metaprune.methods.pruningnet.supernet import Scorer
from metaprune.models import create
from metaprune.protocol.method import PruneTask
from metaprune.recover.config import RecoverConfig
from metaprune.search.config import EvolutionConfig, SearchConfig
from metaprune.search.encoding import BudgetSampler
from metaprune.train.loop import train
from metaprune.values import Budget, Plan, Proposal

SUB_VALIDATION, CALIBRATION = 1000, 1000
FINAL = mp.TrainConfig(epochs=10, batch_size=64, lr=0.1, weight_decay=1e-4, label_smoothing=0.1, channels_last=True)
FIT = mp.TrainConfig(
    epochs=40, batch_size=128, lr=0.1, schedule="linear", nesterov=False, weight_decay=4e-5, label_smoothing=0.1
)
GRID = tuple(i / 10 for i in range(1, 11))  # 10 ratios: on a CPU, oneDNN compiles every new pair of widths (see README)
EVOLUTION = EvolutionConfig(population=20, generations=10, parents=5)
BACKENDS: dict[str, dict[str, Any]] = {
    "generated (paper)": {"weights": "generated"},
    "generated, PyTorch start": {"weights": "generated", "start": "paper"},
    "generated, rank 8": {"weights": "generated", "rank": 8},
    "shared": {"weights": "shared"},
    "shared, sandwich, distil": {"weights": "shared", "sampling": "sandwich", "distil": True},
    "generated, sandwich, distil": {"weights": "generated", "sampling": "sandwich", "distil": True},
    "shared, stratified": {"weights": "shared", "sampling": "stratified"},
    "generated, stratified": {"weights": "generated", "sampling": "stratified"},
    "closed-form": {"weights": "closed-form"},  # of the dense network, trained as long as every structure
}
SEARCHED = ("generated (paper)", "shared, sandwich, distil")
SEARCHES = {  # searcher, back-end, score
    **{backend: ("evolution", backend, "metric") for backend in SEARCHED},
    **{f"{backend}, likelihood": ("evolution", backend, "likelihood") for backend in (*SEARCHED, "shared")},
    "random search": ("random", SEARCHED[1], "metric"),
    "greedy slimming": ("greedy", SEARCHED[1], "metric"),
    "greedy slimming, generated, likelihood": ("greedy", SEARCHED[0], "likelihood"),
    "random search, generated, likelihood": ("random", SEARCHED[0], "likelihood"),
    **{
        f"{backend}, likelihood": ("evolution", backend, "likelihood")
        for backend in ("shared, stratified", "generated, stratified", "closed-form")
    },
    "random search, shared, stratified": ("random", "shared, stratified", "likelihood"),
    "greedy slimming, shared, stratified": ("greedy", "shared, stratified", "likelihood"),
}
CONTROLS: dict[str, tuple[str, dict[str, Any]]] = {
    "uniform": ("uniform", {"fill": True}),
    "magnitude": ("magnitude", {}),
    "random": ("random", {}),
    "uniform, last width whole": ("uniform", {"fill": True, "last_whole": True}),
    "tilted": ("uniform", {"fill": True, "tilt": 1.0}),
}


@dataclass(frozen=True)
class Fixed:
    """A method that proposes what it is given."""

    plan: Plan
    name: ClassVar[str] = "fixed"
    needs_data: ClassVar[bool] = False

    def propose(self, task: PruneTask, budget: Budget, rng: Rng) -> Proposal:
        return Proposal(self.plan)


def separable(in_channels: int, classes: int = 10, width: int = 1) -> nn.Module:
    """MobileNetV1's form in seven stages; the whole network is so deep that 6,000 images do not train it."""

    def unit(c_in: int, c_out: int, kernel: int, stride: int, groups: int = 1) -> list[nn.Module]:
        conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
        return [conv, nn.BatchNorm2d(c_out), nn.ReLU(inplace=True)]

    widths, strides = [width * w for w in (16, 32, 32, 64, 64, 128, 128)], (2, 1, 2, 1, 2, 1)
    layers = unit(in_channels, widths[0], 3, 1)
    for c_in, c_out, stride in zip(widths, widths[1:], strides, strict=False):
        layers += unit(c_in, c_in, 3, stride, c_in) + unit(c_in, c_out, 1, 1)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes))


def stacked(classes: int) -> nn.Module:
    """VGG's form: six convolutions with a pooling after every second."""
    layers: list[nn.Module] = []
    for i, (c_in, c_out) in enumerate(((1, 16), (16, 32), (32, 32), (32, 64), (64, 64), (64, 128))):
        layers += [nn.Conv2d(c_in, c_out, 3, 1, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU(inplace=True)]
        layers += [nn.MaxPool2d(2)] if i % 2 == 0 else []
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, classes))


def plain(in_channels: int) -> nn.Module:
    """Dense convolutions of 24 to 64 channels: their time is a staircase of the widths, their MACs are not."""
    layers: list[nn.Module] = []
    for c_in, c_out, stride in ((in_channels, 24, 2), (24, 48, 1), (48, 48, 2), (48, 64, 1), (64, 64, 1)):
        conv = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        layers += [conv, nn.BatchNorm2d(c_out), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


@dataclass(frozen=True)
class Case:
    network: str
    make: Callable[[], nn.Module]
    data: str
    shape: tuple[int, int, int]
    grid: tuple[float, ...] = GRID
    images: int | None = 6000
    fit: mp.TrainConfig = FIT
    final: mp.TrainConfig = FINAL
    rank_share: float = 0.3  # of the MACs, that the structures of the rank part's second half have


GLYPHS: dict[str, Any] = {
    "data": "builtin:glyphs",
    "shape": (1, 28, 28),
    "images": None,
    "fit": replace(FIT, epochs=10, batch_size=64),
    "final": replace(FINAL, epochs=12),  # with 5, a narrow network ends at 20 or at 50% by the seed
    "rank_share": 0.072,
}
CASES = {
    "glyphs": Case("MobileNetV1-style, 13 convolutions, 32 to 256 channels", lambda: separable(1, 107, 2), **GLYPHS),
    "glyphs-vgg": Case("VGG-style, 6 convolutions", lambda: stacked(107), **GLYPHS),
    "glyphs-resnet": Case(
        "ResNet-8", lambda: create("zoo:resnet8", num_classes=107, in_channels=1, shortcut="B"), **GLYPHS
    ),
    "mobilenet": Case("MobileNetV1-style, 13 convolutions", lambda: separable(1), "builtin:fashion-mnist", (1, 28, 28)),
    "resnet": Case(
        "ResNet-8, half width",
        lambda: create("zoo:resnet8", width=0.5, num_classes=10, in_channels=3),
        "builtin:cifar10",
        (3, 32, 32),
    ),
    "plain": Case(
        "plain, 5 convolutions",
        lambda: plain(3),
        "builtin:cifar10",
        (3, 32, 32),
        grid=tuple(i / 12 for i in range(1, 13)),
        images=45000,  # with few images, more channels hardly help
        fit=replace(FIT, epochs=10),
        final=replace(FINAL, epochs=5),
    ),
}


class Study:
    """artifacts: folder of the fitted back-ends; by default beside the results, outside of the repository's history."""

    def __init__(self, case: Case, out: Path, artifacts: Path | None = None):
        self.case, self.out, self.artifacts = case, out, artifacts or out.parent / "artifacts"
        self.rows: dict[str, Any] = json.loads(out.read_text())["rows"] if out.exists() else {}
        self.data = load_data(case.data, limit=case.images)
        self.quick = replace(self.data, val=self.data.val.take(64))  # the training loop only watches it

    def once(self, key: str, make: Any) -> Any:
        """The row `key`, made now if no earlier start made it."""
        if key not in self.rows:
            began, cpu = time.perf_counter(), time.process_time()
            found = make()
            self.rows[key] = {**found, "seconds": time.perf_counter() - began, "cpu_s": time.process_time() - cpu}
            config = {
                "network": self.case.network,
                "data": self.case.data,
                "images": len(self.data.train),
                "test_images": len(self.data.test),
                "sub_validation": SUB_VALIDATION,
                "final": vars_of(self.case.final),
                "fit": vars_of(self.case.fit),
                "evolution": vars_of(EVOLUTION),
                "grid": self.case.grid,
                "rank_share": self.case.rank_share,
                "torch": torch.__version__,
                "python": platform.python_version(),
                "threads": torch.get_num_threads(),
            }
            self.out.write_text(json.dumps({"config": config, "rows": self.rows}, indent=1) + "\n")
            print(key, {k: v for k, v in self.rows[key].items() if not isinstance(v, (list, dict))}, flush=True)
        return self.rows[key]

    # ------------------------------------------------------------------------------------------ parts

    def network(self, seed: int) -> mp.Network:
        with Rng(seed).child("model").torch_global():
            model = self.case.make()
        return mp.trace(model, torch.zeros(2, *self.case.shape))

    def method(self, backend: str, searcher: str = "evolution", score: Any = "metric") -> PruningNet:
        fitted = {} if backend == "closed-form" else {"train": self.case.fit}
        return PruningNet(
            grid=self.case.grid,
            sub_validation=SUB_VALIDATION,
            calibration=CALIBRATION,
            batch_size=250,
            screening=0,  # as the committed searches were
            score=score,
            search=SearchConfig(searcher=searcher, evolution=EVOLUTION),
            **BACKENDS[backend],
            **fitted,
        )

    def session(self, backend: str, seed: int, searcher: str = "evolution", score: str = "metric") -> Any:
        """A fitted back-end, ready to search."""
        folder = self.artifacts / f"{backend.replace(' ', '_')}-{seed}"
        network = self.dense(seed) if backend == "closed-form" else self.network(seed)
        task = PruneTask(network, self.data, folder=folder)
        method = self.method(backend, searcher, score)

        def fit() -> dict[str, Any]:
            artifact = method.fit([task], Rng(seed))
            artifact.save(folder)
            last = artifact.info.get("history", {"rows": [None]})["rows"][-1]
            return {
                "macs": artifact.info.get("macs", 0.0),
                "parameters": artifact.info.get("parameters", 0),
                "last_epoch": last,
            }

        if not (folder / "artifact.json").is_file():  # another machine made the row
            self.rows.pop(f"fit/{backend}/{seed}", None)
        self.once(f"fit/{backend}/{seed}", fit)
        return method.session(task, mp_artifact(folder))

    def searched(self, session: Any, bound: Budget, seed: int) -> dict[str, Any]:
        """The best structure within `bound`, and what was looked at."""
        found = session.method.restore(session.artifact).propose(session.task, bound, Rng(seed))
        best = max((t for t in found.trials if t.cost["load"] <= 1), key=lambda t: t.score)
        details = found.details["search"]
        return {
            "score": best.score,
            "evaluated": len(found.trials),
            "macs": details["macs"],
            "widths": list(best.widths),
            "scores": details["scores"],
        }

    def _pruned(
        self, network: mp.Network, plan: Plan, seed: int, recover: RecoverConfig, **more: Any
    ) -> dict[str, Any]:
        """Quality in the record of a cut to `plan` and what follows it."""
        result = mp.prune(
            network.model,
            torch.zeros(2, *self.case.shape),
            budget={"macs": "100%"},
            method=Fixed(plan),
            data=self.quick,
            recover=recover,
            seed=seed,
            progress=False,
            **more,
        )
        return result.record["quality"]

    def trained(self, plan: Plan, seed: int) -> dict[str, Any]:
        """Test accuracy of a structure after the one final training that all get."""
        network = self.network(seed)
        quality = self._pruned(network, plan, seed, RecoverConfig(kind="scratch", train=self.case.final))
        found = network.cost(plan)
        return {
            "accuracy": quality["recovered"]["accuracy"],
            "macs": found.macs,
            "params": found.params,
            "train_macs": 3.0 * found.macs * len(self.data.train) * self.case.final.epochs,
            "widths": plan.widths(network.space).tolist(),
        }

    def tuned(self, plan: Plan, seed: int) -> dict[str, Any]:
        """Test accuracy of a cut of the trained network, solved by least squares and fine-tuned for a pass."""
        short = RecoverConfig(kind="finetune", train=mp.TrainConfig(epochs=1, batch_size=64))
        quality = self._pruned(self.dense(seed), plan, seed, short, compensate="least-squares")
        return {"accuracy": quality["recovered"]["accuracy"], "cut": quality["cut"]["accuracy"]}

    def rank(self, backends: list[str], seeds: list[int], structures: int = 20) -> None:
        """Scores of every back-end beside trained accuracies, for random structures over the whole range of MACs.

        Seeds but the first: another PruningNet, and the structures at one budget are trained again.
        """
        half, network = structures // 2, self.network(0)
        codec, full = self.session(backends[0], seeds[0]).codec, network.cost().macs
        draw = np.random.default_rng(7)
        # half of them all over the range (where cost alone ranks well), half at one budget (where it cannot)
        spread = [
            BudgetSampler(codec, network.cost_model(), {"macs": share * full}) for share in np.linspace(0.08, 0.9, half)
        ]
        genomes, share = [s.sample(1, draw)[0] for s in spread], self.case.rank_share
        genomes += list(BudgetSampler(codec, network.cost_model(), {"macs": share * full}).sample(half, draw))
        for seed in seeds:
            sessions = {backend: self.session(backend, seed) for backend in backends}
            for i, genome in enumerate(genomes):
                widths = codec.widths(genome)
                keep = {g.name: tuple(range(w)) for g, w in zip(network.space, widths, strict=True) if w < g.width}
                if seed == seeds[0] or i >= half:
                    self.once(f"rank/trained/{i}/{seed}", lambda keep=keep, seed=seed: self.trained(Plan(keep), seed))
                if "closed-form" in backends:
                    plan = sessions["closed-form"].codec.plan(widths)
                    self.once(f"rank/tuned/{i}/{seed}", lambda plan=plan, seed=seed: self.tuned(plan, seed))
                for backend, session in sessions.items():
                    scorer = session.scorer
                    self.once(f"rank/score/{backend}/bn/{i}/{seed}", lambda scorer=scorer, w=widths: scorer(w))
                    if seed == seeds[0]:
                        scorer = Scorer(
                            scorer.supernet, [], scorer.validation, scorer.objective, "metric", recalibrate=False
                        )
                        self.once(f"rank/score/{backend}/no bn/{i}/{seed}", lambda scorer=scorer, w=widths: scorer(w))

    def budgets(self, seed: int, budgets: list[str], controls: list[str], labels: list[str]) -> None:
        network = self.network(seed)
        full = network.cost().macs
        self.once(f"budget/full/100%/{seed}", lambda: self.trained(Plan(), seed))
        for budget in budgets:
            bound = Budget(macs=budget)

            def trained(plan: Plan, budget: str = budget) -> dict[str, Any]:
                assert network.cost(plan).macs <= float(budget[:-1]) / 100 * full
                return self.trained(plan, seed)

            def control(label: str, bound: Budget = bound) -> Plan:
                name, arguments = CONTROLS[label]
                task = PruneTask(self.dense(seed) if name == "magnitude" else network, self.data)
                return create_method(name, arguments).propose(task, bound, Rng(seed).child(name)).plan

            for label in controls:
                self.once(f"budget/{label}/{budget}/{seed}", lambda label=label: trained(control(label)))
            for label in labels:
                searcher, backend, score = SEARCHES[label]
                session = self.session(backend, seed, searcher, score)
                key = f"search/{label}/{budget}/{seed}"
                row = self.once(key, lambda session=session, bound=bound: self.searched(session, bound, seed))
                plan = session.codec.plan(np.array(row["widths"]))
                self.once(f"budget/{label}/{budget}/{seed}", lambda plan=plan: trained(plan))

    @functools.lru_cache(maxsize=1)  # noqa: B019 (a study lives as long as its process)
    def dense(self, seed: int) -> mp.Network:
        """The full network, trained as long as every structure: what magnitude reads."""
        with Rng(seed).child("dense").torch_global():
            network = self.network(seed)
        train(network.model, self.quick, self.case.final, rng=Rng(seed).child("dense"), progress=False)
        return network


def mp_artifact(folder: Path) -> Any:
    from metaprune.protocol.artifact import Artifact

    return Artifact.load(folder, "pruningnet")


def vars_of(config: Any) -> dict[str, Any]:
    import dataclasses

    return dataclasses.asdict(config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", nargs="*", default=["rank", "budgets"])
    parser.add_argument("--budgets", nargs="*", default=["25%", "50%", "75%"])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--backends", nargs="*", choices=BACKENDS, default=list(BACKENDS), help="of the rank part")
    parser.add_argument("--controls", nargs="*", choices=CONTROLS, default=list(CONTROLS), help="of the budgets part")
    parser.add_argument("--searches", nargs="*", choices=SEARCHES, default=list(SEARCHES), help="of the budgets part")
    options = parser.parse_args()
    torch.set_num_threads(1)
    study = Study(CASES[options.case], options.out)
    if "rank" in options.parts:
        study.rank(options.backends, options.seeds)
    if "budgets" in options.parts:
        for seed in options.seeds:
            study.budgets(seed, options.budgets, options.controls, options.searches)


if __name__ == "__main__":
    main()
