"""What a measurement has so far, in a file: one that was stopped goes on from there."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from metaprune.core.errors import ConfigError
from metaprune.core.files import write_sealed
from metaprune.core.read import read_json, require_seal

_REMEDY = "delete it, and measure anew"


class Kept:
    """Values by name, each written to a file once it is measured; without a path they are kept nowhere."""

    def __init__(self, path: str | Path | None, settings: Mapping[str, Any]):
        """Read what an earlier start of the same settings left.

        Raises:
            ConfigError: what it left is of other settings; says which differ.
            DamagedFileError: the file cannot be read.
        """
        path = None if path is None else Path(path)
        self._path, self._settings = path, json.loads(json.dumps(settings))
        self._values: dict[str, Any] = {}
        self._earlier, self._begun = 0.0, time.perf_counter()
        if path is not None and path.exists():
            data = require_seal(path, read_json(path, remedy=_REMEDY, keys=("settings", "values", "seconds")), _REMEDY)
            self._require_same(path, data["settings"])
            self._values, self._earlier = data["values"], data["seconds"]

    def _require_same(self, path: Path, theirs: Mapping[str, Any]) -> None:
        differing = [key for key in self._settings.keys() | theirs.keys() if self._settings.get(key) != theirs.get(key)]
        if differing:
            key = min(differing)
            raise ConfigError(
                f"{path} holds what was measured so far of other settings ({key}: {theirs.get(key)} there, "
                f"{self._settings.get(key)} asked): repeat that command, or delete the file"
            )

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def once(self, name: str, measure: Callable[[], Any]) -> Any:
        """Return the value of that name; measure and keep it, if there is none."""
        if name not in self._values:
            self._values[name] = measure()
            if self._path is not None:
                whole = {"settings": self._settings, "seconds": self.seconds, "values": self._values}
                write_sealed(self._path, whole)
        return self._values[name]

    @property
    def seconds(self) -> float:
        """Wall time of the measurement, earlier starts included."""
        return self._earlier + time.perf_counter() - self._begun
