"""A fitted PruningNet at work: one search after the other, and what a record says of them."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from metaprune.core.files import tensors_digest
from metaprune.core.rng import Rng
from metaprune.methods.criteria.uniform import Uniform
from metaprune.methods.pruningnet.config import PruningNetConfig
from metaprune.methods.pruningnet.supernet import Scorer
from metaprune.protocol.artifact import Artifact
from metaprune.protocol.method import PruneTask
from metaprune.search.config import ENVIRONMENT
from metaprune.search.encoding import WidthEncoding
from metaprune.search.study import Candidate, Search
from metaprune.values import Budget

log = logging.getLogger("metaprune")

_FIT = ("options", "history", "seconds", "macs", "parameters", "split", "genes")


@dataclass(frozen=True)
class StructureSearch:
    """A fitted PruningNet on its network: searches, one budget after the other."""

    method: PruningNetConfig
    task: PruneTask
    artifact: Artifact
    codec: WidthEncoding
    scorer: Scorer

    def search(self, bounds: Sequence[Mapping[str, float]], rng: Rng) -> list[Candidate]:
        """Search under each of `bounds` and return all candidates; goes on where an earlier start stopped."""
        search = Search(
            self.codec,
            self.task.network.cost_model(),
            bounds,
            self.method.search,
            rng.child("search"),
            self.storage,
            self._name(bounds, rng),
            self._screen if self._screen is None else self._screen.score,
        )
        return search.run(self.scorer, self._say if self.task.progress else None)

    @functools.cached_property
    def _screen(self) -> Scorer | None:
        """What looks at structures first; None where that would save less than half."""
        screen = self.scorer.on_fewer(self.method.screening)
        saves = self.method.screening > 0 and 2 * sum(screen.samples) <= sum(self.scorer.samples)
        return screen if saves else None

    @property
    def storage(self) -> str | None:
        """The given storage, that of the environment, or a file in the task's folder; None is memory."""
        given = self.method.runs_at or self.method.storage or os.environ.get(ENVIRONMENT)
        folder = self.task.folder
        if given or folder is None:
            return given or None
        folder.mkdir(parents=True, exist_ok=True)
        return f"sqlite:///{folder.resolve() / 'search.db'}"

    def _name(self, bounds: Sequence[Mapping[str, float]], rng: Rng) -> str:
        """Of the study: the same search finds it again, any other makes its own."""
        costs, ends = self.task.network.cost_model(), np.stack([self.codec.full // 2, self.codec.full])
        pace = costs.metric("latency_ms", self.codec.widths(ends)).tolist() if costs.knows("latency_ms") else None
        what = {
            "artifact": tensors_digest(self.artifact.tensors),
            "bounds": [dict(b) for b in bounds],
            "latency_ms": pace,
            "search": dataclasses.asdict(self.method.search),
            "seed": [rng.seed, *rng.path],
            "scoring": [self.method.calibration, self.method.batch_size, self.method.score, self.method.screening],
            "genes": self.codec.sizes.tolist(),
        }
        digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]
        bound = "_".join(f"{m}{v:.4g}" for m, v in bounds[0].items()) if len(bounds) == 1 else "front"
        return f"{self.method.search.searcher}-{bound}-{digest}"

    def _say(self, done: int, planned: int, seconds: float) -> None:
        if done % 10 == 0 or done == planned:
            of = f" of {planned}" if planned else ""
            log.info("search: %d%s structures, %.2f s the last", done, of, seconds)

    def report(self, candidates: Sequence[Candidate], best: Candidate, budget: Budget) -> dict[str, Any]:
        """JSON-able: every candidate with its costs, the winner, and what fitting and searching took."""
        costs = self.task.network.cost_model()
        rows = np.array([c.widths for c in candidates], dtype=np.int64)
        metrics = {m: costs.metric(m, rows).tolist() for m in dict.fromkeys(("macs", "params", *budget.to_dict()))}
        uniform = Uniform(fill=True).propose(self.task, budget, Rng(0))
        images = np.array([sum(self.scorer.samples) if c.whole else 0 for c in candidates])
        if self._screen is not None:
            images += np.array([sum(self._screen.samples) if "screened" in c.found else 0 for c in candidates])
        info = self.artifact.info
        return {
            "fit": {k: info[k] for k in _FIT if k in info},
            "search": {
                "searcher": self.method.search.searcher,
                "generation_size": self.method.search.evolution.population,
                "groups": [g.name for g in self.task.network.space],
                "widths": rows.tolist(),
                "uniform_widths": uniform.plan.widths(self.task.network.space).tolist(),
                "scores": [c.score if c.whole else None for c in candidates],
                "screened_out": sum(not c.whole for c in candidates),
                "score": self.method.score,
                "losses": [c.found.get("loss") for c in candidates],
                "costs": metrics,
                "best": candidates.index(best),
                "macs": float(np.dot(metrics["macs"], images)),
                "seconds": sum(c.seconds for c in candidates),
            },
        }
