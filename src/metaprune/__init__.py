"""metaprune: a smaller PyTorch network under a hard budget, proved equal to its masked original.

Names are bound on first use: `import metaprune` does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "Budget": "metaprune.values",
    "Constraints": "metaprune.values",
    "MetapruneError": "metaprune.core.errors",
    "Plan": "metaprune.values",
    "Rng": "metaprune.core.rng",
    "RecoverConfig": "metaprune.recover.config",
    "TrainConfig": "metaprune.train.config",
    "cut": "metaprune.surgery.cut",
    "load": "metaprune.export.archive",
    "prune": "metaprune.runs.prune",
    "trace": "metaprune.network",
}

if TYPE_CHECKING:
    from metaprune.core.errors import MetapruneError
    from metaprune.core.rng import Rng
    from metaprune.export.archive import load
    from metaprune.network import trace
    from metaprune.recover.config import RecoverConfig
    from metaprune.runs.prune import prune
    from metaprune.surgery.cut import cut
    from metaprune.train.config import TrainConfig
    from metaprune.values import Budget, Constraints, Plan

__all__ = [
    "Budget",
    "Constraints",
    "MetapruneError",
    "Plan",
    "RecoverConfig",
    "Rng",
    "TrainConfig",
    "cut",
    "load",
    "prune",
    "trace",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'metaprune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
