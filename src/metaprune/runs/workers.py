"""More processes of one command: given the storage's URL in their environment, watched, and ended with this one."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from metaprune.search.config import ENVIRONMENT

log = logging.getLogger("metaprune")

_GRACE_S = 30.0  # for a worker that was told to end


@contextmanager
def workers(command: Sequence[str], count: int, storage: str | None = None) -> Iterator[list[subprocess.Popen]]:
    """Run `count` more processes of `command` beside the block; each takes its share by the storage, or by locks.

    They are waited for when the block ends well, and ended when it does not. One that dies meanwhile is said at once.
    """
    environment = dict(os.environ)
    if storage is not None:  # never as an argument: everybody on the machine can list those
        environment[ENVIRONMENT] = storage
    helpers = [subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment) for _ in range(count)]
    watchers = [threading.Thread(target=_watch, args=(helper,), daemon=True) for helper in helpers]
    for watcher in watchers:
        watcher.start()
    try:
        yield helpers
    except BaseException:
        for helper in helpers:
            helper.terminate()
        for helper, watcher in zip(helpers, watchers, strict=True):
            watcher.join(_GRACE_S)
            helper.kill()
        raise
    finally:
        for watcher in watchers:
            watcher.join()
        if failed := sum(helper.returncode != 0 for helper in helpers):
            log.warning("%d of %d workers stopped early; see above", failed, len(helpers))


def _watch(helper: subprocess.Popen) -> None:
    """Wait for one process: until that is done, a dead one is a zombie, which others take for alive."""
    code = helper.wait()
    if code < 0 and code != -signal.SIGTERM:
        name = signal.Signals(-code).name
        log.warning("warning: worker %d was ended by %s; the others take its work", helper.pid, name)


@contextmanager
def sigterm_exits() -> Iterator[None]:
    """Let SIGTERM end this process as an exception does: workers are ended, and what it held is free again."""
    if threading.current_thread() is not threading.main_thread():  # Python sets handlers there alone
        yield
        return

    def leave(*_: object) -> None:
        sys.exit(128 + signal.SIGTERM)

    before: Callable | int | None = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
