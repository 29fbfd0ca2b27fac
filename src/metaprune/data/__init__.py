"""Data sets behind one spec string, and users' own loaders."""

from metaprune.data.image_split import ImageSplit
from metaprune.data.load import as_data, load_data
from metaprune.data.loader_split import LoaderSplit
from metaprune.data.scheme import DATA_SCHEMES, DataScheme
from metaprune.data.tensor_split import TensorSplit
from metaprune.data.types import Data, Split

__all__ = [
    "DATA_SCHEMES",
    "Data",
    "DataScheme",
    "ImageSplit",
    "LoaderSplit",
    "Split",
    "TensorSplit",
    "as_data",
    "load_data",
]
