"""One search: a study in a storage, any number of workers, resumed where it stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from metaprune.core.errors import ConfigError, SearchError
from metaprune.core.rng import Rng
from metaprune.cost.analytic import CostModel
from metaprune.search.config import SearchConfig
from metaprune.search.encoding import BudgetSampler, WidthEncoding, budget_use
from metaprune.search.liveness import BeatingSampler, Watch
from metaprune.search.sampler import (
    SLOT,
    StrategySampler,
    distributions,
    trials_of,
)
from metaprune.search.storage import opened, storage_errors
from metaprune.search.strategies import Evolution, GreedySlimming, RandomSearch, Strategy

Score = Callable[[np.ndarray], Mapping[str, float]]
"""Widths int64 [groups] -> {"score": higher is better, ...}; what else it says is kept with the candidate."""
_POLL_S = 0.5
_MUTATIONS = 100  # in search of a structure that was not scored yet


class BeatingNsga2(BeatingSampler, optuna.samplers.NSGAIISampler):
    """Optuna's NSGA-II, whose trials tell the other workers that they live."""


@dataclass(frozen=True)
class Candidate:
    """A structure that was scored. slot: its place in the sequence. found: all that the score function said.

    seconds: of scoring it, bookkeeping included.
    """

    slot: int
    widths: tuple[int, ...]
    load: float
    found: Mapping[str, float]
    seconds: float = 0.0

    @property
    def score(self) -> float:
        return float(self.found["score"])

    @property
    def whole(self) -> bool:
        """Tell whether it was scored on all samples, not screened out."""
        return bool(self.found.get("whole", True))


