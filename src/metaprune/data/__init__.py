"""Data sets behind one spec string, the built-in sets and their cache, and users' own loaders."""

from metaprune.data.image_split import ImageSplit
from metaprune.data.load import as_data, load_data
from metaprune.data.loader_split import LoaderSplit
from metaprune.data.tensor_split import TensorSplit
from metaprune.data.types import Data, Split
from metaprune_datasets.builtin import builtin_names, get_builtin

__all__ = [
    "Data",
    "ImageSplit",
    "LoaderSplit",
    "Split",
    "TensorSplit",
    "as_data",
    "builtin_names",
    "get_builtin",
    "load_data",
]
