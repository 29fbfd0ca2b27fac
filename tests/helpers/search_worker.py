"""A worker of a search that kills itself at a stage, as a process of its own: python search_worker.py URL STAGE KNOWN.

KNOWN is "here" where others can see the process, "elsewhere" for one of a machine whose processes they cannot see.
"""

import os
import signal
import sys

import optuna
import torch

import metaprune.search.liveness as liveness
from metaprune.core.rng import Rng
from metaprune.models import create
from metaprune.search.config import EvolutionConfig, SearchConfig
from metaprune.search.encoding import WidthEncoding
from metaprune.search.study import Search
from metaprune.tracing import trace

STAGES = ("before asking", "unnamed", "asking", "scoring", "writing the score", "after the score")


def small_search(storage=None):
    """24 structures of a small network, and a score that knows the widths alone."""
    network = trace(create("zoo:mlp", in_channels=1, image_size=4, widths=[16, 16]), torch.zeros(2, 1, 4, 4))
    how = SearchConfig(evolution=EvolutionConfig(population=8, generations=3, parents=4), tolerance=0.5)
    bounds = {"macs": 0.6 * network.cost().macs}
    return Search(WidthEncoding(network.space), network.cost_model(), [bounds], how, Rng(0), storage)


def score(widths):
    return {"score": float((widths**0.5).sum())}


def end():
    os.kill(os.getpid(), signal.SIGKILL)


def main(storage, stage, known):
    search, calls = small_search(storage), 0
    if known == "elsewhere":
        liveness._machine = lambda: "another machine"
    if stage == "before asking":
        optuna.Study.ask = lambda *_: end()
    if stage == "unnamed":
        liveness.worker_name = end
    if stage == "asking":
        search._sampler([]).__class__._wait_for_slot = lambda *_: end()
    if stage == "writing the score":
        optuna.Study.tell = lambda *_, **__: end()

    def counted(widths):
        nonlocal calls
        calls += 1
        if stage == "scoring" and calls == 3:
            end()
        return score(widths)

    search.run(counted, lambda *_: end() if stage == "after the score" else None)


if __name__ == "__main__":
    main(*sys.argv[1:])
