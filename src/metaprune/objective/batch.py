"""Batches of any form: which part goes into the model and which is the target; sizes, shares, devices, layouts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from metaprune.core.errors import DataError

TARGET_KEYS = ("labels", "label", "target", "targets", "y")


def as_mapping(batch: Any) -> dict[str, Any] | None:
    """Read a mapping (a dict, transformers' BatchEncoding) or a dataclass instance as a dict; anything else is None."""
    if isinstance(batch, Mapping):
        return dict(batch)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        return {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    return None


def inputs_and_target(batch: Any) -> tuple[Any, Any]:
    """Split a batch into the inputs of the model and the target.

    A pair is (inputs, target). Of a longer tuple or list the last item is the target and the others are inputs. A
    mapping or dataclass gives its `labels` (or label, target, targets, y) as the target and the rest as keyword
    inputs. A tensor, a single item, and a mapping without labels have the target None.

    Raises:
        DataError: any other type.
    """
    named = as_mapping(batch)
    if named is not None:
        key = next((k for k in TARGET_KEYS if k in named), None)
        return {k: v for k, v in named.items() if k != key}, None if key is None else named[key]
    if isinstance(batch, Tensor):
        return batch, None
    if isinstance(batch, (tuple, list)) and batch:
        *inputs, target = batch
        if not inputs:
            return target, None
        return (inputs[0] if len(inputs) == 1 else tuple(inputs)), target
    raise DataError(
        f"a batch of type {type(batch).__name__} is not understood: give (inputs, target), a longer tuple that "
        "ends with the target, or a mapping or dataclass with labels"
    )


def call_arguments(inputs: Any) -> tuple[tuple, dict[str, Any]]:
    """RunInputs of a batch as (args, kwargs) of a model."""
    named = as_mapping(inputs)
    if named is not None:
        return (), named
    return (tuple(inputs), {}) if isinstance(inputs, (tuple, list)) else ((inputs,), {})


def call_model(model: nn.Module, inputs: Any) -> Any:
    """Return `model(inputs)`; a mapping is passed as keyword arguments, a tuple or list as positional ones."""
    args, kwargs = call_arguments(inputs)
    return model(*args, **kwargs)


def map_tensors(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """Apply `change` to every tensor in tuples, lists, mappings and dataclasses; the rest stays as it is."""
    if isinstance(value, Tensor):
        return change(value)
    named = as_mapping(value)
    if named is not None:
        return {key: map_tensors(item, change) for key, item in named.items()}
    if isinstance(value, (tuple, list)):
        return tuple(map_tensors(item, change) for item in value)
    return value


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield every tensor in tuples, lists, mappings and dataclasses, in order."""
    if isinstance(value, Tensor):
        yield value
        return
    named = as_mapping(value)
    for item in value if isinstance(value, (tuple, list)) else () if named is None else named.values():
        yield from tensors_in(item)


def batch_size_of(value: Any) -> int:
    """Samples in a batch: the first dimension of its first tensor with one, or the length of a list.

    Raises:
        DataError: nothing in it has a length.
    """
    for tensor in tensors_in(value):
        if tensor.dim() > 0:
            return tensor.shape[0]
    if isinstance(value, (tuple, list)):
        return len(value)
    raise DataError(f"a batch of type {type(value).__name__} holds no tensor, so its number of samples is not known")


def share_of(value: Any, start: int | None, stop: int | None, stride: int | None = None) -> Any:
    """Slice `value[start:stop:stride]` of every tensor of a batch; tensors without dimensions stay as they are."""
    return map_tensors(value, lambda t: t[start:stop:stride] if t.dim() else t)


def moved(value: Any, device: torch.device | str, *, is_target: bool = False) -> Any:
    """Move a batch to `device`, floating tensors as float32; integer tensors of a target as int64."""

    def change(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            return tensor.float().to(device)
        whole = is_target and tensor.dtype != torch.bool
        return (tensor.long() if whole else tensor).to(device)

    return map_tensors(value, change)


def channels_last_is_safe(device: torch.device | str = "cpu") -> bool:
    """Tell whether convolutions on `device` may be trained in channels-last layout.

    On CPUs without AVX-512, oneDNN's kernel for the weight gradient of 1x1 convolutions with a stride writes past its
    buffer in this layout (torch 2.13: the process aborts, or continues on a damaged heap).
    """
    return torch.device(device).type != "cpu" or torch.backends.cpu.get_cpu_capability() != "AVX2"


def channels_last(inputs: Any) -> Any:
    """Lay out a batch's images [B, C, H, W] channels-last, where `channels_last_is_safe`.

    Convolutions keep the layout from there on. Faster on CPUs, most so for depthwise convolutions.
    """

    def change(tensor: Tensor) -> Tensor:
        images = tensor.dim() == 4 and tensor.is_floating_point() and channels_last_is_safe(tensor.device)
        return tensor.to(memory_format=torch.channels_last) if images else tensor

    return map_tensors(inputs, change)
