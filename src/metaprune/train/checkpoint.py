"""Checkpoints of a training run: whole or not there, tensors in safetensors, numbers in JSON, no pickle.

A checkpoint is a folder `epoch-0003/` with `checkpoint.safetensors` and `checkpoint.json`. It is written under a
temporary name and renamed, and older ones go only afterwards, so a kill at any moment leaves the newest one whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from metaprune.core.errors import ConfigError, WeightsError
from metaprune.train.history import History

_FORMAT = 1
_TENSORS = "checkpoint.safetensors"
_NUMBERS = "checkpoint.json"


class SavedHistory(Protocol):
    """What a checkpoint keeps of the steps so far: rows, as plain data."""

    @property
    def rows(self) -> Sequence[Any]: ...

    def to_dict(self) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """State after an epoch: `tensors` by name ("model.*", "optimizer.INDEX.KEY"), the rest as JSON-able `numbers`."""

    tensors: dict[str, Tensor]
    numbers: dict[str, Any]

    @property
    def history(self) -> History:
        return History.from_dict(self.numbers["history"])

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Select the tensors whose name begins with `prefix` and a dot, without it."""
        return {n.removeprefix(f"{prefix}."): t for n, t in self.tensors.items() if n.startswith(f"{prefix}.")}


def digest_of(identity: Mapping[str, Any]) -> str:
    """First 16 hexadecimal digits of the SHA-256 of a JSON-able mapping."""
    text = json.dumps(identity, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def save_checkpoint(
    directory: Path,
    *,
    model: nn.Module,
    optimizer: Any,
    scaler: Any,
    history: SavedHistory,
    identity: Mapping[str, Any],
    extra: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write `directory/epoch-NNNN`, then delete older ones. Returns the folder.

    `extra`: more tensors, by a name with a prefix of their own, which `Checkpoint.part` gives back.
    """
    epoch = len(history.rows)
    tensors = {f"model.{name}": tensor for name, tensor in _model_tensors(model).items()}
    tensors |= extra or {}
    numbers: dict[str, dict[str, Any]] = {}
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{key}"] = value
            else:
                numbers.setdefault(str(index), {})[key] = value
    document = {
        "format": _FORMAT,
        "epoch": epoch,
        "digest": digest_of(identity),
        "identity": identity,
        "history": history.to_dict(),
        "optimizer": numbers,
        "scaler": None if scaler is None else scaler.state_dict(),
    }
    directory.mkdir(parents=True, exist_ok=True)
    final = directory / f"epoch-{epoch:04d}"
    temporary = directory / f".tmp-{final.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    # clones: safetensors refuses tensors that share storage, and tied or viewed parameters do
    copies = {k: t.detach().to("cpu", copy=True, memory_format=torch.contiguous_format) for k, t in tensors.items()}
    save_file(copies, temporary / _TENSORS)
    (temporary / _NUMBERS).write_text(json.dumps(document, indent=1, default=str), encoding="utf-8")
    for path in (temporary / _TENSORS, temporary / _NUMBERS, temporary):
        _flush(path)
    if final.exists():  # an unreadable leftover of the same epoch
        _delete(final)
    temporary.replace(final)
    _flush(directory)
    for folder in _folders(directory):
        if folder != final:
            _delete(folder)
    return final


def load_checkpoint(directory: Path, identity: Mapping[str, Any]) -> Checkpoint | None:
    """Load the newest checkpoint in `directory`, or None.

    Raises `ConfigError` when it was made by another run (`identity` differs), `WeightsError` when it cannot be read.
    """
    folders = _folders(directory)
    if not folders:
        return None
    folder = folders[-1]
    try:
        numbers = json.loads((folder / _NUMBERS).read_text(encoding="utf-8"))
        if numbers.get("format") != _FORMAT:
            raise ValueError(f"format {numbers.get('format')!r}, this version reads {_FORMAT}")
        _require_same_run(folder, numbers, identity)
        with safe_open(folder / _TENSORS, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        if isinstance(error, ConfigError):
            raise
        raise WeightsError(
            f"checkpoint {folder} cannot be read ({error}): delete {directory} to start the training over"
        ) from error
    return Checkpoint(tensors, numbers)


def restore(checkpoint: Checkpoint, *, model: nn.Module, optimizer: Any = None, scaler: Any = None) -> None:
    """Copy a checkpoint into `model` (in place, so ties stay), `optimizer` and `scaler`.

    Raises `WeightsError` naming the tensors when names or shapes do not fit; nothing is changed then.
    """
    tensors = _model_tensors(model)
    saved = checkpoint.part("model")
    wrong = sorted(tensors.keys() ^ saved.keys())
    wrong += [name for name in tensors.keys() & saved.keys() if tensors[name].shape != saved[name].shape]
    if wrong:
        raise WeightsError(f"the checkpoint does not fit the model: {', '.join(wrong[:8])}; start the training over")
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(saved[name])
    if optimizer is not None:
        state: dict[int, dict[str, Any]] = {}
        for index, values in checkpoint.numbers["optimizer"].items():
            state.setdefault(int(index), {}).update(values)
        for name, tensor in checkpoint.tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".", 2)
                state.setdefault(int(index), {})[key] = tensor
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    if scaler is not None and checkpoint.numbers["scaler"] is not None:
        scaler.load_state_dict(checkpoint.numbers["scaler"])


def shapes_digest(model: nn.Module) -> str:
    """Digest of the names, shapes and dtypes of all parameters and buffers."""
    return digest_of({name: [list(t.shape), str(t.dtype)] for name, t in _model_tensors(model).items()})


def _model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers (also those that are not in the state dict) by name, a shared one once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _require_same_run(folder: Path, numbers: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    wanted = digest_of(identity)
    if numbers["digest"] == wanted:
        return
    old, new = _flat(numbers["identity"]), _flat(json.loads(json.dumps(identity, default=str)))
    changed = [
        f"{key}: {old.get(key, 'absent')!r} there, {new.get(key, 'absent')!r} here"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, "absent") != new.get(key, "absent")
    ]
    raise ConfigError(
        f"{folder} belongs to another run (digest {numbers['digest']}, this one is {wanted}; "
        f"{'; '.join(changed[:6])}). Give the same options to resume, "
        f"another checkpoint_dir, or delete {folder.parent} to start over"
    )


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat.update(_flat(item, f"{prefix}{key}.") if isinstance(item, Mapping) else {f"{prefix}{key}": item})
    return flat


def _folders(directory: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    if not directory.is_dir():
        return []
    return sorted((p for p in directory.glob("epoch-*") if p.is_dir()), key=lambda p: int(p.name.split("-")[1]))


def _delete(folder: Path) -> None:
    """Rename first: a kill during the deletion must not leave a half under a checkpoint's name."""
    doomed = folder.with_name(f".old-{folder.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.replace(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _flush(path: Path) -> None:
    """Bring a file or folder to the disk, so that a power cut does not undo the order of the steps."""
    if path.is_dir() and os.name == "nt":  # Windows cannot open folders
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
