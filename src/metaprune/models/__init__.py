"""Models by spec string: the papers' networks (`zoo:`), timm, torchvision, transformers, or your own function."""

from metaprune.models.scheme import MODEL_SCHEMES, ModelScheme
from metaprune.models.sources import create, default_input_shape
from metaprune.models.weights import load_weights

__all__ = ["MODEL_SCHEMES", "ModelScheme", "create", "default_input_shape", "load_weights"]
