"""Loading weights from a file: all or nothing, never a pickle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from metaprune.core.errors import WeightsError, first_line
from metaprune.core.tensors import named_tensors

_CONTAINERS = ("state_dict", "model", "model_state_dict")
_LISTED = 8  # keys of each kind that an error lists


def read_state_dict(file: str | Path) -> dict[str, Tensor]:
    """Read tensors by name from `.safetensors`, `.pt`, `.pth`, `.bin` or `.ckpt`, on the CPU.

    Opens `{"state_dict": ...}` and `{"model": ...}`, and strips a `module.` that all names share (DataParallel).

    Raises:
        WeightsError: the file is missing, of another type, damaged, or holds something else than tensors.
    """
    path = Path(file)
    if not path.is_file():
        raise WeightsError(f"Weight file {path} does not exist: check the path.")
    if path.suffix == ".safetensors":
        try:
            content: Any = load_file(path)
        except Exception as error:  # safetensors, torch and the system have their own classes
            raise WeightsError(
                f"{path} is not a readable safetensors file ({first_line(error)}): fetch or save it again."
            ) from error
    elif path.suffix in (".pt", ".pth", ".bin", ".ckpt"):
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # of struct, zipfile, pickle: whatever the bytes lead into
            raise WeightsError(
                f"{path} cannot be read with weights_only=True ({first_line(error)}). Only plain tensors are "
                "read, never pickled code: save `model.state_dict()`, best as .safetensors."
            ) from error
    else:
        raise WeightsError(f"{path} has suffix {path.suffix!r}: weights are read from .safetensors, .pt or .pth.")
    return _unwrap(content, path)


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    for key in _CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"{path} holds no state dict (a mapping of names to tensors): save `model.state_dict()`.")
    odd = [str(k) for k, v in content.items() if not isinstance(k, str) or not isinstance(v, Tensor)]
    if odd:
        raise WeightsError(
            f"{path} holds things that are not tensors by name ({_first(odd)}): save `model.state_dict()` alone."
        )
    if all(k.startswith("module.") for k in content):
        content = {k.removeprefix("module."): v for k, v in content.items()}
    return dict(content)


def load_weights(model: nn.Module, file: str | Path, *, strict: bool = True, new_head: bool = False) -> nn.Module:
    """Copy the weights of `file` into `model` and return it; the model is untouched when anything does not fit.

    Args:
        strict: False accepts missing and unexpected names (never another shape), as long as one name fits.
        new_head: leave the weight and bias of a classifier for another number of classes as they are in `model`.

    Raises:
        WeightsError: unreadable file, or names or shapes that do not fit; lists them.
    """
    state = read_state_dict(file)
    wanted = model.state_dict()
    if new_head:
        state = {k: wanted[k] if k in _head(state, wanted) else v for k, v in state.items()}
    # BatchNorm's batch counter is left out by some savers and has no effect on inference; tied tensors are saved once
    aliases = named_tensors(model)[1]
    there = {aliases.get(k, k) for k in state}
    missing = [k for k in wanted if aliases.get(k, k) not in there and not k.endswith("num_batches_tracked")]
    buffers = {name for name, _ in model.named_buffers()}  # also those that a state dict leaves out
    unexpected = [k for k in state if k not in wanted and k not in buffers]
    shapes = [
        f"{k} {tuple(state[k].shape)} in the file, {tuple(wanted[k].shape)} in the model"
        for k in wanted
        if k in state and state[k].shape != wanted[k].shape
    ]
    fitting = {k: v for k, v in state.items() if k in wanted}
    if shapes or not fitting or (strict and (missing or unexpected)):
        raise WeightsError(_mismatch(Path(file), missing, unexpected, shapes))
    model.load_state_dict(fitting, strict=False)
    return model


def _head(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> set[str]:
    """Names that differ in the first dimension alone, if they are those of one layer at most."""
    names = {k for k in state if k in wanted and state[k].shape != wanted[k].shape}
    same_rest = all(state[k].shape[1:] == wanted[k].shape[1:] for k in names)
    return names if same_rest and len({k.rpartition(".")[0] for k in names}) <= 1 else set()


def _first(names: list[str]) -> str:
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")


def _mismatch(path: Path, missing: list[str], unexpected: list[str], shapes: list[str]) -> str:
    lines = [f"{path} does not fit the model; nothing was loaded."]
    for title, names in (("missing", missing), ("unexpected", unexpected), ("other shape", shapes)):
        if names:
            lines.append(f"  {title} ({len(names)}): {_first(names)}")
    lines.append(
        "  Next step: create the model with the options the weights were saved with (num_classes, widths, ...)."
    )
    return "\n".join(lines)
