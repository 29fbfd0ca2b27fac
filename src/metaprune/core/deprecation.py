"""Old names that still work."""

from __future__ import annotations

import warnings
from collections.abc import Mapping


def current_name(kind: str, name: str, renamed: Mapping[str, str]) -> str:
    """Return the name that `name` has now; warn if it is an old one.

    Args:
        kind: what the name is of, as `method`.
        renamed: old name -> current name.
    """
    if name not in renamed:
        return name
    warnings.warn(
        f"{kind} {name!r} is called {renamed[name]!r} now: use that name, the old one will go",
        FutureWarning,
        stacklevel=3,
    )
    return renamed[name]
