"""PruningNet (MetaPruning, ICCV 2019): generated weights for any structure, and a search with them."""

from metaprune.methods.pruningnet.method import FITTED_OPTIONS, PruningNet
from metaprune.methods.pruningnet.session import Session

__all__ = ["FITTED_OPTIONS", "PruningNet", "Session"]
