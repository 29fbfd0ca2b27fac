"""Recipes and configs can name code. Those that this user gave are followed, those of others' folders are asked about.

A folder whose config names code is signed when a run of this user claims it, by a key that lies in the user's cache.
Whoever edits the config or hands on a folder cannot sign it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from metaprune.core.errors import ConfigError
from metaprune.core.files import write_json

SIGNATURE = ".signature"
# options of models and data that run or fetch what they name
_CODE_OPTIONS = frozenset(
    [
        "trust_remote_code",
        "weights_only",
        "use_safetensors",
        "code_revision",
        "pickle_module",
        "attn_implementation",
        "quantization_config",
        "checkpoint_path",
    ]
)
_LOCAL_STORAGE = ("sqlite:", "journal:")


def code_in(config: Any) -> list[str]:
    """What a config runs or connects to by name, in the order of the file."""
    return list(dict.fromkeys(_code(config)))


def _code(value: Any, key: str = "") -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from _code(part, str(name))
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _code(part, key)
    elif key.rpartition(".")[2] in _CODE_OPTIONS and value not in (None, False if key != "weights_only" else None):
        yield f"{key}={value!r}"
    elif isinstance(value, str) and value.strip().startswith("python:"):
        yield value
    elif key.rpartition(".")[2] == "storage" and isinstance(value, str) and not value.startswith(_LOCAL_STORAGE):
        yield f"a storage at {value.partition(':')[0]}:..."  # the rest may hold a password


def require_trusted(folder: Path, config: Any, *, given: Iterable[str] = (), trust: bool = False) -> None:
    """Refuse a config that names code, unless this user made it, gave the same names, or says `trust`.

    Raises:
        ConfigError: it names code of somebody else; says which.
    """
    known = set(given)
    foreign = [target for target in code_in(config) if target not in known]
    if not foreign or trust or _is_signed(folder, config):
        return
    more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
    raise ConfigError(
        f"the config in {folder} runs {foreign[0]}{more}, and no run of yours on this machine wrote it: read that "
        "code first, then pass --trust"
    )


def sign(folder: Path, config: Any) -> None:
    """Mark a folder whose config names code as made by this user; without a key (no home) it is not marked."""
    if not code_in(config):
        return
    try:
        key = _key(make=True)
        if key is not None and not _is_signed(folder, config):
            write_json(folder / SIGNATURE, _signature(key, config))
    except OSError:
        return


def _is_signed(folder: Path, config: Any) -> bool:
    try:
        key = _key(make=False)
        text = (folder / SIGNATURE).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
    return key is not None and hmac.compare_digest(text.strip().strip('"').encode(), _signature(key, config).encode())


def _signature(key: bytes, config: Any) -> str:
    return hmac.new(key, json.dumps(config, sort_keys=True).encode(), hashlib.sha256).hexdigest()


def _key(*, make: bool) -> bytes | None:
    """The user's secret, 32 random bytes that only the user can read."""
    cache = os.environ.get("METAPRUNE_CACHE")
    path = (Path(cache).expanduser() if cache else Path.home() / ".cache" / "metaprune") / "run-key"
    if not path.exists() and make:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".run-key.{os.getpid()}")
        draft.touch(mode=0o600)
        draft.write_bytes(os.urandom(32))
        try:
            os.link(draft, path)  # not a rename: of two that make it at once, the first one's stays
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    key = path.read_bytes() if path.exists() else b""
    return key if len(key) == 32 else None
