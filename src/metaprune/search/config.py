"""Options of a search, without torch or Optuna: the command line reads them first."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from metaprune.core.errors import ConfigError, closest

ENVIRONMENT = "METAPRUNE_STORAGE"
"""Environment variable that holds the URL of a search's storage, for URLs with a password."""
SearcherName = Literal["evolution", "random", "greedy", "nsga2"]
Scope = Literal["global", "local", "isomorphic"]
"""Which groups share a ranking of channels."""
PAPER_GRID = tuple((10 + 3 * i) / 100 for i in range(31))
"""Keep ratios of MetaPruning."""


@dataclass(frozen=True, kw_only=True)
class EvolutionConfig:
    """Evolutionary search of MetaPruning (Liu et al., ICCV 2019, section 3.3; values of the authors' code)."""

    population: int = 50
    """Structures per generation."""
    generations: int = 20
    """Generations, the first one included."""
    parents: int = 10
    """Best structures of all generations that children are made of."""
    mutation_probability: float = 0.1
    """Chance of a gene to change, in a mutated child."""

    def __post_init__(self) -> None:
        if not (self.population >= 2 and self.generations >= 1 and self.parents >= 2):
            raise ConfigError("population and parents are at least 2, generations at least 1")
        if not 0 < self.mutation_probability <= 1:
            raise ConfigError(f"mutation_probability={self.mutation_probability} is not in (0, 1]")


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """How structures are searched."""

    searcher: SearcherName = "evolution"
    """evolution (MetaPruning's), random, greedy (AutoSlim's), nsga2 (Optuna's own)."""
    evolution: EvolutionConfig = field(default_factory=EvolutionConfig)
    """Population, generations, parents, mutation; random and nsga2 look at population x generations structures."""
    tolerance: float = 0.05
    """Candidates lie within [budget - tolerance x budget, budget]."""

    def __post_init__(self) -> None:
        if self.searcher not in get_args(SearcherName):
            known = get_args(SearcherName)
            raise ConfigError(
                f"no searcher {self.searcher!r}.{closest(self.searcher, known)} Known: {', '.join(known)}"
            )
        if not 0 < self.tolerance <= 1:
            raise ConfigError(f"tolerance is a share of the budget in (0, 1], not {self.tolerance}")
