"""Files, folders and sets of files that are whole or not there: written under another name, then renamed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metaprune.core.errors import WriteError, first_line

if TYPE_CHECKING:
    import torch

_COMPLETE = ".complete"  # the new files of a set between the moment they are all there and their last rename
_LEFTOVER = re.compile(r"\.(.+\.[a-z0-9_]{8}(\.tmp)?|(old|tmp)-epoch-\d+)")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        yield Path(name)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextmanager
def draft_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path` that is gone after the block, whatever was left in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that takes the place of `path` when the block ends well; what was there is deleted."""
    with draft_folder(path) as folder:
        draft = folder / "draft"
        draft.mkdir()
        yield draft
        if path.exists():
            path.rename(folder / "replaced")
        draft.rename(path)


@contextmanager
def whole_files(folder: Path) -> Iterator[Path]:
    """A draft folder whose files replace those in `folder` when the block ends well: all of them, or none.

    The rename of the draft to one fixed name decides. Whoever reads by `part_of` sees the old files before it and the
    new ones after it, also where a kill stopped the moves that follow.

    Raises:
        WriteError: they could not be written; the old files are whole.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _move_complete(folder)
        with draft_folder(folder / "files") as draft:
            yield draft
            for path in draft.iterdir():
                flush(path)
            draft.rename(folder / _COMPLETE)
        flush(folder)
        _move_complete(folder)
    except Exception as error:
        if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":
            raise WriteError(
                f"{folder} cannot be written ({first_line(error)}); what was there is whole. Check its rights and the "
                "space left, then save again"
            ) from error
        raise


def part_of(folder: Path, name: str) -> Path:
    """Where file `name` of a set is that `whole_files` wrote into `folder`."""
    waiting = folder / _COMPLETE / name
    return waiting if waiting.exists() else folder / name


def _move_complete(folder: Path) -> None:
    waiting = folder / _COMPLETE
    if waiting.is_dir():
        for path in waiting.iterdir():
            path.replace(folder / path.name)
        waiting.rmdir()


def is_leftover(path: Path) -> bool:
    """Whether a file or folder has a name that only unfinished work has."""
    return _LEFTOVER.fullmatch(path.name) is not None or path.name == _COMPLETE


def sweep(folder: Path) -> None:
    """Delete what killed processes left under temporary names; folders of other runs are theirs to sweep."""
    _move_complete(folder)
    for path in list(folder.iterdir()):
        if is_leftover(path):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        elif path.is_dir() and not path.is_symlink() and not (path / "config.json").exists():
            sweep(path)


def flush(path: Path) -> None:
    """Bring a file or folder to the disk, so that a power cut does not undo the order of the steps."""
    if path.is_dir() and os.name == "nt":  # Windows cannot open folders
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str, newline: str | None = None) -> None:
    """Write a file whole or not at all; `newline` is that of `open`."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline=newline)


def write_json(path: Path, data: Any) -> None:
    write_text(path, json.dumps(data, indent=1) + "\n")


def write_sealed(path: Path, data: Mapping[str, Any]) -> None:
    """Write a table as JSON with a digest of itself, which `read_json` checks."""
    plain = json.loads(json.dumps(data))
    write_json(path, {**plain, SEAL: digest_of(plain)})


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    from safetensors.torch import save_file

    with whole_file(path) as temporary:
        save_file({n: t.detach().contiguous().cpu() for n, t in tensors.items()}, temporary)


SEAL = "content_digest"


def digest_of(data: Any) -> str:
    """First 16 hexadecimal digits of the SHA-256 of JSON-able data."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()[:16]


def tensors_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Short hash of names, shapes and values."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
