"""Fitting a scoring rule: which networks it is learned on and chosen by, and the artifact; and the one that ships."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metaprune.core.errors import ConfigError
from metaprune.core.rng import Rng
from metaprune.methods.metagraph.config import ScoreConfig
from metaprune.methods.metagraph.rule_search import Subject, search_rule
from metaprune.methods.metagraph.score_rule import FEATURES
from metaprune.methods.metagraph.zoo import ZooNetwork, read_zoo
from metaprune.protocol.artifact import Artifact, plain
from metaprune.protocol.method import PruneTask

SHIPPED = Path(__file__).with_name("shipped")
"""Folder of the artifact that comes with the package, fitted by benchmarks/metagraph/score_study.py."""


@dataclass(frozen=True)
class Learning:
    """Networks that a rule is learned from, and those that choose among its states."""

    learned_from: Sequence[Subject]
    judged_on: Sequence[Subject]


def of_zoo(
    networks: Sequence[ZooNetwork], config: ScoreConfig, subject_of: Callable[[ZooNetwork], Subject]
) -> Learning:
    """Choose networks of a zoo by their parts, without what is left out and what was not learned.

    Raises:
        ConfigError: none is left to learn from, or none to choose by.
    """
    left = [
        n for n in networks if n.accuracy >= config.least_accuracy and not {n.family, n.data} & set(config.leave_out)
    ]
    parts = [[n for n in left if n.part == part] for part in ("train", "val")]
    if not all(parts):
        raise ConfigError(
            f"of {len(networks)} networks of the zoo {len(parts[0])} are left to learn from and {len(parts[1])} to "
            "choose by, and both take one: make more with `metaprune zoo make --networks N`, or leave out less"
        )
    return Learning(*([subject_of(n) for n in part] for part in parts))


def zoo_subject(network: ZooNetwork) -> Subject:
    """Calibrate a network of a zoo; the draws are its own, whatever the fit."""
    return Subject.of(network.task(), Rng(0).child("subject", network.number))


def fit_rule(
    learning: Learning,
    config: ScoreConfig,
    identity: Mapping[str, Any],
    rng: Rng,
    say: Callable[[str], None] = lambda _: None,
) -> Artifact:
    """Search a rule and make an artifact of it, with the `identity` of what it depends on."""
    began = time.perf_counter()
    found = search_rule(learning.learned_from, learning.judged_on, config, rng, say)
    seconds = round(time.perf_counter() - began, 1)
    info = {
        "features": FEATURES,
        "rule": found.rule.named(),
        "start": found.start.named(),
        "history": list(found.history),
        "networks": {"learned_from": len(learning.learned_from), "judged_on": len(learning.judged_on)},
        "stages": {"meta": seconds},
        "seconds": seconds,
        "macs": 0.0,
        **identity,
    }
    return Artifact("metagraph", found.rule.tensors, plain(info))


def learning_of(tasks: Sequence[PruneTask], config: ScoreConfig, rng: Rng) -> Learning:
    """Networks of the zoo that the options name; without one those of the tasks, which choose as well."""
    if config.zoo is not None:
        return of_zoo(read_zoo(Path(config.zoo)), config, zoo_subject)
    subjects = [Subject.of(task, rng.child("subject", t)) for t, task in enumerate(tasks)]
    return Learning(subjects, subjects)
