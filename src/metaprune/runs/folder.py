"""One run, one folder: config as resolved, log, checkpoints, phases timed; a killed run continues where it was.

config.json  log.txt  checkpoints/  dense.safetensors  record.json
plan.json  network.json  model.safetensors  report.html
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from metaprune.core.errors import ConfigError
from metaprune.core.files import write_json
from metaprune.core.strict import from_dict
from metaprune.runs.config import RunConfig

log = logging.getLogger("metaprune")

_CLAIM = {"config.json", "log.txt", "dense.safetensors"}  # all that a run leaves that stopped before any training


class RunFolder:
    def __init__(self, path: str | Path, config: RunConfig, *, writes: bool = True):
        """Claim `path` for `config`. Without `writes` it is another process's: nothing is written there.

        Raises:
            ConfigError: the folder holds a run of another config (says which keys differ).
        """
        self.path, self._writes = Path(path), writes
        known = self.path / "config.json"
        resolved = config.to_dict()
        if known.is_file() and {p.name for p in self.path.iterdir()} - _CLAIM:  # nothing to lose after a false start
            changed = _differences(_as_of_today(json.loads(known.read_text())), resolved)
            if changed:
                raise ConfigError(
                    f"{self.path} holds a run with another config ({'; '.join(changed[:5])}). "
                    "Choose another folder with --run, or delete this one"
                )
        elif not known.is_file() and self.path.is_dir() and any(self.path.iterdir()):
            raise ConfigError(f"{self.path} is not empty and holds no run; choose another folder with --run")
        if writes:
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(known, resolved)

    @property
    def finished(self) -> dict[str, Any] | None:
        """The record of a run that came to its end, or None."""
        path = self.path / "record.json"
        return json.loads(path.read_text()) if path.is_file() else None

    def checkpoints(self, phase: str) -> Path:
        return self.path / "checkpoints" / phase

    @contextmanager
    def logged(self) -> Iterator[None]:
        """Write metaprune's log messages to log.txt inside the block; without `writes`, only warnings are said."""
        handler = logging.FileHandler(self.path / "log.txt") if self._writes else logging.NullHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        level = log.level
        log.addHandler(handler)
        log.setLevel(logging.INFO if self._writes else logging.WARNING)  # one process tells
        try:
            yield
        except BaseException:  # to the file alone: whoever catches it says it to the user
            handler.handle(logging.LogRecord(log.name, logging.ERROR, __file__, 0, "stopped", (), sys.exc_info()))
            raise
        finally:
            log.removeHandler(handler)
            log.setLevel(level)
            handler.close()


class Phases:
    """Wall seconds per phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        log.info("%s ...", name)
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
        log.info("%s done in %.1f s", name, self.seconds[name])


def _as_of_today(data: dict[str, Any]) -> dict[str, Any]:
    """The config of an earlier start, with the defaults of options that it did not hold."""
    try:
        return from_dict(RunConfig, data).to_dict()
    except ConfigError:  # of another version; the comparison says what differs
        return data


def _differences(old: Any, new: Any, where: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [d for k in keys for d in _differences(old.get(k), new.get(k), f"{where}.{k}".lstrip("."))]
    return [] if old == new else [f"{where}: {old!r} there, {new!r} asked"]
