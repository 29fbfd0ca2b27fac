"""One attempt to break metaprune, and its verdict: it works rightly, or one error says cause and next step."""

from __future__ import annotations

import contextlib
import io
import re
import resource
import signal
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from metaprune.core.errors import MetapruneError

LIMIT_S = 30
LIMIT_BYTES = 12 * 2**30  # of address space: a size of 2^40 from a file ends here, and not with the machine
# verbs and turns of phrase that tell what to do or what would be accepted
NEXT_STEP = re.compile(
    r"\b(again|give|pass|choose|add|set|use|take|load|save|delete|install|did you mean|known|instead|at least|needs?"
    r"|leave|make|allow|remove|check|call|is \w+( \([^)]*\))?(, \w+)* or|one of|between|above|below|must|write|see"
    r"|run|name|lower|raise|report|at most|can be|retrain|resize|put|convert|replace|correct|such as|trace|look for"
    r"|from \d+ on|lists? (all|them)|is written|shorten|has all|it has|there are)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Attempt:
    """What is tried.

    call: returns nothing, or a text of what it found wrong although nothing was raised.
    must: whether it has to work, has to be refused, or may do either.
    names: the error holds one of these; empty: anything goes.
    keeps: a fingerprint of what must not change, taken before and after.
    """

    name: str
    call: Callable[[], str | None]
    must: Literal["work", "refuse", "either"] = "either"
    names: tuple[str, ...] = ()
    keeps: Callable[[], Any] | None = None


class Refused(MetapruneError):
    """The command line ended with exit code 2 and one line."""


class UsageRefused(MetapruneError):
    """The command line ended with exit code 2 and the usage box of the argument parser."""


class _Late(BaseException):
    """Over the limit; no `except Exception` catches it."""


def verdict(attempt: Attempt) -> str | None:
    """None where the attempt held, else what went wrong."""
    before = None if attempt.keeps is None else attempt.keeps()
    try:
        with _limited(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fault = attempt.call()
        if fault is None and attempt.must == "refuse":
            fault = "accepted in silence"
    except MetapruneError as error:
        fault = _fault_of(error, attempt)
    except _Late:
        fault = f"took over {LIMIT_S} s"
    except MemoryError as error:
        fault = f"MemoryError: {error}"
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        fault = f"{type(error).__name__}: {' '.join(_text(error).split())[:200]}"
    if fault is None and attempt.keeps is not None and attempt.keeps() != before:
        fault = "something that was there before has changed"
    return fault


def _fault_of(error: MetapruneError, attempt: Attempt) -> str | None:
    text = str(error)
    if attempt.must == "work":
        return f"refused: {text[:200]}"
    if isinstance(error, UsageRefused):
        return None
    if "\n" in text.strip():
        return f"several lines: {' / '.join(text.split(chr(10)))[:300]}"
    if "<object object" in text or " at 0x" in text:
        return f"shows an address: {text[:200]}"
    if attempt.names and not any(name in text for name in attempt.names):
        return f"names none of {', '.join(attempt.names)[:80]}: {text[:200]}"
    if not NEXT_STEP.search(text):
        return f"no next step: {text[:200]}"
    return None


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return "(an error that cannot be shown)"


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    def late(*_: Any) -> None:
        raise _Late

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    old = signal.signal(signal.SIGALRM, late)
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, hard))
    signal.alarm(LIMIT_S)
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGALRM, old)


def command(*arguments: str | Path) -> str:
    """Run the command line in this process; returns what it printed.

    Raises:
        Refused, UsageRefused: exit code 2. AssertionError: another exit code, or more than one line.
    """
    from metaprune.cli.main import main

    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([str(a) for a in arguments])
    except SystemExit as ended:
        if ended.code in (0, None):
            return out.getvalue()
        raise UsageRefused(err.getvalue() or out.getvalue()) from None
    if code == 0:
        return out.getvalue()
    said = err.getvalue()
    lines = [line for line in said.splitlines() if line.startswith("metaprune: ")]
    assert code == 2 and len(lines) == 1 and "Traceback" not in said, f"exit code {code}: {said[-300:]}"
    if not said.rstrip().endswith(lines[0]):
        raise Refused(said[said.index(lines[0]) :].strip())
    raise Refused(lines[0].removeprefix("metaprune: "))
