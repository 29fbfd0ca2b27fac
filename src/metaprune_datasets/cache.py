"""The cache of built-in data sets: one folder per set, put in place whole or not at all, checked when read."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from metaprune.core.errors import DataError
from metaprune.core.files import whole_folder
from metaprune.data.arrays import Arrays
from metaprune.data.npz import read_npz

_FILE, _FACTS = "data.npz", "facts.json"


def cache_root() -> Path:
    """`$METAPRUNE_CACHE`, or `~/.cache/metaprune`; its folder `data/NAME` holds a set."""
    given = os.environ.get("METAPRUNE_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "metaprune"


def cache_folder(name: str) -> Path:
    """Folder of a built-in set (which may not exist)."""
    return cache_root() / "data" / name


def sha256_of(path: Path) -> str:
    """SHA-256 of a file as hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_cached(name: str) -> bool:
    """Tell whether the cache holds the set."""
    folder = cache_folder(name)
    return (folder / _FILE).is_file() and (folder / _FACTS).is_file()


def write_cache(name: str, arrays: dict[str, np.ndarray], origin: str) -> Path:
    """Write the arrays and their checksum beside the final folder, then move the folder into place.

    Returns:
        The folder.
    """
    target = cache_folder(name)
    with whole_folder(target) as work:
        content: dict[str, Any] = arrays
        np.savez(work / _FILE, **content)
        facts = {"sha256": sha256_of(work / _FILE), "origin": origin}
        (work / _FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return target


def read_cache(name: str) -> Arrays:
    """Read the cached arrays.

    Raises:
        DataError: the file is not the one that was written; names the command that fetches it again.
    """
    folder = cache_folder(name)
    again = f"run `metaprune data get {name}` again."
    try:
        expected = json.loads((folder / _FACTS).read_text(encoding="utf-8"))["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / _FACTS} is damaged ({error}): {again}") from error
    digest = sha256_of(folder / _FILE)
    if digest != expected:
        raise DataError(f"{folder / _FILE} is damaged: its sha256 is {digest}, not {expected}: {again}")
    return read_npz(folder / _FILE)
