"""Does a graph metanetwork make pruning hurt less? Rewrites and controls at equal budget and equal training.

    python benchmarks/metagraph/study.py --folder ../shared/data --out benchmarks/metagraph/cifar10.json

FOLDER holds cifar10_jpeg.npz and the trained ResNets (see benchmarks/README.md). The metanetwork is meta-trained on
variants of ResNet-20 (each pruned a little and fine-tuned; see `data_models`) and then used on a ResNet-20 fine-tuned
on other batches and on networks of other depth, family or data; --source names others to meta-train on. Killed and
started again, it goes on.

cut: accuracy after the cut at several budgets, BatchNorm re-estimated, nothing trained. masks: the same with single
weights held at zero in place of a cut. tuned: after the same fine-tuning for all. "tuned between" has half of that
training before the cut and half after; every arm has a learning rate of its own, the best on seed 1001, which is used
for nothing else. Figures are test accuracies; the strength comes from the budget, the metanetwork's state from the
validation split.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import platform
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import torch
from controls import Noise, NoRewrite, ShrinkageOnly, Shuffled, Sparse, control, shuffled

import metaprune as mp
from metaprune.core.files import write_json, write_tensors
from metaprune.core.rng import Rng
from metaprune.data import Data, load_data
from metaprune.methods import create_method
from metaprune.methods.metagraph.data_models import DataModelConfig
from metaprune.methods.metagraph.meta import DataModel, MetaConfig
from metaprune.methods.metagraph.metanet import Graph, MetanetConfig
from metaprune.methods.metagraph.method import MetaGraph
from metaprune.models import create
from metaprune.protocol.artifact import INFO, Artifact
from metaprune.protocol.method import Method, PruneTask
from metaprune.recover.config import RecoverConfig
from metaprune.train.loop import train
from metaprune.values import Proposal

IMAGES, TESTED = 10_000, 2_000
JPEG, GREY = "npz:{folder}/cifar10_jpeg.npz", "builtin:fashion-mnist"
LIGHT = mp.TrainConfig(epochs=1, lr=0.01, batch_size=128, channels_last=True)
ADAM = mp.TrainConfig(epochs=1, lr=5e-4, batch_size=64, optimizer="adamw", weight_decay=0.05)


@dataclass(frozen=True)
class Target:
    """epochs: of training from scratch; 0: trained weights are in the folder, and get one epoch on the JPEG images.

    light: how data models are trained, and the fine-tuning but for its epochs and learning rate.
    of: trained weights are those of this target's seed 1000, fine-tuned once on other batches.
    """

    spec: str
    data: str = JPEG
    epochs: int = 0
    lr: float = 0.1
    light: mp.TrainConfig = LIGHT
    options: dict[str, Any] = field(default_factory=dict)
    of: str = ""

    @property
    def dense(self) -> mp.TrainConfig:
        """How the dense network is trained, from scratch or from weights that are there."""
        return dataclasses.replace(self.light, epochs=self.epochs, lr=self.lr) if self.epochs else self.light


def relatives(name: str) -> Target:
    """Of the network that data models come from, as the seeds of ResNet-20 are (all from one trained network)."""
    return dataclasses.replace(TARGETS[name], epochs=0, of=name)


TARGETS = {
    "resnet20": Target("zoo:resnet20"),
    "resnet20 trained here": Target("zoo:resnet20", epochs=8),
    "resnet32": Target("zoo:resnet32"),
    "resnet56": Target("zoo:resnet56"),
    "vgg19 x0.25": Target("zoo:vgg19_bn", epochs=8, options={"width": 0.25}),
    "resnet8 fashion-mnist": Target("zoo:resnet8", GREY, epochs=3),
    "vit fashion-mnist": Target("zoo:vit_micro", GREY, epochs=10, lr=2e-3, light=ADAM),
}
TARGETS |= {
    f"{name}, relatives": relatives(name) for name in ("vgg19 x0.25", "resnet8 fashion-mnist", "vit fashion-mnist")
}
DATA_MODELS = DataModelConfig(train=LIGHT)
FROM_SCRATCH = DataModelConfig(count=10, scratch=LIGHT)  # the paper's; trained as the target is, see `Study.artifact`
SHORT = MetaConfig(steps=300)
rewriting = functools.partial(MetaGraph, objective="rewrite")
PAPERS = rewriting(
    data_models=DATA_MODELS,
    metanet=MetanetConfig(form="paper", keep_norms=False),
    meta=MetaConfig(objective="sparsity", shrinkage=1.0),
)
VARIANTS: dict[str, MetaGraph] = {
    "cut": rewriting(data_models=DATA_MODELS),
    "cut, 300 steps": rewriting(data_models=DATA_MODELS, meta=SHORT),
    "cut, 300 steps, norms free": rewriting(
        data_models=DATA_MODELS, meta=SHORT, metanet=MetanetConfig(keep_norms=False)
    ),
    "tuned, 300 steps": rewriting(data_models=DATA_MODELS, meta=dataclasses.replace(SHORT, tune_steps=8)),
    "cut, by L2": rewriting(data_models=DATA_MODELS, criterion_options={"p": 2}),
    "cut, 300 steps, same share of every group": rewriting(
        data_models=DATA_MODELS, meta=SHORT, criterion_options={"p": 1, "scope": "local"}
    ),
    "straight-through, 300 steps": rewriting(
        data_models=DATA_MODELS, meta=dataclasses.replace(SHORT, objective="straight-through")
    ),
    "cut, 300 steps, wrong graphs": rewriting(data_models=DATA_MODELS, meta=SHORT),  # see `wrong_graphs`
    "cut, 300 steps, data models from scratch": rewriting(data_models=FROM_SCRATCH, meta=SHORT),
    "cut, data models from scratch": rewriting(data_models=FROM_SCRATCH),
    "sparsity (paper's objective and form)": PAPERS,
    "sparsity (paper's objective and form), 300 steps": dataclasses.replace(
        PAPERS, meta=dataclasses.replace(PAPERS.meta, steps=SHORT.steps)
    ),
}
ARMS: dict[str, dict[str, Any]] = {
    "metanetwork": {},
    "no rewrite": {"kind": NoRewrite},
    "noise": {"kind": Noise},
    "shuffled graph": {"kind": Shuffled},
    "shrinkage": {"kind": ShrinkageOnly},
    "metanetwork, same share of every group": {"criterion_options": {"p": 1, "scope": "local"}},
    "no rewrite, same share of every group": {"kind": NoRewrite, "criterion_options": {"p": 1, "scope": "local"}},
    "metanetwork, L2": {"criterion_options": {"p": 2}},
    "no rewrite, L2": {"kind": NoRewrite, "criterion_options": {"p": 2}},
    "no rewrite, L2, same share of every group": {"kind": NoRewrite, "criterion_options": {"p": 2, "scope": "local"}},
}
TUNED_ARMS: dict[str, dict[str, Any]] = {
    **ARMS,
    "metanetwork's structure, weights of before": {"structure_only": True},
    "metanetwork, tuned between": {"between": True},
    "no rewrite, tuned between": {"kind": NoRewrite, "between": True},
    **{
        f"group sparsity {reg:g}{said}, tuned between": {
            "kind": Sparse,
            "sparse_reg": reg,
            "between": True,
            "criterion_options": {"p": 1, "scope": scope},
        }
        for reg in (0.003, 0.01, 0.03)
        for said, scope in (("", "global"), (", same share of every group", "local"))
    },
}
PLAIN = ("uniform", "random")  # methods of these names, without a metanetwork
SHARES = ("70%", "50%", "30%")
MASKS = (("2:4", "60%"), ("1:4", "30%"), ("unstructured", "20%"), ("unstructured", "10%"))  # pattern, nonzero at most


def wrong_graphs() -> AbstractContextManager[Any]:
    """Meta-training on graphs with mixed-up connections: what is gained all the same needs no graph."""
    right = DataModel.graph

    def graph(model: DataModel) -> Graph:
        return Graph(shuffled(right(model).network_graph, Rng(0)), model.tensors)

    return mock.patch.object(DataModel, "graph", graph)


@dataclass(frozen=True)
class StructureOnly:
    """What a method keeps, with the weights as they were: how much of its gain is the structure's."""

    inner: MetaGraph
    name: ClassVar[str] = MetaGraph.name
    needs_data: ClassVar[bool] = True

    def propose(self, task: PruneTask, budget: mp.Budget, rng: Rng) -> Proposal:
        return dataclasses.replace(self.inner.propose(task, budget, rng), weights=None)


