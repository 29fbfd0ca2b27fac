"""One process per run folder: a lock that the system gives back when its holder ends, however it ends."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from metaprune.core.errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows: two processes in one folder are not noticed there
    fcntl = None  # type: ignore[assignment]

NAME = ".lock"
_mine: set[Path] = set()  # locks of this process, which the system would give it twice
_guard = threading.Lock()


class BusyError(ConfigError):
    """Another process works in the folder."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder` inside the block. File systems without locks are worked on without one.

    Raises:
        BusyError: another process holds it; says which, where and since when.
    """
    path = (folder / NAME).resolve()
    with _guard:
        if path in _mine:
            raise BusyError(_message(folder, _who()))
        handle = _taken(folder, path)
        _mine.add(path)
    try:
        yield
    finally:
        with _guard:
            _mine.discard(path)
            if handle is not None:
                path.unlink(missing_ok=True)  # before it is given back: nobody may hold a file that is not there
                os.close(handle)


def _taken(folder: Path, path: Path) -> int | None:
    if fcntl is None:
        return None
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            held = os.read(handle, 1000)
            os.close(handle)
            if not isinstance(error, BlockingIOError | PermissionError):
                return None  # no locks on this file system
            raise BusyError(_message(folder, _read(held))) from error
        with suppress(OSError):
            if os.fstat(handle).st_ino == path.stat().st_ino:
                os.ftruncate(handle, 0)
                os.write(handle, json.dumps(_who()).encode())
                return handle
        os.close(handle)  # its last holder deleted this file in between


def _who() -> dict[str, object]:
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": since}


def _read(text: bytes) -> dict[str, object]:
    try:
        held = json.loads(text)
        return held if isinstance(held, dict) else {}
    except ValueError:
        return {}


def _message(folder: Path, who: dict[str, object]) -> str:
    return (
        f"another process works in {folder} (pid {who.get('pid', '?')} on {who.get('host', '?')}, since "
        f"{who.get('since', '?')}): wait for it or stop it, or choose another folder with --run"
    )
