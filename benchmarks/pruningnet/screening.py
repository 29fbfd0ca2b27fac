"""Do fewer images tell which structures are worth all of them, and how many more structures a second is that?

    OMP_NUM_THREADS=1 python benchmarks/pruningnet/screening.py --out benchmarks/pruningnet/screening.json

The MobileNetV1-style network of study.py on Fashion-MNIST, shared weights, the method's own 2,048 images for
statistics and 5,000 for scores. `rank`: random structures at equal MACs, scored on all images and on fewer. `search`:
the same evolution with and without screening; winners are compared by their scores on all images, no test split.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from study import FIT, GRID, separable

import metaprune as mp
from metaprune.core.rng import Rng
from metaprune.data import load_data
from metaprune.latency.build import spearman
from metaprune.methods.pruningnet.method import PruningNet
from metaprune.methods.pruningnet.structure_search import StructureSearch
from metaprune.methods.pruningnet.supernet import Scorer
from metaprune.protocol.method import PruneTask
from metaprune.search.config import EvolutionConfig, SearchConfig
from metaprune.search.encoding import BudgetSampler
from metaprune.search.study import best_within

SHARES = (0.5, 0.25)
FEWER = ((2048, 1024), (512, 1024), (512, 512), (256, 256))  # images for statistics, for the score
STRUCTURES, BEST = 40, 10
EVOLUTION = EvolutionConfig(population=25, generations=12, parents=5)


def method(seed: int, **options: Any) -> PruningNet:
    return PruningNet(
        train=replace(FIT, epochs=4),
        grid=GRID,
        sub_validation=5000,
        batch_size=256,
        search=SearchConfig(evolution=EVOLUTION),
        **options,
    )


def fitted(seed: int) -> tuple[PruneTask, Any]:
    with Rng(seed).child("model").torch_global():
        model = separable(1)
    network = mp.trace(model, torch.zeros(2, 1, 28, 28))
    task = PruneTask(network, load_data("builtin:fashion-mnist", limit=14000), progress=False)
    return task, method(seed).fit([task], Rng(seed))


def timed(scorer: Scorer, rows: np.ndarray) -> tuple[np.ndarray, float]:
    """Scores and CPU seconds a structure; kernels of these shapes are compiled before."""
    for widths in rows:
        scorer.on_fewer(2)(widths)
    start = time.process_time()
    return np.array([scorer.score(widths) for widths in rows]), (time.process_time() - start) / len(rows)


def rank(session: StructureSearch, share: float) -> list[dict[str, Any]]:
    network = session.task.network
    sampler = BudgetSampler(session.codec, network.cost_model(), {"macs": share * network.cost().macs})
    rows = session.codec.widths(sampler.sample(STRUCTURES, np.random.default_rng(0)))
    whole, whole_s = timed(session.scorer, rows)
    best = np.argsort(-whole)[:BEST]
    found = []
    for calibration, validation in FEWER:
        few = Scorer(
            session.scorer.supernet,
            session.scorer.on_fewer(calibration).calibration,
            session.scorer.on_fewer(validation).validation,
            session.scorer.objective,
        )
        scores, seconds = timed(few, rows)
        upper = set(np.argsort(-scores)[: STRUCTURES // 2].tolist())
        found.append(
            {
                "macs": share,
                "calibration": calibration,
                "validation": validation,
                "spearman": spearman(scores, whole),
                "best_in_upper_half": sum(int(i) in upper for i in best),
                "time": seconds / whole_s,
            }
        )
    return found


def search(task: PruneTask, artifact: Any, seed: int, share: float, screening: int) -> dict[str, Any]:
    session = method(seed, screening=screening).session(task, artifact)
    bounds = {"macs": share * task.network.cost().macs}
    start = time.process_time()
    found = session.search([bounds], Rng(seed))
    seconds = time.process_time() - start
    best = best_within(found, task.network.cost_model(), bounds)
    assert best is not None
    return {
        "seed": seed,
        "macs": share,
        "screening": screening,
        "structures": len(found),
        "scored_on_all": sum(c.whole for c in found),
        "candidates_per_cpu_s": len(found) / seconds,
        "winner": best.score,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {"structures": STRUCTURES, "best": BEST, "rank": [], "search": []}
    for seed in options.seeds:
        task, artifact = fitted(seed)
        if seed == options.seeds[0]:
            session = method(seed).session(task, artifact)
            results["rank"] = [row for share in SHARES for row in rank(session, share)]
        for screening in (0, 512):
            results["search"].append(search(task, artifact, seed, SHARES[1], screening))
            print(results["search"][-1], flush=True)
            options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