class Study:
    def __init__(self, folder: Path, out: Path, work: Path, tested: int = TESTED):
        self.folder, self.out, self.work, self.tested = folder, out, work, tested
        self.rows: dict[str, Any] = json.loads(out.read_text())["rows"] if out.exists() else {}
        self.splits: dict[str, Data] = {}
        self.artifacts: dict[str, Artifact] = {}

    def once(self, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if key not in self.rows:
            wall, cpu = time.perf_counter(), time.process_time()
            self.rows[key] = make() | {"seconds": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
            config = {
                "images": IMAGES,
                "tested": self.tested,
                "light": dataclasses.asdict(LIGHT),
                "torch": torch.__version__,
                "python": platform.python_version(),
                "threads": torch.get_num_threads(),
            }
            write_json(self.out, {"config": config, "rows": self.rows})
            shown = {k: round(v, 4) for k, v in self.rows[key].items() if isinstance(v, float)}
            print(key, shown, flush=True)
        return self.rows[key]

    def data(self, name: str) -> Data:
        spec = TARGETS[name].data.format(folder=self.folder)
        if spec not in self.splits:
            data = load_data(spec, limit=IMAGES)
            self.splits[spec] = dataclasses.replace(data, test=data.test.take(self.tested))
        return self.splits[spec]

    def network(self, name: str, seed: int) -> torch.nn.Module:
        """A trained network, fine-tuned once on the JPEG images or trained here: the dense baseline of its seed."""
        target, data, place = TARGETS[name], self.data(name), self.work / f"{name}-{seed}.safetensors"
        shared = (
            self.work / f"{target.of}-1000.safetensors" if target.of else self.folder / f"{name}_cifar10.safetensors"
        )
        given = None if target.epochs else shared
        weights = place if place.exists() else given
        with Rng(seed).child("model").torch_global():
            model = create(target.spec, weights=weights and str(weights), **target.options)
        if not place.exists():
            train(model, data, target.dense, rng=Rng(seed).child("dense"), progress=False)
            write_tensors(place, model.state_dict())
        return model

    def example(self, name: str) -> torch.Tensor:
        return torch.zeros(2, *self.data(name).input_shape)

    def artifact(self, variant: str, name: str) -> Artifact:
        """Meta-trained once, on network `name` ("a+b": on both) of seed 1000 (no target is of that seed)."""
        label = label_of(variant, name)
        if label not in self.artifacts:
            place = self.work / label
            if not (place / INFO).is_file():
                tasks = [
                    PruneTask(mp.trace(self.network(one, 1000), self.example(one)), self.data(one), folder=place)
                    for one in name.split("+")
                ]
                target, given = TARGETS[name.split("+")[0]], VARIANTS[variant].data_models
                scratch = given.scratch and target.dense
                how = dataclasses.replace(given, train=scratch or target.light, scratch=scratch)
                with wrong_graphs() if "wrong graphs" in variant else nullcontext():
                    dataclasses.replace(VARIANTS[variant], data_models=how).fit(tasks, Rng(0)).save(place)
            found = self.artifacts[label] = Artifact.load(place, MetaGraph.name)
            history = found.info["history"]["evaluations"]
            self.once(f"meta-training/{label}", lambda: {"evaluations": history, "phases": found.info["stages"]})
        return self.artifacts[label]

    def arm(
        self, variant: str, source: str, arm: str, how: mp.TrainConfig, **more: Any
    ) -> tuple[Method, mp.TrainConfig]:
        """The method, and the fine-tuning that is left for after the cut."""
        options = TUNED_ARMS[arm] | more
        if options.pop("between", False):
            how = options["finetune"] = dataclasses.replace(how, epochs=how.epochs / 2)
        structure_only = options.pop("structure_only", False)
        method = control(options.pop("kind", MetaGraph), VARIANTS[variant], **options)
        if not alone(arm):
            method = method.restore(self.artifact(variant, source))
        return (StructureOnly(method) if structure_only else method), how

    def masked(self, variant: str, source: str, name: str, seed: int, arm: str, pattern: str, share: str) -> None:
        def pruned() -> dict[str, Any]:
            method, _ = self.arm(variant, source, arm, LIGHT, pattern=pattern)
            record = mp.prune(
                self.network(name, seed),
                self.example(name),
                budget={"nonzero": share},
                method=method,
                data=self.data(name),
                seed=seed,
                progress=False,
            ).record
            return {"accuracy": record["quality"]["cut"]["accuracy"], "nonzero": record["masks"]["share"]}

        whose = "any" if alone(arm) else label_of(variant, source)
        self.once(f"{whose}/{name}/{seed}/{arm}/{pattern} {share}/masks", pruned)

    def run(
        self, variant: str, source: str, name: str, seed: int, arm: str, share: str, epochs: float, lr: float
    ) -> None:
        def pruned() -> dict[str, Any]:
            how = dataclasses.replace(TARGETS[name].light, epochs=epochs or 1, lr=lr)
            if arm in PLAIN:
                method, untrained = (
                    create_method(arm, {"fill": True} if arm == "uniform" else {}),
                    RecoverConfig(kind="bn"),
                )
            else:  # re-estimates BatchNorm itself
                (method, how), untrained = self.arm(variant, source, arm, how), None
            recover = RecoverConfig(kind="finetune", train=how) if epochs else untrained
            result = mp.prune(
                self.network(name, seed),
                self.example(name),
                budget={"macs": share},
                method=method,
                data=self.data(name),
                recover=recover,
                seed=seed,
                progress=False,
            )
            quality, found = result.record["quality"], result.record["method_details"].get("metagraph", {})
            accuracy = quality["recovered" if recover else "cut"]["accuracy"]
            cut = quality["cut"]["accuracy"] if untrained is None else None if epochs else accuracy
            return {
                "dense": quality["dense"]["accuracy"],
                "cut": cut,
                "accuracy": accuracy,
                "macs": result.record["cost"]["after"]["macs"] / result.record["cost"]["before"]["macs"],
                "strength": found.get("strength"),
            }

        whose = "any" if alone(arm) else label_of(variant, source)
        rate = "" if lr == LIGHT.lr or not epochs else f" at {lr:g}"
        self.once(f"{whose}/{name}/{seed}/{arm}/{share}/{epochs:g} epochs{rate}", pruned)


def alone(arm: str) -> bool:
    """Whether it uses no metanetwork."""
    return arm in PLAIN or not TUNED_ARMS[arm].get("kind", MetaGraph).learns


def label_of(variant: str, source: str) -> str:
    """How rows name a metanetwork: by its objective, and by what it was meta-trained on where that is no ResNet-20."""
    return variant if source == "resnet20" else f"{variant}, {source}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--work", type=Path, default=Path("runs/metagraph-study"), help="where trained networks are kept"
    )
    parser.add_argument("--variants", nargs="+", default=["cut"], choices=list(VARIANTS))
    parser.add_argument("--networks", nargs="+", default=["resnet20", "resnet32", "resnet56"], choices=TARGETS)
    parser.add_argument("--parts", nargs="+", default=["cut", "tuned", "masks"], choices=["cut", "tuned", "masks"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--arms",
        nargs="+",
        default=[*TUNED_ARMS, *PLAIN],
        choices=[*TUNED_ARMS, *PLAIN],
        help='"between": of part tuned',
    )
    parser.add_argument("--tuned-share", nargs="+", default=["50%"])
    parser.add_argument("--epochs", type=float, nargs="+", default=[2], help="of part tuned")
    parser.add_argument("--lr", type=float, nargs="+", default=[LIGHT.lr], help="of part tuned")
    parser.add_argument("--tested", type=int, default=TESTED, help="test images")
    parser.add_argument("--source", default="resnet20", help='what to meta-train on: networks joined by "+"; or "own"')
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    study = Study(options.folder, options.out, options.work, options.tested)
    for variant, name, seed in itertools.product(options.variants, options.networks, options.seeds):
        source = (TARGETS[name].of or name) if options.source == "own" else options.source
        for arm in options.arms:
            for share in SHARES if "cut" in options.parts and arm in (*ARMS, *PLAIN) else ():
                study.run(variant, source, name, seed, arm, share, 0, LIGHT.lr)
            for pattern, share in MASKS if "masks" in options.parts and arm in ARMS else ():
                study.masked(variant, source, name, seed, arm, pattern, share)
            how = itertools.product(options.tuned_share, options.epochs, options.lr)
            for share, epochs, lr in how if "tuned" in options.parts else ():
                study.run(variant, source, name, seed, arm, share, epochs, lr)


if __name__ == "__main__":
    main()
