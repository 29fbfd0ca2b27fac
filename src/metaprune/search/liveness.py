"""Which workers of a search still live: each beats in the storage, the others look whether the beat goes on.

Ages are taken by the looker's own clock, since clocks of hosts differ: a trial whose beat did not change for
`PATIENCE_S` is of a dead worker. A process number alone tells nothing (a zombie has one, and a restarted container
gives the same ones again); with the boot, the namespace and the start time beside it, a process of this machine that is
gone is known at once.
"""

from __future__ import annotations

import logging
import os
import socket
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

log = logging.getLogger("metaprune")

WORKER, BEAT = "worker", "beat"
BEAT_S, PATIENCE_S, SAY_S = 10.0, 60.0, 60.0
"""Seconds between beats, without a beat until a worker counts as dead, and between lines on what is waited for."""


class BeatingSampler(optuna.samplers.BaseSampler):
    """Mix-in: every trial of this process says whose it is, and beats from `ask` to `tell`."""

    _ends: dict[int, Event] | None = None

    @property
    def beating(self) -> tuple[int, ...]:
        """Numbers of this process's running trials."""
        return tuple(self._ends or ())

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Name the worker and start to beat."""
        super().before_trial(study, trial)
        if self._ends is None:
            self._ends = {}
        study._storage.set_trial_user_attr(trial._trial_id, WORKER, worker_name())
        end = self._ends[trial.number] = Event()
        Thread(target=_beat, args=(study, trial._trial_id, end), daemon=True).start()

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Stop the beat."""
        if (end := (self._ends or {}).pop(trial.number, None)) is not None:
            end.set()
        super().after_trial(study, trial, state, values)

    def stop(self) -> None:
        """Stop all beats, of trials that could not be told either."""
        for end in (self._ends or {}).values():
            end.set()


def _beat(study: Study, trial_id: int, end: Event) -> None:
    count = 0
    while not end.wait(BEAT_S):
        count += 1
        try:
            study._storage.set_trial_user_attr(trial_id, BEAT, count)
        except UpdateFinishedTrialError:  # others took this worker for dead
            return
        except Exception:  # the storage is away, in one of its many ways: who scores will see it
            continue


class Watch:
    """Look after the running trials of others; made once per process and search."""

    def __init__(self) -> None:
        self._last: dict[int, tuple[Any, float]] = {}  # trial -> its beat, when this process first saw that
        self._waiting_since = self._said = time.monotonic()

    def fail_dead(self, study: Study, trials: Sequence[FrozenTrial], mine: Sequence[int]) -> bool:
        """Mark those of `trials` as failed whose worker is dead, and say so. Whether there were any."""
        now, dead = time.monotonic(), []
        for trial in trials:
            if trial.state != TrialState.RUNNING or trial.number in mine:
                continue
            worker, beat = _name(trial), trial.user_attrs.get(BEAT)
            last, seen = self._last.get(trial.number, (None, now))
            self._last[trial.number] = (beat, now if last != beat else seen)
            if is_gone(worker) or now - self._last[trial.number][1] > PATIENCE_S:
                dead.append(trial.number)
                log.info("search: %s is gone; its structure %d is free again", _shown(worker), trial.number)
        for number in dead:
            study.tell(number, state=TrialState.FAIL, skip_if_finished=True)
        return bool(dead)

    def working(self) -> None:
        """Note that this process has a structure to score."""
        self._waiting_since = self._said = time.monotonic()

    def say_waiting(self, trials: Sequence[FrozenTrial], mine: Sequence[int] = ()) -> None:
        """Say, once a minute, how long this process has waited, and for whom."""
        now = time.monotonic()
        if now - self._said < SAY_S:
            return
        self._said = now
        others = [t for t in trials if t.state == TrialState.RUNNING and t.number not in mine]
        silent_s = {t.number: now - self._last.get(t.number, ("", now))[1] for t in others}
        whom = ", ".join(
            f"{_shown(_name(t))} (structure {t.number}, silent for {silent_s[t.number]:.0f} s)" for t in others
        )
        log.info(
            "search: waiting for %.0f s for %s; whoever is silent for %.0f s is taken for dead",
            now - self._waiting_since,
            whom or "other workers",
            PATIENCE_S,
        )


def worker_name() -> str:
    """Name this process: host, process number, start time and machine, and a word for this search."""
    return f"{socket.gethostname()}:{os.getpid()}:{_start(os.getpid())}:{_machine()}:{uuid.uuid4().hex[:8]}"


def is_gone(worker: str) -> bool:
    """Tell whether a worker's process is gone for sure: on this very machine, another one or none has its number."""
    *_, pid, start, machine, _word = ("", "", "", "", *worker.split(":"))
    if not (machine and machine == _machine() and pid.isdigit() and start):
        return False
    return _start(int(pid)) != start


def _machine() -> str:
    """This boot of this machine, and its namespace of process numbers; empty where the system does not say."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').stat().st_ino}"
    return ""


def _start(pid: int) -> str:
    """Start time of a process in clock ticks since the boot; empty for none, and for a zombie."""
    with suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # the name may hold spaces
        return "" if fields[0] in "ZX" else fields[19]
    return ""


def _name(trial: FrozenTrial) -> str:
    worker = trial.user_attrs.get(WORKER, "")
    return worker if isinstance(worker, str) else str(worker[0])  # older studies: [name, start]


def _shown(worker: str) -> str:
    host, pid, *_ = (*worker.split(":"), "", "")
    return f"process {pid} on {host}" if pid else "a worker without a name"
