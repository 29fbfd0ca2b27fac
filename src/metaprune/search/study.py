"""One search: a study in a storage, any number of workers, resumed where it stopped."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from metaprune.cost.analytic import CostModel
from metaprune.errors import ConfigError, SearchError
from metaprune.rng import Rng
from metaprune.search.codec import BudgetSampler, Codec, load_of
from metaprune.search.config import SearchConfig
from metaprune.search.sampler import SLOT, StrategySampler, distributions, fail_dead_workers
from metaprune.search.strategies import Evolution, GreedySlimming, RandomSearch, Strategy

Score = Callable[[np.ndarray], Mapping[str, float]]
"""Widths int64 [groups] -> {"score": higher is better, ...}; what else it says is kept with the candidate."""
_POLL_S = 0.5
_PAUSES_S = (0.3, 0.7, 1.5)


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


@dataclass(frozen=True)
class Search:
    """What is searched: structures of `codec` under each of `bounds` (metric -> absolute bound), by `score`.

    storage: an Optuna storage URL (sqlite:///FILE, postgresql+psycopg://..., journal:FILE), or None for memory.
    name: of the study; a search that finds its name in the storage goes on with it.
    """

    codec: Codec
    costs: CostModel
    bounds: Sequence[Mapping[str, float]]
    config: SearchConfig
    rng: Rng
    storage: str | None = None
    name: str = "search"

    def run(self, score: Score, on_candidate: Callable[[int, int, float], None] | None = None) -> list[Candidate]:
        """Evaluate until the search is complete; candidates in the order of their slots.

        on_candidate: (number evaluated, number in all or 0 if unknown, seconds of the last one).

        Raises:
            InfeasibleBudgetError: a bound below the smallest structure.
            SearchError: the storage cannot be reached; nothing that was evaluated is lost.
        """
        samplers = [BudgetSampler(self.codec, self.costs, b, self.config.tolerance) for b in self.bounds]
        with _storage_errors(self.storage):
            study = self._open(self._sampler(samplers))
            if isinstance(study.sampler, StrategySampler):
                self._follow(study, study.sampler, score, on_candidate)
            else:
                self._optimise(study, samplers[0], score, on_candidate)
            return self._candidates(study, samplers)

    # ------------------------------------------------------------------------------------------ running

    def _sampler(self, samplers: list[BudgetSampler]) -> optuna.samplers.BaseSampler:
        kind, evolution = self.config.searcher, self.config.evolution
        rng = self.rng.child("search", kind)
        if kind == "nsga2":
            if len(samplers) > 1:
                raise ConfigError("nsga2 serves one budget at a time; search for a front with evolution")
            return optuna.samplers.NSGAIISampler(population_size=evolution.population, seed=rng.integer() % 2**32)
        strategy: Strategy
        if kind == "greedy":
            strategy = GreedySlimming(self.codec, samplers, rng, self.config.greedy_steps)
        else:
            strategy = (Evolution if kind == "evolution" else RandomSearch)(self.codec, samplers, rng, evolution)
        return StrategySampler(strategy)

    def _open(self, sampler: optuna.samplers.BaseSampler) -> optuna.Study:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        for pause in (*_PAUSES_S, None):
            try:
                return optuna.create_study(
                    storage=_storage(self.storage), study_name=self.name, sampler=sampler, direction="maximize",
                    load_if_exists=True,
                )  # fmt: skip
            except (ValueError, ImportError, ArgumentError) as error:  # another URL is needed, or a driver
                raise SearchError(
                    f"the storage {_shown(self.storage)} cannot be opened: {_reason(error)}. Give sqlite:///FILE, "
                    "journal:FILE, or postgresql+psycopg://USER@HOST/DB (pip install 'psycopg[binary]')"
                ) from error
            except (SQLAlchemyError, optuna.exceptions.StorageInternalError):
                if pause is None:
                    raise
                time.sleep(pause)  # several processes that create the tables at once get in each other's way
        raise AssertionError("unreachable")

    def _follow(self, study: optuna.Study, sampler: StrategySampler, score: Score, on_candidate: Any) -> None:
        while not sampler.finished(study):
            if not sampler.open_slots(study):  # the last of this batch are with other workers
                time.sleep(_POLL_S)
                continue
            trial = study.ask(distributions(self.codec))
            if sampler.slots[trial.number] < 0:  # another worker took the last one meanwhile
                study.tell(trial, state=TrialState.FAIL)
                return
            genome = np.array([trial.params[g] for g in self.codec.genes], dtype=np.int64)
            self._evaluate(study, trial, genome, score, on_candidate)

    def _optimise(self, study: optuna.Study, sampler: BudgetSampler, score: Score, on_candidate: Any) -> None:
        """Optuna's own sampler: it knows no budget, so what it suggests is repaired before it is scored."""
        fail_dead_workers(study)
        space = distributions(self.codec)
        while len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))) < self._planned:
            trial = study.ask(space)
            genome = np.array([trial.params[g] for g in self.codec.genes], dtype=np.int64)
            draw = self.rng.child("repair", trial.number).numpy()
            self._evaluate(study, trial, sampler.repair(genome[None], draw)[0], score, on_candidate)

    @property
    def _planned(self) -> int:
        """Structures in all; 0 if the strategy decides as it goes."""
        evolution = self.config.evolution
        return 0 if self.config.searcher == "greedy" else evolution.population * evolution.generations

    def _evaluate(
        self, study: optuna.Study, trial: optuna.Trial, genome: np.ndarray, score: Score, on_candidate: Any
    ) -> None:
        start = time.perf_counter()
        widths = self.codec.widths(genome)
        try:
            found = {k: float(v) for k, v in score(widths).items()}
        except BaseException:  # Ctrl-C, too: the slot is free again at once
            study.tell(trial, state=TrialState.FAIL)
            raise
        trial.set_user_attr("widths", widths.tolist())
        trial.set_user_attr("found", found)
        try:
            study.tell(trial, found["score"])
        except optuna.exceptions.UpdateFinishedTrialError:  # another host took this worker for dead; its slot is free
            return
        if on_candidate is not None:
            done = len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
            on_candidate(done, self._planned, time.perf_counter() - start)

    def _candidates(self, study: optuna.Study, samplers: list[BudgetSampler]) -> list[Candidate]:
        trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        rows = np.array([t.user_attrs["widths"] for t in trials], dtype=np.int64)
        loads = np.min([load_of(rows, self.costs, s.bounds) for s in samplers], axis=0)
        found = [
            Candidate(
                t.user_attrs.get(SLOT, t.number),
                tuple(map(int, w)),
                float(load),
                t.user_attrs["found"],
                0.0 if t.duration is None else t.duration.total_seconds(),
            )
            for t, w, load in zip(trials, rows, loads, strict=True)
        ]
        once = {c.slot: c for c in reversed(found)}  # two workers may have scored one slot
        return [once[slot] for slot in sorted(once)]


