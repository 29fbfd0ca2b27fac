"""Structures as integers: one gene per unit, its value an index into the widths that the unit may take.

A gene's candidates are the widths nearest below a grid of keep ratios (MetaPruning, Liu et al. 2019: 31 ratios from
0.10 to 1.00). A branch that may be dropped has a gene as long as the grid, and is gone at the first value alone, so
that random structures keep most branches. Decoding is in one place, so that what is searched is what is built.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from metaprune.core.errors import ConfigError, InfeasibleBudgetError, PlanError
from metaprune.cost.analytic import CostModel
from metaprune.graph.call import Survivors
from metaprune.network import Network
from metaprune.search.binding import what_binds
from metaprune.search.config import PAPER_GRID
from metaprune.search.floor import LATENCY_NOTE, budget_use, is_monotone, smallest_levels
from metaprune.search.units import Unit, branch_units, units_of
from metaprune.values import Constraints, Plan, Space

_BISECTIONS = 14  # of the common exponent: 10 / 2^14 is finer than any grid
_REDRAWS = 12  # of what bisection and single steps leave below the band, which coarse grids have


class WidthEncoding:
    """Genomes [n, genes] of integers <-> widths [n, groups].

    genes: name of the first group of every unit that may take more than one width, then NAME:branch of branches.
    order: importance order of every group's channels, most important first; a structure keeps a prefix of it.
    sizes: number of candidate widths of every gene, [genes]; the last one is the widest.

    Raises:
        PlanError: nothing may shrink, or a pattern of the constraints matches nothing.
        ConfigError: a grid that is empty, not increasing in (0, 1], or finer than the widest group has widths.
    """

    def __init__(
        self,
        space: Space,
        constraints: Constraints | None = None,
        grid: Sequence[float] = PAPER_GRID,
        order: Sequence[np.ndarray] | None = None,
    ):
        grid = sorted(set(grid))
        if not grid or grid[0] <= 0 or grid[-1] > 1:
            raise ConfigError(f"grid={list(grid)[:5]} does not fit: give keep ratios in (0, 1]")
        self.space = space
        self.order = [np.arange(g.width) for g in space] if order is None else list(order)
        self.constraints = constraints or Constraints()
        units = units_of(space, self.constraints)
        most = max((len(u.levels) for u in units), default=0)
        if len(grid) > max(most, 1) and tuple(grid) != PAPER_GRID:
            raise ConfigError(
                f"a grid of {len(grid)} ratios is finer than the network: its widest group has {most} widths to choose "
                f"from; give at most {most} ratios"
            )
        chosen = [_candidates(u, grid) for u in units]
        free = [i for i, c in enumerate(chosen) if len(c) > 1]
        self._branches = [u.groups for u in branch_units(space, self.constraints)]
        if not free and not self._branches:
            raise PlanError(
                "nothing to search: no channel group may take more than one width. `metaprune inspect` says what is "
                "locked and why; relax ignore, only, ratios, min_keep or round_to"
            )
        names = [f"{space.branches[space.branch_groups.index(b.tolist())].name}:branch" for b in self._branches]
        self.genes = (*(space.groups[units[i].groups[0]].name for i in free), *names)
        branch_size = max(2, len(grid))
        self.sizes = np.array([*(len(chosen[i]) for i in free), *(branch_size for _ in names)], dtype=np.int64)
        self.gene_of = np.full(len(space), -1, dtype=np.int64)  # per group; -1: its width is fixed
        self.first_group = np.array([units[i].groups[0] for i in free], dtype=np.int64)  # per gene of a width
        self._table = np.zeros((len(space), max(map(len, chosen))), dtype=np.int64)
        for unit, widths in zip(units, chosen, strict=True):
            self._table[unit.groups, : len(widths)] = widths.T
        for gene, i in enumerate(free):
            self.gene_of[units[i].groups] = gene

    def widths(self, genomes: np.ndarray) -> np.ndarray:
        """int64 [n, genes] -> int64 [n, groups]; also of one genome [genes] -> [groups]."""
        genomes = np.asarray(genomes, dtype=np.int64)
        index = np.where(self.gene_of < 0, 0, genomes[..., self.gene_of])
        widths = self._table[np.arange(len(self.space)), index]
        for gene, groups in enumerate(self._branches, start=len(self.first_group)):
            widths[..., groups] *= genomes[..., gene, None] > 0
        return widths

    def nearest(self, widths: np.ndarray) -> np.ndarray:
        """Find the genome [genes] whose widths come closest to `widths` [groups], gene by gene."""
        genome = np.zeros(len(self.genes), dtype=np.int64)
        for gene, group in enumerate(self.first_group):
            genome[gene] = np.abs(self._table[group, : self.sizes[gene]] - widths[group]).argmin()
        for gene, groups in enumerate(self._branches, start=len(self.first_group)):
            genome[gene] = self.sizes[gene] - 1 if np.any(widths[groups]) else 0
        return genome

    def plan(self, widths: np.ndarray) -> Plan:
        """Widths [groups] -> which channels stay: the first ones of `order`."""
        triples = zip(self.space, self.order, widths, strict=True)
        return Plan({g.name: tuple(sorted(map(int, o[:w]))) for g, o, w in triples if w < g.width})

    def survivors(self, network: Network, widths: np.ndarray) -> Survivors:
        """Mark the survivors at `widths`: `plan` without the detour over tuples, as a training step needs."""
        alive = np.ones(len(network.labelled.atoms), dtype=bool)
        for group, order, width in zip(self.space, self.order, widths, strict=True):
            alive[group.atoms[order[width:]]] = False
        return Survivors(network.labelled.atoms, alive)

    @property
    def smallest(self) -> np.ndarray:
        return np.zeros(len(self.genes), dtype=np.int64)

    @property
    def full(self) -> np.ndarray:
        return self.sizes - 1

    def random(self, n: int, draw: np.random.Generator) -> np.ndarray:
        """Draw every gene uniformly from its candidates, [n, genes]; knows no budget."""
        return draw.integers(0, self.sizes, size=(n, len(self.sizes)))


def _candidates(unit: Unit, grid: Sequence[float]) -> np.ndarray:
    """Distinct widths [n, groups of the unit], each the largest allowed one that is not above a ratio of the grid."""
    ratios = unit.ratios()
    index = np.searchsorted(ratios, np.asarray(grid) + 1e-9, side="right") - 1
    return unit.levels[np.unique(np.clip(index, 0, None))]


class BudgetSampler:
    """Genomes whose costs lie within [bound - tolerance * bound, bound], drawn without rejection.

    A genome is the image of quantiles q in (0, 1)^genes: gene = floor(q^t * candidates). t = 1 is the uniform prior;
    a larger t makes all genes narrower, in proportion to what each has drawn. t is found by bisection, for thousands of
    genomes at once, so that the tightest feasible budget starts as quickly as a loose one. Whatever breaks a bound (a
    child of crossover) is repaired in the same way. Only what a coarse grid leaves below the band is drawn again.

    Raises:
        InfeasibleBudgetError: even the narrowest structure (see `smallest_levels`) exceeds a bound.
    """

    def __init__(self, codec: WidthEncoding, costs: CostModel, bounds: Mapping[str, float], tolerance: float = 0.05):
        if not 0 < tolerance <= 1:
            raise ConfigError(
                f"tolerance={tolerance!r} is the share of a budget that may be left over: a number in (0, 1]"
            )
        self.codec, self.costs, self.bounds, self.tolerance = codec, costs, dict(bounds), tolerance
        self._floor = smallest_levels(codec.sizes, codec.widths, costs, bounds)
        ends = self.codec.widths(np.stack([self._floor, codec.full]))
        reach = {m: self.costs.metric(m, ends) for m in bounds}
        missed = [m for m, bound in bounds.items() if reach[m][0] > bound]
        if missed:
            text = "; ".join(f"{m} <= {bounds[m]:,.6g} asked, smallest reachable {reach[m][0]:,.6g}" for m in missed)
            note = "" if is_monotone(missed) else f"{LATENCY_NOTE} "
            raise InfeasibleBudgetError(
                f"no structure of the grid meets the budget: {text}. {note}"
                f"{what_binds(codec.space, costs, bounds, codec.constraints)}",
                {m: float(r[0]) for m, r in reach.items()},
            )
        self._full_load = float(max(reach[m][1] / bound for m, bound in bounds.items()))

    def load(self, genomes: np.ndarray) -> np.ndarray:
        """Largest share of a bound that is used, [n]; 1 is exactly at a bound, above 1 breaks it."""
        return budget_use(self.codec.widths(genomes), self.costs, self.bounds)

    def within(self, load: np.ndarray) -> np.ndarray:
        """Tell whether loads are inside the band (or full width itself is below it)."""
        return (load <= 1) & (load >= min(1 - self.tolerance, self._full_load))

    def sample(self, n: int, draw: np.random.Generator) -> np.ndarray:
        """[n, genes] within the bounds; below the band only where a coarse grid has nothing in it within reach."""
        return self.fit(draw.random((n, len(self.codec.sizes))), draw)

    def repair(self, genomes: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        """Genomes inside the band stay as they are; the others are scaled into it, keeping their proportions."""
        genomes = np.array(genomes, dtype=np.int64)
        out = ~self.within(self.load(genomes))
        if out.any():
            share = (genomes[out] + draw.random(genomes[out].shape)) / self.codec.sizes
            genomes[out] = self.fit(np.clip(share, 1e-9, 1 - 1e-9), draw)
        return genomes

    def fit(self, quantiles: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        """Find the widest images of `quantiles` [n, genes] that meet all bounds.

        On a coarse grid such an image may lie below the band, with no single step up that fits. Those rows have more
        and more of their genes drawn anew until they are inside it; what fills the bounds best stays.
        """
        genomes = self._fill(self._widest(quantiles), draw)
        load = self.load(genomes)
        for attempt in range(1, _REDRAWS + 1):
            todo = np.flatnonzero(~self.within(load))
            if not len(todo):
                break
            fresh, anew = draw.random((2, len(todo), quantiles.shape[1]))
            trial = self._fill(self._widest(np.where(anew < attempt / _REDRAWS, fresh, quantiles[todo])), draw)
            use = self.load(trial)
            fuller = use > load[todo]
            genomes[todo[fuller]], load[todo[fuller]] = trial[fuller], use[fuller]
        return genomes

    def _widest(self, quantiles: np.ndarray) -> np.ndarray:
        """Images at the smallest exponent that meets all bounds."""
        logs = np.log(quantiles)
        low, high = np.full(len(logs), -6.0), np.full(len(logs), 6.0)  # log t: nearly full width, nearly the smallest
        best = np.tile(self._floor, (len(logs), 1))  # it fits
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            genomes = self._image(logs, middle)
            fits = self.load(genomes) <= 1
            best[fits] = genomes[fits]
            high, low = np.where(fits, middle, high), np.where(fits, low, middle)
        return best

    def _image(self, logs: np.ndarray, exponent: np.ndarray) -> np.ndarray:
        share = np.exp(logs * np.exp(exponent)[:, None])
        return np.clip((share * self.codec.sizes).astype(np.int64), self._floor, self.codec.sizes - 1)

    def _fill(self, genomes: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        """Single steps up, gene after gene in a random order, where bisection left more than the tolerance."""
        todo = np.flatnonzero(~self.within(self.load(genomes)))
        while len(todo):
            before = genomes[todo]
            for gene in draw.permutation(len(self.codec.sizes)):
                trial = genomes[todo]
                trial[:, gene] = np.minimum(trial[:, gene] + 1, self.codec.sizes[gene] - 1)
                load = self.load(trial)
                genomes[todo[load <= 1]] = trial[load <= 1]
            moved = (genomes[todo] != before).any(axis=1)
            todo = todo[moved & ~self.within(self.load(genomes[todo]))]
        return genomes
