"""Which structures to look at next: the evolution of MetaPruning, random search, greedy slimming.

A strategy hands out batches of genomes. Batch k depends on the seed and on the scores of batches 0..k-1 only, never on
who evaluated them or when: any number of workers, and a search that was killed and started again, look at the same
structures.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from metaprune.core.errors import ConfigError
from metaprune.core.rng import Rng
from metaprune.search.config import EvolutionConfig
from metaprune.search.encoding import BudgetSampler, WidthEncoding

_MUTANTS = 0.5  # share of the children that are mutations, as in the paper; the others are crossovers
_SCREENED_PER_PARENT = 2  # so many places in the screening for each parent
_TRIALS = 10  # rounds of children before random structures fill the generation


@dataclass(frozen=True)
class Evaluated:
    """A scored structure: genome int64 [genes], score (higher is better).

    screened: its score on fewer samples, where the search screens. whole: False where it got no other.
    """

    genome: np.ndarray
    score: float
    screened: float = -math.inf
    whole: bool = True


class Strategy(ABC):
    """`samplers`: one per budget; a batch is shared out between them in turns."""

    def __init__(self, codec: WidthEncoding, samplers: Sequence[BudgetSampler], rng: Rng):
        self.codec, self.samplers, self.rng = codec, list(samplers), rng

    @abstractmethod
    def batch(self, index: int, seen: Sequence[Evaluated]) -> np.ndarray | None:
        """Genomes [n, genes] of batch `index`, given all of the batches before; None when the search is over."""

    def bar(self, seen: Sequence[Evaluated]) -> float | None:
        """Screened score below which a structure of the next batch is not worth more; None: nothing is screened."""
        return None

    def _new(self, rows: np.ndarray, known: set[bytes]) -> list[np.ndarray]:
        """Those rows that were not seen; they are seen from now on."""
        new = []
        for row in rows:
            if row.tobytes() not in known:
                known.add(row.tobytes())
                new.append(row)
        return new


class RandomSearch(Strategy):
    """Budget-aware random structures: the control that every search has to beat."""

    def __init__(self, codec: WidthEncoding, samplers: Sequence[BudgetSampler], rng: Rng, config: EvolutionConfig):
        super().__init__(codec, samplers, rng)
        self.config = config

    def batch(self, index: int, seen: Sequence[Evaluated]) -> np.ndarray | None:
        if index >= self.config.generations:
            return None
        draw = self.rng.child("batch", index).numpy()
        return self._fill([], {e.genome.tobytes() for e in seen}, draw)

    def bar(self, seen: Sequence[Evaluated]) -> float | None:
        """What twice as many as are parents reached: a parent is among them though the screening errs a little."""
        if len(self.samplers) > 1:  # small structures of one budget would be held against large ones of another
            return None
        reached = sorted((e.screened for e in seen), reverse=True)
        place = _SCREENED_PER_PARENT * self.config.parents
        return reached[place - 1] if len(reached) >= place else -math.inf

    def _fill(self, genomes: list[np.ndarray], known: set[bytes], draw: np.random.Generator) -> np.ndarray:
        """Random structures up to the population; fewer where the budgets leave no more."""
        count = self.config.population
        for _ in range(_TRIALS):
            if len(genomes) >= count:
                break
            for i, sampler in enumerate(self.samplers):
                missing = len(range(i, count - len(genomes), len(self.samplers)))
                if missing > 0:
                    genomes += self._new(sampler.sample(missing, draw), known)
        return np.array(genomes[:count], dtype=np.int64).reshape(-1, len(self.codec.sizes))


class Evolution(RandomSearch):
    """Parents are the best of all generations; children that break the budget are repaired, never thrown away."""

    def batch(self, index: int, seen: Sequence[Evaluated]) -> np.ndarray | None:
        if index == 0 or index >= self.config.generations or len(seen) < 2:
            return super().batch(index, seen)
        draw = self.rng.child("batch", index).numpy()
        known = {e.genome.tobytes() for e in seen}
        children: list[np.ndarray] = []
        for i, sampler in enumerate(self.samplers):
            share = len(range(i, self.config.population, len(self.samplers)))
            children += self._children(sampler, self._parents(sampler, seen), share, known, draw)
        return self._fill(children, known, draw)

    def _parents(self, sampler: BudgetSampler, seen: Sequence[Evaluated]) -> np.ndarray:
        """The best within the sampler's band, [<= parents, genes]; of all that fit where the band holds too few."""
        load = sampler.load(np.stack([e.genome for e in seen]))

        def place(i: int) -> tuple:
            return not sampler.within(load[i]), load[i] > 1, not seen[i].whole, -seen[i].score, i

        best = sorted(range(len(seen)), key=place)
        return np.stack([seen[i].genome for i in best[: self.config.parents]])

    def _children(
        self, sampler: BudgetSampler, parents: np.ndarray, count: int, known: set[bytes], draw: np.random.Generator
    ) -> list[np.ndarray]:
        mutants = round(count * _MUTANTS)
        children: list[np.ndarray] = []
        for wanted, make in ((mutants, self.mutated), (count, self._crossed)):
            for _ in range(_TRIALS):
                if len(children) < wanted:
                    children += self._new(sampler.repair(make(parents, wanted - len(children), draw), draw), known)
        return children

    def mutated(self, parents: np.ndarray, count: int, draw: np.random.Generator) -> np.ndarray:
        """Change each gene with the mutation probability, to any *other* candidate with equal chance."""
        rows = parents[draw.integers(0, len(parents), count)].copy()
        change = draw.random(rows.shape) < self.config.mutation_probability
        other = (rows + draw.integers(1, self.codec.sizes, rows.shape)) % self.codec.sizes
        return np.where(change, other, rows)

    def _crossed(self, parents: np.ndarray, count: int, draw: np.random.Generator) -> np.ndarray:
        """Each gene from one of two different parents with equal chance."""
        first = draw.integers(0, len(parents), count)
        second = (first + draw.integers(1, max(len(parents), 2), count)) % len(parents)
        mask = draw.random((count, parents.shape[1])) < 0.5
        return np.where(mask, parents[first], parents[second])


