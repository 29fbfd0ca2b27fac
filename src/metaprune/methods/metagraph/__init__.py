"""Graph metanetwork: rewrite a network so that pruning hurts less."""

from metaprune.methods.metagraph.method import FITTED_OPTIONS, MetaGraph
from metaprune.methods.metagraph.wire import wire
from metaprune.methods.metagraph.wiring import Wiring

__all__ = ["FITTED_OPTIONS", "MetaGraph", "Wiring", "wire"]
