"""A strategy as an Optuna sampler: ask/tell, storage, workers and resume are Optuna's.

Every trial takes a *slot*, a position in the strategy's sequence of structures. A slot whose trial failed (its worker
was killed) is free again, so that the sequence has no holes. A batch is handed out when the one before is complete.

Storages have no atomic claim of an attribute, so two workers that reach for a slot in the same moment may both score
it: the first score counts, the other costs its time and changes nothing.
"""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from metaprune.search.encoding import WidthEncoding
from metaprune.search.liveness import BeatingSampler, Watch
from metaprune.search.strategies import Evaluated, Strategy

SLOT = "slot"
_POLL_S = 0.2


class StrategySampler(BeatingSampler):
    """Optuna sampler that follows `strategy`; with more trials than the strategy has, the rest is random in budget.

    study.optimize(objective, n_trials=...) works with it as with any other sampler.
    """

    def __init__(self, strategy: Strategy):
        self.strategy = strategy
        self.slots: dict[int, int] = {}  # of this process's trials, by trial number; negative: beyond the strategy
        self._scored: dict[int, Evaluated] = {}  # by slot
        self._scorer: dict[int, int] = {}  # slot -> its trial; of two the older one, in every worker
        self._settled = 0  # trials up to here are finished, and were looked at
        self._index, self._first = -1, 0  # of the newest batch: its number, its first slot
        self._batch: np.ndarray | None = np.empty((0, len(strategy.codec.sizes)), dtype=np.int64)
        self.bar: float | None = None  # of the newest batch, see `Strategy.bar`
        self.watch = Watch()

    # ------------------------------------------------------------------------------------------ Optuna's interface

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return distributions(self.strategy.codec)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        storage, number = study._storage, trial._trial_id
        while True:
            slot, genome = self._wait_for_slot(study, trial)
            storage.set_trial_user_attr(number, SLOT, slot)
            self.slots[trial.number] = slot
            rivals = self._sync_with_storage(study, trial.number)
            if slot not in self._scored and rivals.get(slot, trial.number) >= trial.number:  # the older one keeps it
                return {name: int(i) for name, i in zip(search_space, genome, strict=True)}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        raise NotImplementedError("all genes of a structure are drawn together")

    # ------------------------------------------------------------------------------------------ slots

    def open_slots(self, study: Study, asking: int = -1) -> list[tuple[int, np.ndarray]] | None:
        """Slots and structures of the newest batch that no other trial than `asking` holds; None: all are scored.

        Frees the slots of dead workers.
        """
        held = self._sync_with_storage(study, asking)
        while self._batch is not None:
            slots = range(self._first, self._first + len(self._batch))
            missing = [(s, g) for s, g in zip(slots, self._batch, strict=True) if s not in self._scored]
            if missing:
                return [(s, g) for s, g in missing if s not in held]
            self._index, self._first = self._index + 1, slots.stop
            seen = [self._scored[s] for s in range(self._first)]
            self.bar, self._batch = self.strategy.bar(seen), self.strategy.batch(self._index, seen)
        return None

    def _wait_for_slot(self, study: Study, trial: FrozenTrial) -> tuple[int, np.ndarray]:
        while (free := self.open_slots(study, trial.number)) is not None:
            if free:
                return free[0]
            self.say_waiting(study, trial.number)
            time.sleep(_POLL_S)
        draw = self.strategy.rng.child("beyond", trial.number).numpy()
        return -1 - trial.number, self.strategy.samplers[0].sample(1, draw)[0]

    def say_waiting(self, study: Study, asking: int = -1) -> None:
        """Say now and then whom this process waits for."""
        self.watch.say_waiting(trials_of(study)[self._settled :], (*self.beating, asking))

    def _sync_with_storage(self, study: Study, asking: int) -> dict[int, int]:
        """Map slot -> number of the oldest running trial, other than `asking`, that holds it.

        Records the scores of newly finished trials. Only trials that were not finished the last time are looked at, so
        that a long search stays as quick.
        """
        trials = trials_of(study)
        if self.watch.fail_dead(study, trials[self._settled :], self.beating):
            trials = trials_of(study)
        held: dict[int, int] = {}
        for trial in trials[self._settled :]:
            slot = trial.user_attrs.get(SLOT, -1)
            if trial.state == TrialState.RUNNING and trial.number != asking:
                held.setdefault(slot, trial.number)
            if (
                trial.state == TrialState.COMPLETE
                and slot >= 0
                and self._scorer.get(slot, trial.number) >= trial.number
            ):
                genome = np.array([trial.params[g] for g in self.strategy.codec.genes], dtype=np.int64)
                self._scorer[slot] = trial.number
                self._scored[slot] = _evaluated(genome, trial)
        while self._settled < len(trials) and trials[self._settled].state.is_finished():
            self._settled += 1
        return held


def _evaluated(genome: np.ndarray, trial: FrozenTrial) -> Evaluated:
    figures = trial.user_attrs.get("found", {})
    score = float(trial.values[0])  # pyrefly: ignore[unsupported-operation] (complete)
    return Evaluated(genome, score, figures.get("screened", -math.inf), bool(figures.get("whole", True)))


def distributions(codec: WidthEncoding) -> dict[str, BaseDistribution]:
    """Describe the genes as Optuna's parameters."""
    return {name: IntDistribution(0, int(n) - 1) for name, n in zip(codec.genes, codec.sizes, strict=True)}


def trials_of(study: Study, *states: TrialState) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=states or None)