@dataclass(frozen=True)
class Search:
    """What is searched: structures of `codec` under each of `bounds` (metric -> absolute bound), by `score`.

    storage: an Optuna storage URL (sqlite:///FILE, postgresql+psycopg://..., journal:FILE), or None for memory.
    name: of the study; a search that finds its name in the storage goes on with it.
    screen: scores a structure on fewer samples. Structures that reach less than the strategy's bar are not scored on
        all of them, and are neither parents nor winners. Evolution and random search of one budget have a bar.
    """

    codec: WidthEncoding
    costs: CostModel
    bounds: Sequence[Mapping[str, float]]
    config: SearchConfig
    rng: Rng
    storage: str | None = None
    name: str = "search"
    screen: Callable[[np.ndarray], float] | None = None

    def run(self, score: Score, on_candidate: Callable[[int, int, float], None] | None = None) -> list[Candidate]:
        """Evaluate until the search is complete; candidates in the order of their slots.

        on_candidate: (number evaluated, number in all or 0 if unknown, seconds of the last one).

        Raises:
            InfeasibleBudgetError: a bound below the smallest structure.
            SearchError: the storage cannot be reached, nothing that was evaluated is lost; or a score is not finite.
            Whatever `score` raises.
        """
        samplers = [BudgetSampler(self.codec, self.costs, b, self.config.tolerance) for b in self.bounds]
        sampler = self._sampler(samplers)
        with opened(self.storage, self.name, sampler) as study:
            try:
                for trial, widths in self._asked(study, samplers):
                    start = time.perf_counter()
                    bar = sampler.bar if isinstance(sampler, StrategySampler) else None
                    done = self._keep(study, trial, self._figures(score, widths, bar))
                    if on_candidate is not None:
                        on_candidate(done, self._planned, time.perf_counter() - start)
            finally:  # after Ctrl-C, too: what this process held is free again at once
                for number in sampler.beating:
                    with suppress(SearchError), storage_errors(self.storage):
                        study.tell(number, state=TrialState.FAIL, skip_if_finished=True)
                sampler.stop()
            with storage_errors(self.storage):
                return self._candidates(study, samplers)

    # ------------------------------------------------------------------------------------------ running

    def _sampler(self, samplers: list[BudgetSampler]) -> BeatingSampler:
        kind, evolution = self.config.searcher, self.config.evolution
        rng = self.rng.child("search", kind)
        if kind == "nsga2":
            if len(samplers) > 1:
                raise ConfigError("nsga2 serves one budget at a time; search for a front with evolution")
            return BeatingNsga2(population_size=evolution.population, seed=rng.integer() % 2**32)
        strategy: Strategy
        if kind == "greedy":
            strategy = GreedySlimming(self.codec, samplers, rng)
        else:
            strategy = (Evolution if kind == "evolution" else RandomSearch)(self.codec, samplers, rng, evolution)
        return StrategySampler(strategy)

    def _asked(self, study: optuna.Study, samplers: list[BudgetSampler]) -> Iterator[tuple[optuna.Trial, np.ndarray]]:
        """Widths to score, until the search is complete. Being a generator, it does not see what scoring raises."""
        with storage_errors(self.storage):
            sampler = study.sampler
            asked = (
                self._follow(study, sampler)
                if isinstance(sampler, StrategySampler)
                else self._optimise(study, samplers[0])
            )
            for trial, genome in asked:
                widths = self.codec.widths(genome)
                trial.set_user_attr("widths", widths.tolist())
                yield trial, widths

    def _follow(self, study: optuna.Study, sampler: StrategySampler) -> Iterator[tuple[optuna.Trial, np.ndarray]]:
        while (free := sampler.open_slots(study)) is not None:
            if not free:  # the last of this batch are with other workers
                sampler.say_waiting(study)
                time.sleep(_POLL_S)
                continue
            sampler.watch.working()
            trial = study.ask(distributions(self.codec))
            if sampler.slots[trial.number] < 0:  # another worker took the last one meanwhile
                study.tell(trial, state=TrialState.FAIL)
                return
            yield trial, self._genome(trial)

    def _optimise(self, study: optuna.Study, sampler: BudgetSampler) -> Iterator[tuple[optuna.Trial, np.ndarray]]:
        """Optuna's own sampler: it knows no budget and repeats itself. What it suggests is repaired, and mutated where
        that structure was seen; where no mutant is new, the search is over."""
        watch = Watch()
        strategy = Evolution(self.codec, [sampler], self.rng, self.config.evolution)
        while len(trials_of(study, TrialState.COMPLETE)) < self._planned:
            watch.fail_dead(study, trials_of(study, TrialState.RUNNING), ())
            trial = study.ask(distributions(self.codec))
            others = trials_of(study, TrialState.COMPLETE, TrialState.RUNNING)
            seen = {tuple(t.user_attrs.get("widths", ())) for t in others}
            draw = self.rng.child("repair", trial.number).numpy()
            rows = sampler.repair(self._genome(trial)[None], draw)
            for _ in range(_MUTATIONS):
                if tuple(self.codec.widths(rows[0]).tolist()) not in seen:
                    break
                rows = sampler.repair(strategy.mutated(rows, 1, draw), draw)
            else:
                study.tell(trial, state=TrialState.FAIL)
                return
            yield trial, rows[0]

    def _genome(self, trial: optuna.Trial) -> np.ndarray:
        return np.array([trial.params[g] for g in self.codec.genes], dtype=np.int64)

    @property
    def _planned(self) -> int:
        """Structures in all; 0 if the strategy decides as it goes."""
        evolution = self.config.evolution
        return 0 if self.config.searcher == "greedy" else evolution.population * evolution.generations

    def _figures(self, score: Score, widths: np.ndarray, bar: float | None) -> dict[str, float]:
        """All that is known of a structure; of one that misses the bar in the screening, that alone."""
        if self.screen is None or bar is None:
            return _finite(score(widths), widths)
        screened = float(self.screen(widths))
        if screened < bar:
            return _finite({"score": screened, "screened": screened, "whole": 0.0}, widths)
        return _finite({**score(widths), "screened": screened}, widths)

    def _keep(self, study: optuna.Study, trial: optuna.Trial, figures: Mapping[str, float]) -> int:
        """Number of structures that are scored now."""
        with storage_errors(self.storage):
            with suppress(UpdateFinishedTrialError):  # another host took this worker for dead; its slot is free
                trial.set_user_attr("found", figures)
                study.tell(trial, figures["score"], skip_if_finished=True)
            return len(trials_of(study, TrialState.COMPLETE))

    def _candidates(self, study: optuna.Study, samplers: list[BudgetSampler]) -> list[Candidate]:
        trials = trials_of(study, TrialState.COMPLETE)
        rows = np.array([t.user_attrs["widths"] for t in trials], dtype=np.int64)
        loads = np.min([budget_use(rows, self.costs, s.bounds) for s in samplers], axis=0)
        candidates = [
            Candidate(
                t.user_attrs.get(SLOT, t.number),
                tuple(map(int, w)),
                float(load),
                t.user_attrs["found"],
                0.0 if t.duration is None else t.duration.total_seconds(),
            )
            for t, w, load in zip(trials, rows, loads, strict=True)
        ]
        once = {c.slot: c for c in reversed(candidates)}  # two workers may have scored one slot
        return [once[slot] for slot in sorted(once)]


def _finite(figures: Mapping[str, float], widths: np.ndarray) -> dict[str, float]:
    """Raises SearchError for a score that is not finite: Optuna would ask for its slot for ever."""
    figures = {k: float(v) for k, v in figures.items()}
    if not np.isfinite(figures["score"]):
        raise SearchError(
            f"the score of the structure of widths {widths.tolist()} is {figures['score']}: what scores it diverged; "
            "train it anew, with a lower learning rate"
        )
    return figures


def best_within(candidates: Sequence[Candidate], costs: CostModel, bounds: Mapping[str, float]) -> Candidate | None:
    """Find the best score within `bounds`; of equal ones the first that was found. None if nothing fits.

    What was screened out is no candidate.
    """
    rows = np.array([c.widths for c in candidates], dtype=np.int64)
    fits = [c for c, load in zip(candidates, budget_use(rows, costs, bounds), strict=True) if load <= 1 and c.whole]
    return max(fits, key=lambda c: (c.score, -c.slot), default=None)


def front(candidates: Sequence[Candidate], cost: Sequence[float] | np.ndarray) -> list[int]:
    """Indices on the Pareto front (lower cost, higher score), by rising cost."""
    best, front_indices = -np.inf, []
    for i in sorted(range(len(candidates)), key=lambda i: (cost[i], -candidates[i].score)):
        if candidates[i].whole and candidates[i].score > best:
            best = candidates[i].score
            front_indices.append(i)
    return front_indices
