"""What a measuring process says of itself: memory, and errors as text without this machine's paths."""

from __future__ import annotations

import re
import resource
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def memory() -> dict[str, int]:
    """peak_bytes: the highest so far; resident_bytes: now (Linux)."""
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    return {
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "resident_bytes": resident,
    }


def limit_cpu(seconds: float) -> None:
    """The kernel ends this process once it has used so much more CPU time."""
    total = int(time.process_time() + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (total, total + 5))


def without_folders(text: str) -> str:
    return re.sub(r"(/[\w.+-]+)+/(site-packages|src|benchmarks/coverage)/", "", text)


def first_line(error: BaseException) -> str:
    line = next((t for t in str(error).splitlines() if t.strip()), "")
    return without_folders(f"{type(error).__name__}: {line[:300]}")


def tail(error: BaseException, frames: int = 4) -> str:
    return without_folders("".join(traceback.format_exception(error, limit=-frames)))[-2500:]


@contextmanager
def silenced() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
