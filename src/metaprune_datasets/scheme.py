"""Built-in data and weights as sources: `builtin:NAME`, fetched by `metaprune data get NAME`."""

from __future__ import annotations

from metaprune.data import as_data
from metaprune.data.arrays import Options, to_data
from metaprune.data.scheme import DataScheme
from metaprune.data.text import SEQUENCE_LENGTH
from metaprune.data.types import Data
from metaprune.models.scheme import ModelScheme
from metaprune_datasets.builtin import builtin, builtin_arrays
from metaprune_datasets.pretrained import build
from metaprune_datasets.text import CORPORA, corpus


def _load(name: str, spec: str, options: Options, skip_corrupt: bool) -> Data:
    text, _, genre = name.partition("/")
    if text in CORPORA:
        options.require_text(spec)
        train, val, test = corpus(text, options.tokenizer, options.sequence_length or SEQUENCE_LENGTH, genre)
        limited = train if options.limit is None else train.take(options.limit)
        return as_data((limited, val, test), name=spec, objective="next_token")
    return to_data(spec, builtin_arrays(name), options, flip=builtin(name).flip)


BUILTIN_DATA = DataScheme(load=_load, form="builtin:NAME")
BUILTIN_MODELS = ModelScheme(
    build=lambda name, weights, options: build(name, **options), form="builtin:NAME", ships_weights=False
)