def best_within(candidates: Sequence[Candidate], costs: CostModel, bounds: Mapping[str, float]) -> Candidate | None:
    """The best score within `bounds`; of equal ones the first that was found. None if nothing fits."""
    rows = np.array([c.widths for c in candidates], dtype=np.int64)
    fits = [c for c, load in zip(candidates, load_of(rows, costs, bounds), strict=True) if load <= 1]
    return max(fits, key=lambda c: (c.score, -c.slot), default=None)


def front(candidates: Sequence[Candidate], cost: Sequence[float] | np.ndarray) -> list[int]:
    """Indices on the Pareto front (lower cost, higher score), by rising cost."""
    best, found = -np.inf, []
    for i in sorted(range(len(candidates)), key=lambda i: (cost[i], -candidates[i].score)):
        if candidates[i].score > best:
            best = candidates[i].score
            found.append(i)
    return found


def _storage(url: str | None) -> Any:
    if url is not None and url.startswith("journal:"):
        from optuna.storages.journal import JournalFileBackend, JournalStorage

        return JournalStorage(JournalFileBackend(url.removeprefix("journal:")))
    return url


@contextmanager
def _storage_errors(url: str | None) -> Iterator[None]:
    """A storage that goes away is one clear error; passwords are not shown."""
    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise SearchError(
            f"the storage {_shown(url)} of the search cannot be used: {_reason(error)}. What was evaluated is kept "
            "there; put it right and run the same command again to go on"
        ) from error


def _shown(url: str | None) -> str:
    return re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", url or "memory")


def _reason(error: Exception) -> str:
    return next(iter(str(error.__cause__ or error).splitlines()), type(error).__name__)
