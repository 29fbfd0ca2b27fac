"""Does searching for milliseconds find better structures than searching for MACs, at equal milliseconds?

    OMP_NUM_THREADS=1 python benchmarks/latency/search.py --out benchmarks/latency/search.json

Network, data, fitted PruningNets, searches under MACs and final training are those of benchmarks/pruningnet/study.py
(run it first, with its artifacts). What a search under MACs found takes some milliseconds, by a latency table made
here; they are the budget of a search for milliseconds with the same PruningNet and seed, and of uniform width. All
three are then measured end to end, taking turns, and trained from scratch. Killed and started again, it goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metaprune.core.rng import Rng
from metaprune.latency import LatencyTable, build_table
from metaprune.latency.runtimes import Repeats, make_timer
from metaprune.latency.segments import segments_of
from metaprune.methods import create_method
from metaprune.network import Network
from metaprune.protocol.method import PruneTask
from metaprune.values import Budget, Plan

PRUNINGNET = Path(__file__).parents[1] / "pruningnet"
sys.path.append(str(PRUNINGNET))

from study import CASES, SEARCHES, Study  # noqa: E402

CLOCK = "cpu"  # processor time: other work on the machine disturbs it less
TOLERANCE = 0.02  # of milliseconds that the search may leave over: they are to be equal


class Comparison:
    def __init__(self, study: Study, label: str, under_macs: dict[str, Any], table_file: Path, batch: int):
        self.study, self.label, self.under_macs, self.batch = study, label, under_macs, batch
        self.images = (torch.randn(batch, *study.case.shape, generator=Rng(0).child("images").torch()),)
        self.table = self._table(table_file)

    def _table(self, file: Path) -> LatencyTable:
        if not file.exists():
            self.study.rows.pop("table", None)

        def make() -> dict[str, Any]:
            table = build_table(self.study.network(0), self.images, clock=CLOCK, structures=40, progress=print)
            table.save(file)
            return table.info

        self.study.once("table", make)
        return LatencyTable.load(file)

    def run(self, budget: str, seed: int) -> None:
        searcher, backend, score = SEARCHES[self.label]
        session = self.study.session(backend, seed, searcher, score)
        search = replace(session.method.search, tolerance=TOLERANCE)
        session = replace(session, method=replace(session.method, search=search))
        network = session.task.network.with_latency(self.table.predict_ms)
        session = replace(session, task=replace(session.task, network=network))
        macs_plan = session.codec.plan(np.array(self.under_macs[f"search/{self.label}/{budget}/{seed}"]["widths"]))
        bound = Budget(latency_ms=network.cost(macs_plan).latency_ms)
        key = f"search/{budget}/{seed}"
        found = self.study.once(key, lambda: self.study.searched(session, bound, seed))
        uniform = create_method("uniform", {"fill": True}).propose(
            PruneTask(network, self.study.data), bound, Rng(seed)
        )
        plans = {
            "searched for MACs": macs_plan,
            "searched for milliseconds": session.codec.plan(np.array(found["widths"])),
            "uniform": uniform.plan,
        }
        self.study.once(f"ms/{budget}/{seed}", lambda: self.measured(network, plans))
        trained = self.under_macs[f"budget/{self.label}/{budget}/{seed}"]
        self.study.rows.setdefault(f"final/searched for MACs/{budget}/{seed}", trained)
        for label, plan in plans.items():
            self.study.once(f"final/{label}/{budget}/{seed}", lambda plan=plan: self.study.trained(plan, seed))

    def measured(self, network: Network, plans: dict[str, Plan]) -> dict[str, Any]:
        """Milliseconds of the cut networks and of the full one, predicted, and measured in turns in one process."""
        widths = np.stack([p.widths(network.space) for p in (Plan(), *plans.values())])
        timer = make_timer("eager", network, *segments_of(network, self.batch), self.images, {}, Repeats(3, 31, CLOCK))
        pairs = zip(self.table.predict_ms(widths).tolist(), timer.whole(widths).tolist(), strict=True)
        rows = [{"predicted_ms": predicted, "measured_ms": measured} for predicted, measured in pairs]
        return dict(zip(("full", *plans), rows, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, default="mobilenet")
    parser.add_argument("--study", type=Path, default=PRUNINGNET / "mobilenet_fashion.json", help="rows of the case")
    parser.add_argument("--artifacts", type=Path, default=PRUNINGNET / "artifacts")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--search", choices=SEARCHES, default="generated (paper)")
    parser.add_argument("--batch", type=int, default=64, help="images that are timed at once")
    parser.add_argument("--budgets", nargs="*", default=["50%", "25%"], help="of the searches under MACs")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    given = parser.parse_args()
    torch.set_num_threads(1)
    under_macs = json.loads(given.study.read_text())["rows"]
    study = Study(CASES[given.case], given.out, given.artifacts)
    study.rows.update({k: row for k, row in under_macs.items() if k.startswith(f"fit/{SEARCHES[given.search][1]}/")})
    comparison = Comparison(
        study, given.search, under_macs, given.artifacts / f"latency_table_{given.batch}.json", given.batch
    )
    for budget in given.budgets:
        for seed in given.seeds:
            comparison.run(budget, seed)


if __name__ == "__main__":
    main()
