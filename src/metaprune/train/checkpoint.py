"""Checkpoints of a training run: whole or not there, tensors in safetensors, numbers in JSON, no pickle.

A checkpoint is a folder `epoch-0003/` with `checkpoint.safetensors` and `checkpoint.json`. It is written under a
temporary name and renamed, and older ones go only afterwards, so a kill at any moment leaves the newest one whole.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from metaprune.core.errors import ConfigError, DamagedFileError, WeightsError
from metaprune.core.files import digest_of, flush, tensors_digest, write_sealed
from metaprune.core.read import damaged, read_json, read_tensors, require_seal, understood
from metaprune.train.history import History

_FORMAT = 1
_TENSORS = "checkpoint.safetensors"
_NUMBERS = "checkpoint.json"
_FOLDER = re.compile(r"epoch-\d{4,}")
_TABLES = ("identity", "history", "optimizer")


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
    folder: Path | None = None

    def understood(self) -> AbstractContextManager[None]:
        """A block that reads it: what does not fit there is one DamagedFileError."""
        here = self.folder
        remedy = f"delete {here.parent if here else 'it'} to start the training over"
        return understood(f"checkpoint {here or ''}".strip(), remedy)

    @property
    def history(self) -> History:
        return History.from_dict(self.numbers["history"])

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Select the tensors whose name begins with `prefix` and a dot, without it."""
        return {n.removeprefix(f"{prefix}."): t for n, t in self.tensors.items() if n.startswith(f"{prefix}.")}


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
    document["tensors_digest"] = tensors_digest(copies)
    write_sealed(temporary / _NUMBERS, json.loads(json.dumps(document, default=str)))
    for path in (temporary / _TENSORS, temporary / _NUMBERS, temporary):
        flush(path)
    if final.exists():  # an unreadable leftover of the same epoch
        _delete(final)
    temporary.replace(final)
    flush(directory)
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
    remedy = f"delete {directory} to start the training over"
    path = folder / _NUMBERS
    try:
        numbers = read_json(path, remedy=remedy)
        if numbers.get("format") != _FORMAT:
            damaged(path, f"format {numbers.get('format')!r}, this version reads {_FORMAT}", remedy)
        missing = [k for k in _TABLES if not isinstance(numbers.get(k), dict)]
        if missing:
            damaged(path, f"it has no table {missing[0]!r}", remedy)
        _require_same_run(folder, numbers, identity)
        # checkpoints of early versions hold no digests, and are read without them
        numbers = require_seal(path, numbers, remedy)
        tensors = read_tensors(folder / _TENSORS, remedy=remedy, digest=numbers.get("tensors_digest"))
    except DamagedFileError as error:
        raise DamagedFileError(f"checkpoint {folder} cannot be read ({error})") from error
    return Checkpoint(tensors, numbers, folder)


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
    with checkpoint.understood():
        if optimizer is not None:
            _restore_optimizer(checkpoint, optimizer)
        if scaler is not None and checkpoint.numbers["scaler"] is not None:
            scaler.load_state_dict(checkpoint.numbers["scaler"])


def _restore_optimizer(checkpoint: Checkpoint, optimizer: Any) -> None:
    state: dict[int, dict[str, Any]] = {}
    for index, values in checkpoint.numbers["optimizer"].items():
        state.setdefault(int(index), {}).update(values)
    for name, tensor in checkpoint.tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def shapes_digest(model: nn.Module) -> str:
    """Digest of the names, shapes and dtypes of all parameters and buffers."""
    return digest_of({name: [list(t.shape), str(t.dtype)] for name, t in _model_tensors(model).items()})


def _model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers (also those that are not in the state dict) by name, a shared one once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _require_same_run(folder: Path, numbers: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    wanted = digest_of(identity)
    if numbers.get("digest") == wanted:
        return
    old, new = _flat(numbers["identity"]), _flat(json.loads(json.dumps(identity, default=str)))
    changed = [
        f"{key}: {old.get(key, 'absent')!r} there, {new.get(key, 'absent')!r} here"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, "absent") != new.get(key, "absent")
    ]
    raise ConfigError(
        f"{folder} belongs to another run (digest {numbers.get('digest')}, this one is {wanted}; "
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
    return sorted(
        (p for p in directory.iterdir() if p.is_dir() and _FOLDER.fullmatch(p.name)), key=lambda p: int(p.name[6:])
    )


def _delete(folder: Path) -> None:
    """Rename first: a kill during the deletion must not leave a half under a checkpoint's name."""
    doomed = folder.with_name(f".old-{folder.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.replace(doomed)
    shutil.rmtree(doomed, ignore_errors=True)
