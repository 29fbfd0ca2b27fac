"""Does a scoring rule learned on a zoo rank channels better than plain criteria, on networks that it never saw?

    metaprune zoo make --out ZOO --networks 120
    python benchmarks/metagraph/score_study.py --zoo ZOO --folder FOLDER --out benchmarks/metagraph/score.json

FOLDER is that of benchmarks/accuracy/networks.py. Rules are kept in ZOO/rules: some without a family and a data
set, and one of all networks, which is the one that ships. Weights behind every cut are solved anew (least squares) on
the same samples. Each row is written as it comes, and the same command continues.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

import metaprune as mp
from metaprune.calibration.batches import calibration_batches
from metaprune.calibration.compensate import compensate
from metaprune.methods.metagraph.channel_features import channel_features
from metaprune.methods.metagraph.config import ScoreConfig
from metaprune.methods.metagraph.pruner import least_macs
from metaprune.methods.metagraph.rule_fit import fit_rule, of_zoo, zoo_subject
from metaprune.methods.metagraph.rule_search import Subject
from metaprune.methods.metagraph.score_rule import FEATURES, Rule
from metaprune.methods.metagraph.zoo import ZooNetwork, read_zoo
from metaprune.protocol.artifact import Artifact
from metaprune.protocol.method import PruneTask
from metaprune.protocol.registry import create_method
from metaprune.train.evaluate import evaluate
from metaprune.train.traced_module import TracedModule

sys.path.insert(0, str(Path(__file__).parents[1] / "accuracy"))
from networks import SUBJECTS

ALL = "nothing"  # left out of the rule that ships
LEFT_OUT: dict[str, tuple[str, ...]] = {
    ALL: (),
    "plain, digits": ("plain", "digits"),
    "vgg, fashion-mnist": ("vgg", "fashion-mnist"),
    "residual, emoji": ("residual", "emoji"),
    "separable, animal-shapes": ("separable", "animal-shapes"),
    "dense, digits": ("dense", "digits"),
    "transformer, fashion-mnist": ("transformer", "fashion-mnist"),
}
"""Rules by what they never saw: each a family and a data set, so that both questions need one fit per family."""
CRITERIA: dict[str, tuple[str, dict[str, Any]]] = {
    "magnitude (L1)": ("magnitude", {"p": 1}),
    "taylor": ("taylor", {}),
    "taylor, as it is": ("taylor", {"normalise": "none"}),
    "activation": ("activation", {}),
    "variance": ("variance", {}),
    "obs": ("obs", {}),
}
CONTROLS = ("uniform", "random")
START = "start of the search"
SHARES, IMAGES, SAMPLES = (0.5, 0.3), 2000, 256
REAL = ("resnet20", "resnet56", "vgg19", "mobilenet_v1", "vit")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--zoo", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=2, help="draws of calibration samples, of the networks of FOLDER")
    parser.add_argument("--networks", nargs="*", default=list(REAL), choices=SUBJECTS)
    parser.add_argument("--labels", nargs="*", help="of the networks of FOLDER, these labels alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    report = json.loads(options.out.read_text()) if options.out.exists() else {"rules": {}, "rows": []}
    artifacts = {left: artifact_without(options.zoo, left) for left in LEFT_OUT}
    for left, artifact in artifacts.items():
        kept = ("rule", "start", "history", "networks", "seconds")
        report["rules"][left] = {key: artifact.info[key] for key in kept}
    done = {(row["network"], row["label"], row["seed"]) for row in report["rows"]}
    for rows in [real_rows(options, artifacts, done), zoo_rows(options.zoo, artifacts, done)]:
        for found in rows:
            report["rows"] += found
            print(found[0]["network"], {(r["label"], r["share"]): r["accuracy"] for r in found}, flush=True)
            write(options.out, report)


@cache
def networks_of(zoo: Path) -> list[ZooNetwork]:
    return read_zoo(zoo)


@cache
def subject_of(zoo: Path, number: int) -> Subject:
    """Calibrate a network once for all rules."""
    return zoo_subject(next(n for n in networks_of(zoo) if n.number == number))


def artifact_without(zoo: Path, left: str) -> Artifact:
    """Fit a rule on what is left of the zoo without a family or a data set; kept beside the zoo."""
    place = zoo / "rules" / left
    if place.is_dir():
        return Artifact.load(place, "metagraph")
    config = ScoreConfig(zoo=zoo.name, leave_out=LEFT_OUT[left])
    began = time.process_time()
    learning = of_zoo(networks_of(zoo), config, lambda n: subject_of(zoo, n.number))
    print(f"without {left}: {len(learning.learned_from)} networks, {time.process_time() - began:.0f} CPU s", flush=True)
    identity = {"options": {"objective": "score", "score": {"leave_out": list(config.leave_out)}}, "seed": [0]}
    artifact = fit_rule(learning, config, identity, mp.Rng(0).child("rule", left), lambda text: print(text, flush=True))
    artifact.save(place)
    return artifact


def zoo_rows(
    zoo: Path, artifacts: dict[str, Artifact], done: set[tuple[str, str, int]]
) -> Iterator[list[dict[str, Any]]]:
    """Networks that no rule saw, by one that never saw their family, one that never saw their data, and the one that
    ships."""
    for network in networks_of(zoo):
        if network.part != "test" or network.accuracy < ScoreConfig().least_accuracy:
            continue
        known = {
            f"learned, {kind} unseen": next(a for left, a in artifacts.items() if value in LEFT_OUT[left])
            for kind, value in (("family", network.family), ("data", network.data))
        }
        known |= {"learned, network unseen": artifacts[ALL]}
        name = f"zoo {network.number:04}"
        labels = [n for n in (*CRITERIA, *CONTROLS, *known, START) if (name, n, 0) not in done]
        described = {"network": name, "family": network.family, "data": network.data, "seed": 0}
        if labels:
            yield [{**described, **row} for row in rows_of(network.task(), known, labels, 0, network.data)]


def real_rows(
    options: argparse.Namespace, artifacts: dict[str, Artifact], done: set[tuple[str, str, int]]
) -> Iterator[list[dict[str, Any]]]:
    """Networks of FOLDER, by the rule that ships."""
    for seed in range(options.seeds):
        for name in options.networks:
            rules = {"learned, network unseen": artifacts[ALL]}
            wanted = options.labels or (*CRITERIA, *CONTROLS, *rules, START)
            labels = [n for n in wanted if (name, n, seed) not in done]
            if not labels:
                continue
            subject = SUBJECTS[name]
            data = subject.samples(options.folder, IMAGES)
            task = PruneTask(mp.trace(subject.network(options.folder), subject.example), data)
            described = {"network": name, "family": None, "data": Path(data.name).name, "seed": seed}
            yield [{**described, **row} for row in rows_of(task, rules, labels, seed, name)]


def rows_of(
    task: PruneTask, rules: dict[str, Artifact], labels: Sequence[str], seed: int, name: str
) -> list[dict[str, Any]]:
    """Accuracy of the labels at every share, after the cut and least squares."""
    rng, rows = mp.Rng(seed).child("study", name), []
    batches = calibration_batches(task.network, task.data.train, SAMPLES, rng.child("solved on"))
    full, dense = float(task.network.cost().macs), accuracy(task, mp.Plan(), {})
    for label, scores, cpu_s in all_scores(task, rules, labels, rng):
        for share in SHARES:
            budget = mp.Budget(macs=max(share * full, least_macs(task)))
            began = time.process_time()
            if scores is None:
                plan = create_method(label).propose(task, budget, rng.child(label)).plan
            else:
                plan = task.allocator(budget).by_scores(scores)
            solved = compensate(task.network, plan, batches, kind="least-squares", rng=rng.child("solve"))
            rows.append(
                {
                    "label": label,
                    "share": share,
                    "accuracy": accuracy(task, plan, solved.weights),
                    "dense": dense,
                    "macs_share": round(float(task.network.cost(plan).macs) / full, 4),
                    "cpu_s": round(cpu_s + time.process_time() - began, 2),
                }
            )
    return rows


def all_scores(
    task: PruneTask, rules: dict[str, Artifact], labels: Sequence[str], rng: mp.Rng
) -> Iterator[tuple[str, Sequence[np.ndarray] | None, float]]:
    """Label, scores of all channels and CPU seconds for them; no scores for the controls."""
    for label in labels:
        if label in CONTROLS:
            yield label, None, 0.0
        elif label in CRITERIA:
            began = time.process_time()
            name, options = CRITERIA[label]
            yield label, create_method(name, options).scores(task, mp.Plan(), rng.child("scores")), _since(began)
    began = time.process_time()
    features = channel_features(task, rng.child("features"))
    spent = _since(began)
    for label in (n for n in labels if n in rules):
        yield label, Rule.restored(rules[label]).scores(features), spent
    if START in labels:  # of the rule without its family, where there is one
        start = next(iter(rules.values())).info["start"]
        yield START, Rule(np.array([start[name] for name in FEATURES])).scores(features), spent


def _since(began: float) -> float:
    return time.process_time() - began


def accuracy(task: PruneTask, plan: mp.Plan, weights: dict[str, torch.Tensor]) -> float:
    """Accuracy on the test split, with these full-size tensors in the place of the network's."""
    tensors = {**{n: t.detach() for n, t in task.network.tensors.items()}, **weights}
    module = TracedModule(task.network, tensors, plan).eval()
    split = task.data.test.take(min(IMAGES, len(task.data.test)))
    return round(evaluate(module, split, objective=task.data.objective)["accuracy"], 4)


def write(out: Path, report: dict[str, Any]) -> None:
    facts = {
        "question": "accuracy after the cut and least squares, by what ranked the channels (scope: all together)",
        "test_images": IMAGES,
        "environment": {"torch": torch.__version__, "python": platform.python_version(), "threads": 1},
    }
    out.write_text(json.dumps({**facts, **report}, indent=1) + "\n")


if __name__ == "__main__":
    main()
