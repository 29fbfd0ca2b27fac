"""Models by spec string: the papers' networks (`zoo:`), timm, torchvision, transformers, or your own function."""

from metaprune.models.sources import create, default_input_shape
from metaprune.models.weights import load_weights
from metaprune_networks.zoo import zoo_names

__all__ = ["create", "default_input_shape", "load_weights", "zoo_names"]
