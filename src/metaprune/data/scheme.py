"""Where data come from: one scheme per source, known by the word before the colon of a spec."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from metaprune.core.errors import ConfigError, closest
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


def load_spec(spec: str, what: str, options: Options, skip_corrupt: bool) -> Data:
    """Load what a spec names, as `imagefolder:DIR`; `what` is what an error calls it.

    Raises:
        ConfigError: no scheme of that name, or nothing behind the colon.
    """
    scheme, _, name = spec.partition(":")
    if not name or scheme not in DATA_SCHEMES.names():
        raise ConfigError(f"{what} is not understood.{closest(scheme, DATA_SCHEMES.names())} Write {forms()}.")
    return DATA_SCHEMES.get(scheme).load(name, spec, options, skip_corrupt)


def forms() -> str:
    """List how specs are written: `builtin:NAME, imagefolder:DIR, ...`."""
    return ", ".join(DATA_SCHEMES.get(name).form for name in DATA_SCHEMES.names())
