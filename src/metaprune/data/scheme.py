"""Where data come from: one scheme per source, known by the word before the colon of a spec."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from metaprune.core.plugins import Registry
from metaprune.data.arrays import Options
from metaprune.data.types import Data


@dataclass(frozen=True, kw_only=True)
class DataScheme:
    """A source of data.

    Attributes:
        load: (name, spec, options, skip_corrupt) -> Data; `spec` is what errors and records call it.
        form: how a spec of it is written, as `imagefolder:DIR`.
    """

    load: Callable[[str, str, Options, bool], Data]
    form: str


DATA_SCHEMES = Registry(
    "source of data",
    "metaprune.data",
    {
        "builtin": "metaprune_datasets.scheme:BUILTIN_DATA",
        "imagefolder": "metaprune.data.load:IMAGEFOLDER",
        "npz": "metaprune.data.load:NPZ",
        "text": "metaprune.data.load:TEXT",
        "hf": "metaprune.data.load:HF",
        "join": "metaprune.data.joined:JOIN",
        "python": "metaprune.data.load:PYTHON",
    },
)


def forms() -> str:
    """List how specs are written: `builtin:NAME, imagefolder:DIR, ...`."""
    return ", ".join(DATA_SCHEMES.get(name).form for name in DATA_SCHEMES.names())
