"""What the loops need to know of data and of model inputs and outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from metaprune.core.errors import DataError
from metaprune.core.rng import Rng


@runtime_checkable
class Split(Protocol):
    """A part of a data set; `metaprune.data` makes them, anything of this shape will do."""

    def __len__(self) -> int: ...

    def batches(
        self,
        batch_size: int,
        *,
        device: Any = "cpu",
        rng: Rng | None = None,
        augment: bool = False,
        drop_last: bool = False,
    ) -> Iterator[tuple[Any, Tensor]]: ...


class Data(Protocol):
    """Named splits; a split may be None."""

    @property
    def name(self) -> str: ...
    @property
    def train(self) -> Split | None: ...
    @property
    def val(self) -> Split | None: ...


def pass_shape(split: Split, batch_size: int) -> tuple[int, int]:
    """(samples in one training pass, samples per batch) of `split` when `batch_size` is asked for.

    A split over a user's DataLoader (`split.source`) keeps the loader's batches, whatever is asked for. Raises
    `DataError` when the loader has no fixed batch size.
    """
    loader = getattr(split, "source", None)
    if not isinstance(loader, DataLoader):
        return len(split), batch_size
    if loader.batch_size is None:
        raise DataError(
            "the training DataLoader has no batch_size (batches of its own sampler), so the steps of a pass are not "
            "known: give it a batch_size, or pass its dataset"
        )
    sampler: Any = loader.sampler
    samples = len(sampler)
    return samples - (samples % loader.batch_size if loader.drop_last else 0), loader.batch_size


def call_arguments(inputs: Any) -> tuple[tuple, dict[str, Any]]:
    """Inputs of a batch as (args, kwargs) of a model."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs), {}) if isinstance(inputs, (tuple, list)) else ((inputs,), {})


def call_model(model: nn.Module, inputs: Any) -> Any:
    """`model(inputs)`; a mapping is passed as keyword arguments, a tuple or list as positional ones."""
    args, kwargs = call_arguments(inputs)
    return model(*args, **kwargs)


def channels_last(inputs: Any) -> Any:
    """A batch with its images [B, C, H, W] laid out channels-last; convolutions keep the layout from there on.

    Faster on CPUs, most so for depthwise convolutions.
    """
    if isinstance(inputs, Tensor):
        images = inputs.dim() == 4 and inputs.is_floating_point()
        return inputs.to(memory_format=torch.channels_last) if images else inputs
    if isinstance(inputs, Mapping):
        return {key: channels_last(item) for key, item in inputs.items()}
    return tuple(channels_last(item) for item in inputs) if isinstance(inputs, (tuple, list)) else inputs


def logits_of(output: Any) -> Tensor:
    """The logits [B, C] in a model's output: a tensor, `.logits` / `["logits"]` (transformers), or a tuple's first.

    Raises `DataError` for anything else.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping) and isinstance(output.get("logits"), Tensor):
        return output["logits"]
    attribute = getattr(output, "logits", None)
    if isinstance(attribute, Tensor):
        return attribute
    if isinstance(output, (tuple, list)) and output:
        return logits_of(output[0])
    raise DataError(
        f"no logits in a model output of type {type(output).__name__}: the model has to return a tensor, a tuple that "
        "starts with it, or a mapping with 'logits'; wrap it in a module that does"
    )


def cross_entropy(logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy [] of logits [B, C] and class indices [B]. Raises `DataError` for labels of another kind."""
    if labels.is_floating_point() or labels.ndim != 1 or logits.ndim != 2:
        raise DataError(
            f"labels {labels.dtype} {list(labels.shape)} for outputs {list(logits.shape)}: training and scores from "
            "data are for classification, integer labels [B] and outputs [B, classes]; for another task, prune with a "
            "method that needs no data and train result.model with your own loop"
        )
    return functional.cross_entropy(logits, labels, label_smoothing=label_smoothing)


def share_of(value: Any, start: int, stop: int, stride: int) -> Any:
    """`value[start:stop:stride]` on every tensor of a batch (tensor, tuple, list or mapping of them)."""
    if isinstance(value, Tensor):
        return value[start:stop:stride]
    if isinstance(value, Mapping):
        return {key: share_of(item, start, stop, stride) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return tuple(share_of(item, start, stop, stride) for item in value)
    return value
