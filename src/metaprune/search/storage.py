"""Where a search is kept: an Optuna study in memory, a database or a journal file, and one clear error if it fails."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import InMemoryStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalStorage
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from metaprune.core.errors import MetapruneError, SearchError
from metaprune.search.url import FORMS, JOURNAL, has_secret, parsed_url, shown_url, without_secrets

_DAMAGED = (ValueError, KeyError, IndexError, TypeError, AttributeError, AssertionError, RecursionError, OverflowError)
_PAUSES_S = (0.3, 0.7, 1.5)
_KEPT = "What was evaluated is kept there; put it right and run the same command again to go on"


@contextmanager
def opened(url: str | None, name: str, sampler: optuna.samplers.BaseSampler) -> Iterator[optuna.Study]:
    """Open the study of that name at `url` (None: in memory), a new one if there is none.

    Raises:
        SearchError: the storage cannot be opened.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with storage_errors(url):
        storage, study = _open(url, name, sampler)
    try:
        yield study
    finally:
        if isinstance(storage, RDBStorage):
            storage.engine.dispose()  # SQLite writes what is in FILE-wal to FILE when it is closed


@contextmanager
def storage_errors(url: str | None) -> Iterator[None]:
    """Turn a storage that goes away into one clear error; passwords are not shown."""
    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        raise SearchError(
            f"the storage {shown_url(url)} of the search cannot be used: {_reason(error, url)}. {_KEPT}"
        ) from _cause(error, url)
    except MetapruneError:
        raise
    except _DAMAGED as error:  # Optuna trusts what it reads back
        if url is None:
            raise
        raise SearchError(
            f"the storage {shown_url(url)} of the search is damaged or was changed ({type(error).__name__}: "
            f"{_reason(error, url)}): give another one, or delete it to search again"
        ) from _cause(error, url)


def _open(url: str | None, name: str, sampler: optuna.samplers.BaseSampler) -> tuple[Any, optuna.Study]:
    for pause in (*_PAUSES_S, None):
        try:
            storage = _storage(url)
            return storage, optuna.create_study(
                storage=storage, study_name=name, sampler=sampler, direction="maximize", load_if_exists=True
            )
        except (*_DAMAGED, OSError, ImportError, ArgumentError) as error:  # another URL, a driver, or a damaged file
            raise SearchError(
                f"the storage {shown_url(url)} cannot be opened: {_reason(error, url)}. Give {FORMS}"
            ) from _cause(error, url)
        except (SQLAlchemyError, StorageInternalError) as error:
            if pause is None:
                raise SearchError(
                    f"the storage {shown_url(url)} cannot be opened: {_reason(error, url)}. This start "
                    "evaluated nothing yet; put it right and run the same command again"
                ) from _cause(error, url)
            time.sleep(pause)  # several processes that create the tables at once get in each other's way
    raise AssertionError("unreachable")


def _storage(url: str | None) -> InMemoryStorage | JournalStorage | RDBStorage:
    if url is None:
        return InMemoryStorage()
    if url.startswith(JOURNAL):
        return JournalStorage(_Journal(Path(url.removeprefix(JOURNAL)).resolve()))
    parsed = parsed_url(url)
    literal = url.replace("{", "{{").replace("}", "}}")  # Optuna formats URLs
    if parsed.get_backend_name() != "sqlite":
        return RDBStorage(literal)
    return RDBStorage(literal, engine_kwargs={"pool_events": _sqlite_events(Path(parsed.database or "").resolve())})


def _sqlite_events(path: Path) -> list[tuple[Any, str]]:
    """What to do with each connection when it is made, and before each transaction."""

    def connect(connection: Any, record: Any) -> None:
        # Optuna commits once per gene: without waiting for the disk, a killed process still loses nothing
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        record.info["file"] = _identity(path)

    def checkout(_connection: Any, record: Any, _proxy: Any) -> None:
        # in this mode SQLite writes on to a file that was deleted while it was open, and all of that would be lost
        if _identity(path) != record.info["file"]:
            raise StorageInternalError("its file was moved, deleted or replaced")

    return [(connect, "connect"), (checkout, "checkout")]


def _identity(path: Path) -> int | None:
    return path.stat().st_ino if path.is_file() else None


class _Journal(JournalFileBackend):
    """A journal file that went away is an error; Optuna would go on in a new one, which nothing can read."""

    def __init__(self, path: Path):
        super().__init__(str(path))
        self._path, self._size = path, 0

    def read_logs(self, log_number_from: int) -> Any:
        try:
            self._check()
            yield from super().read_logs(log_number_from)
        except (OSError, ValueError) as error:  # ValueError: a line that is no JSON
            raise StorageInternalError("the journal cannot be read") from error

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        try:
            self._check()
            super().append_logs(logs)
        except (OSError, RuntimeError) as error:  # RuntimeError: the lock file has gone
            raise StorageInternalError("the journal cannot be written") from error

    def _check(self) -> None:
        size = self._path.stat().st_size
        if size < self._size:
            raise OSError("its file was replaced by a shorter one")
        self._size = size


def _reason(error: Exception, url: str | None) -> str:
    line = next(iter(str(error.__cause__ or error).splitlines()), "") or type(error).__name__
    return without_secrets(line, url)


def _cause(error: Exception, url: str | None) -> Exception | None:
    """What a traceback, in log.txt too, may show beside our own message: drivers quote passwords."""
    return None if url is not None and has_secret(url) else error