class GreedySlimming(Strategy):
    """From full width, narrow the unit whose loss hurts least, until the budget is met (AutoSlim, Yu & Huang 2019).

    Every batch tries each gene, lowered until the cost falls by 1/steps of what has to go; the best is kept.
    """

    def __init__(self, codec: WidthEncoding, samplers: Sequence[BudgetSampler], rng: Rng, steps: int = 10):
        super().__init__(codec, samplers, rng)
        if len(self.samplers) != 1:
            raise ConfigError("greedy slimming serves one budget at a time; search for a front with evolution")
        self.steps = steps

    def batch(self, index: int, seen: Sequence[Evaluated]) -> np.ndarray | None:
        sampler, current, done = self.samplers[0], self.codec.full, 0
        full = float(sampler.load(current[None])[0])
        if full <= 1:  # nothing has to go
            return current[None] if index == 0 else None
        for step in range(index):
            size = len(self._lowered(current, full, step, sampler))
            if not size:
                return None
            tried = seen[done : done + size]
            done += size
            current = max(tried, key=lambda e: e.score).genome
        options = self._lowered(current, full, index, sampler)
        return np.stack(options) if options else None

    def _lowered(self, current: np.ndarray, full: float, step: int, sampler: BudgetSampler) -> list[np.ndarray]:
        """One option per gene that can bring the load to this step's target; all genes at once where none can."""
        load = float(sampler.load(current[None])[0])
        if load <= 1:
            return []
        target = max(1.0, full + (1 - full) * (step + 1) / self.steps)
        options = []
        for gene in range(len(current)):
            trials = np.repeat(current[None], int(current[gene]), axis=0)
            trials[:, gene] = np.arange(len(trials))[::-1]
            loads = sampler.load(trials) if len(trials) else np.empty(0)
            reached = np.flatnonzero(loads <= target)
            if len(reached):
                options.append(trials[reached[0]])
        if not options:  # no gene alone reaches the target: all fall together
            share = (current + 0.5) / self.codec.sizes
            part = BudgetSampler(self.codec, sampler.costs, {m: b * target for m, b in sampler.bounds.items()})
            options.append(np.minimum(part.fit(share[None], np.random.default_rng(0))[0], current))
        return options
