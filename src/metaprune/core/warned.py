"""Warnings that travel: what is said to the user while a block runs is kept for the record, too."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

_PATH = re.compile(r"(?<![\w.~/])(?:~|[A-Za-z]:)?(?:[/\\][^\s/\\:,;'\"()]+)+[/\\]?")


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Collect the texts of the block's warnings, each once and without paths of this machine; they are shown as ever.

    Also collected are those that a filter hides. Warnings of other installed packages are not.
    """
    texts: list[str] = []
    filters = list(warnings.filters)
    with warnings.catch_warnings():
        show = warnings.showwarning
        warnings.simplefilter("always", UserWarning)

        def keep(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            text, action = without_paths(str(message)), "default"
            if issubclass(category, UserWarning):
                action = _action(filters, str(message), category, filename, lineno)
                known = text in texts
                if "site-packages" not in filename and not known:
                    texts.append(text)
                if action == "error" and isinstance(message, Warning):
                    raise message
                if action == "ignore" or (known and action != "always"):
                    return
            show(message, category, filename, lineno, file, line)

        warnings.showwarning = keep
        yield texts


def without_paths(text: str) -> str:
    """Leave of every absolute path its last part: a record is passed on."""
    return _PATH.sub(lambda match: re.split(r"[/\\]", match[0].rstrip("/\\"))[-1], text)


def _action(filters: list[Any], text: str, category: type[Warning], filename: str, lineno: int) -> str:
    """What the filters of the caller do with a warning; "default" where none matches."""
    module = filename.removesuffix(".py")
    for action, message, kind, where, line in filters:
        if (
            issubclass(category, kind)
            and (message is None or message.match(text))
            and (where is None or where.match(module))
            and line in (0, lineno)
        ):
            return action
    return "default"
