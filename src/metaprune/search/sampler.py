"""A strategy as an Optuna sampler: ask/tell, storage, workers and resume are Optuna's.

Every trial takes a *slot*, a position in the strategy's sequence of structures. A slot whose trial failed (its worker
was killed) is free again, so that the sequence has no holes. A batch is handed out when the one before is complete.

Storages have no atomic claim of an attribute, so two workers that reach for a slot in the same moment may both score
it: the first score counts, the other costs its time and changes nothing.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Iterator
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from metaprune.search.codec import Codec
from metaprune.search.strategies import Evaluated, Strategy

SLOT, WORKER = "slot", "worker"
_POLL_S = 0.2
_STALE_FACTOR, _STALE_FLOOR_S = 20.0, 300.0  # of the longest evaluation so far; workers on other hosts only


class StrategySampler(optuna.samplers.BaseSampler):
    """Optuna sampler that follows `strategy`; with more trials than the strategy has, the rest is random in budget.

    study.optimize(objective, n_trials=...) works with it as with any other sampler.
    """

    def __init__(self, strategy: Strategy):
        self.strategy = strategy
        self.slots: dict[int, int] = {}  # of this process's trials, by trial number; negative: beyond the strategy
        self._batches: list[np.ndarray | None] = []
        self._worker = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"

    # ------------------------------------------------------------------------------------------ Optuna's interface

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return distributions(self.strategy.codec)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        storage, number = study._storage, trial._trial_id
        storage.set_trial_user_attr(number, WORKER, [self._worker, time.time()])
        while True:
            slot, genome = self._wait_for_slot(study, trial)
            storage.set_trial_user_attr(number, SLOT, slot)
            self.slots[trial.number] = slot
            rivals = [t for t in _trials(study) if t.user_attrs.get(SLOT) == slot and _alive(t)]
            if min((t.number for t in rivals), default=trial.number) >= trial.number:  # the older trial keeps the slot
                return {name: int(i) for name, i in zip(search_space, genome, strict=True)}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        raise NotImplementedError("all genes of a structure are drawn together")

    # ------------------------------------------------------------------------------------------ slots

    def open_slots(self, study: Study) -> bool:
        """Whether there is a structure left to evaluate; frees the slots of dead workers."""
        return next(self._free(study), None) is not None

    def finished(self, study: Study) -> bool:
        """Whether every structure of the strategy is scored."""
        index, seen = 0, self._scored(study)
        while (batch := self._batch(index, seen)) is not None:
            if any(slot not in seen for slot in self._slots(index, batch)):
                return False
            index += 1
        return True

    def _wait_for_slot(self, study: Study, trial: FrozenTrial) -> tuple[int, np.ndarray]:
        while True:
            found = next(self._free(study, trial), None)
            if found is not None:
                return found
            if self.finished(study):
                draw = self.strategy.rng.child("beyond", trial.number).numpy()
                return -1 - trial.number, self.strategy.samplers[0].sample(1, draw)[0]
            time.sleep(_POLL_S)

    def _free(self, study: Study, trial: FrozenTrial | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """Slots of the newest batch that no living trial holds."""
        fail_dead_workers(study, self._worker)
        seen = self._scored(study)
        own = None if trial is None else trial.number
        taken = {t.user_attrs.get(SLOT) for t in _trials(study) if _alive(t) and t.number != own}
        index = 0
        while (batch := self._batch(index, seen)) is not None:
            slots = self._slots(index, batch)
            yield from ((s, g) for s, g in zip(slots, batch, strict=True) if s not in taken)
            if any(slot not in seen for slot in slots):
                return
            index += 1

    def _scored(self, study: Study) -> dict[int, Evaluated]:
        found = {}
        for trial in _trials(study, TrialState.COMPLETE):
            slot = trial.user_attrs.get(SLOT, -1)
            if slot >= 0 and slot not in found:
                genome = np.array([trial.params[g] for g in self.strategy.codec.genes], dtype=np.int64)
                found[slot] = Evaluated(genome, float(trial.values[0]))  # pyrefly: ignore[unsupported-operation] (complete)
        return found

    def _slots(self, index: int, batch: np.ndarray) -> range:
        first = sum(len(b) for b in self._batches[:index] if b is not None)
        return range(first, first + len(batch))

    def _batch(self, index: int, seen: dict[int, Evaluated]) -> np.ndarray | None:
        """Batch `index`, once all before it are scored."""
        if index == len(self._batches):
            before = [seen[s] for s in range(sum(len(b) for b in self._batches if b is not None))]
            self._batches.append(self.strategy.batch(index, before))
        return self._batches[index]


def distributions(codec: Codec) -> dict[str, BaseDistribution]:
    """The genes as Optuna's parameters."""
    return {name: IntDistribution(0, int(n) - 1) for name, n in zip(codec.genes, codec.sizes, strict=True)}


def fail_dead_workers(study: Study, me: str = "") -> None:
    """Mark trials as failed whose process is gone (this host), or that run for far too long (other hosts)."""
    durations = [t.duration.total_seconds() for t in _trials(study, TrialState.COMPLETE) if t.duration is not None]
    limit = max(_STALE_FLOOR_S, _STALE_FACTOR * max(durations, default=0.0))
    for trial in _trials(study, TrialState.RUNNING):
        worker, started = trial.user_attrs.get(WORKER, ("", time.time()))  # our own clock: Optuna's has no time zone
        here = worker.startswith(f"{socket.gethostname()}:")
        if worker != me and (_is_dead(worker) if here else time.time() - started > limit):
            study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)


def _is_dead(worker: str) -> bool:
    host, _, rest = worker.rpartition(":")[0].rpartition(":")
    if host != socket.gethostname() or not rest.isdigit():
        return False
    if int(rest) == os.getpid():  # a restarted container: same host name, same number, another process
        return True
    try:
        os.kill(int(rest), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _trials(study: Study, *states: TrialState) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=states or None)


def _alive(trial: FrozenTrial) -> bool:
    return trial.state in (TrialState.COMPLETE, TrialState.RUNNING)
