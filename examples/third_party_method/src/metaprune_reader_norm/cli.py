"""`metaprune reader-norms MODEL`: the spread of reader norms in every channel group."""

from __future__ import annotations

from dataclasses import dataclass

import tyro

from metaprune.runs.verb_tools import console, traced


@dataclass(frozen=True)
class ReaderNorms:
    """Show how differently the channels of every group are weighed by the layers that read them."""

    model: tyro.conf.Positional[str]
    """zoo:NAME or python:module:function."""

    def run(self) -> int:
        from metaprune.core.rng import Rng
        from metaprune.protocol.method import PruneTask
        from metaprune.values import Plan
        from metaprune_reader_norm.method import ReaderNorm

        _, network = traced(self.model, (), None, None)
        scores = ReaderNorm(power=1).scores(PruneTask(network), Plan(), Rng(0))
        for group, of in zip(network.space, scores, strict=True):
            console().print(f"{group.name:<32} least {of.min():.3f}, most {of.max():.3f} of the mean", highlight=False)
        return 0


VERBS = {"reader-norms": ReaderNorms}
