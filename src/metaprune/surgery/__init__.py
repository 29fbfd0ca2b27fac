"""A plan turned into a smaller network, proved equal to its masked original."""

from metaprune.surgery.cut import Pruned, cut

__all__ = ["Pruned", "cut"]
