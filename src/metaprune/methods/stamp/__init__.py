"""STAMP (Song et al., 2020): a mask generated from the target data set, on weights that were meta-trained for it."""

from metaprune.methods.stamp.meta import MetaConfig
from metaprune.methods.stamp.method import FITTED_OPTIONS, Stamp

__all__ = ["FITTED_OPTIONS", "MetaConfig", "Stamp"]
