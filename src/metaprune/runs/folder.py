"""One run, one folder: config as resolved, log, checkpoints, phases timed; a killed run continues where it was.

config.json  log.txt  checkpoints/  dense.safetensors  record.json
plan.json  network.json  model.safetensors  report.html
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from metaprune.core.errors import ConfigError, DamagedFileError, DataError, DataMissingError
from metaprune.core.files import file_digest, is_leftover, part_of, sweep, write_json
from metaprune.core.read import read_json
from metaprune.core.strict import from_dict
from metaprune.runs.config import RunConfig
from metaprune.runs.lock import NAME as LOCK
from metaprune.runs.lock import locked
from metaprune.runs.schema import read_record
from metaprune.runs.trust import SIGNATURE, code_in, sign

log = logging.getLogger("metaprune")

# all that a run leaves that stopped before any training
_CLAIM = {"config.json", "log.txt", "dense.safetensors", LOCK, SIGNATURE}
_PARTS = ("model.safetensors", "dense.safetensors", "network.json", "plan.json")
_REMEDY = "choose another folder with --run, or delete this one"


class RunFolder:
    def __init__(self, path: str | Path, config: RunConfig, *, writes: bool = True):
        """Look whether `path` is free for `config`; `held` takes it. Without `writes` it is another process's.

        Raises:
            ConfigError: the folder holds a run of another config (says which keys differ).
            DamagedFileError: its config.json cannot be read.
        """
        self.path, self.writes, self._config = Path(path), writes, config.to_dict()
        self._require_free()

    def _require_free(self) -> None:
        known = self.path / "config.json"
        if known.is_file():
            if not {p.name for p in self.path.iterdir() if not is_leftover(p)} - _CLAIM:
                return  # nothing to lose after a false start
            changed = _differences(_as_of_today(read_json(known, remedy=_REMEDY), self._config), self._config)
            if changed:
                raise ConfigError(
                    f"{self.path} holds a run with another config ({'; '.join(changed[:5])}). "
                    "Choose another folder with --run, or delete this one"
                )
        elif self.path.is_dir() and any(p.name != LOCK and not is_leftover(p) for p in self.path.iterdir()):
            raise ConfigError(f"{self.path} is not empty and holds no run; choose another folder with --run")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes out of the folder inside the block; without `writes`, the main process does.

        Raises:
            ConfigError: another process works there, or has written another config meanwhile.
        """
        if not self.writes:
            yield
            return
        self.path.mkdir(parents=True, exist_ok=True)
        with locked(self.path):
            self._require_free()
            self.claim()
            yield
            if _config_on_disk(self.path) != self._config:
                log.warning("warning: %s was changed while the run went on: it is written again", "config.json")
                write_json(self.path / "config.json", self._config)

    def claim(self) -> None:
        """Write config.json if it is not there as it has to be, and delete what killed processes left."""
        if not self.writes:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        sweep(self.path)
        if _config_on_disk(self.path) != self._config:
            write_json(self.path / "config.json", self._config)
        sign(self.path, self._config)

    @property
    def finished(self) -> dict[str, Any] | None:
        """The record of a run that came to its end and whose files are all there and intact, or None."""
        path = self.path / "record.json"
        if not path.is_file():
            return None
        try:
            record = read_record(path)
        except (ConfigError, DataError) as error:
            record, fault = None, str(error)
        else:
            fault = _fault(self.path, record)
        if fault is None:
            return record
        log.warning("warning: %s; the run goes on from its checkpoints to make it again", fault)
        return None

    def checkpoints(self, phase: str) -> Path:
        return self.path / "checkpoints" / phase

    @contextmanager
    def logged(self) -> Iterator[None]:
        """Write metaprune's log messages to log.txt inside the block; without `writes`, only warnings are said."""
        handler = logging.FileHandler(self.path / "log.txt") if self.writes else logging.NullHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        level = log.level
        log.addHandler(handler)
        log.setLevel(logging.INFO if self.writes else logging.WARNING)  # one process tells
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


def parts_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and digest of the files that make a finished run, for its record."""
    return {name: {"bytes": (folder / name).stat().st_size, "sha256": file_digest(folder / name)} for name in _PARTS}


def _fault(folder: Path, record: dict[str, Any]) -> str | None:
    """What is wrong with the files of a finished run; records of early versions hold no digests to compare with."""
    parts = record.get("files") or {}
    if not isinstance(record.get("cost"), dict) or not isinstance(parts, dict):
        return f"{folder / 'record.json'} is not of a finished run"
    for name in _PARTS:
        path, known = part_of(folder, name), parts.get(name)
        if not path.is_file():
            return f"{path} is missing"
        if known is not None and known != {"bytes": path.stat().st_size, "sha256": file_digest(path)}:
            return f"{path} is damaged or was changed"
    return None


def _config_on_disk(folder: Path) -> Any:
    try:
        return read_json(folder / "config.json", remedy=_REMEDY)
    except (DataMissingError, DamagedFileError):
        return None


def _as_of_today(data: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    """The config of an earlier start, with the defaults of options that it did not hold.

    One that names code which the asked one does not is left as it is: reading its options would import that.
    """
    if not set(code_in(data)) <= set(code_in(asked)):
        return data
    try:
        return from_dict(RunConfig, data).to_dict()
    except ConfigError:  # of another version; the comparison says what differs
        return data


def _differences(old: Any, new: Any, where: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [d for k in keys for d in _differences(old.get(k), new.get(k), f"{where}.{k}".lstrip("."))]
    return [] if old == new else [f"{where}: {old!r} there, {new!r} asked"]
