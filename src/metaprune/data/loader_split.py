"""What users already have: DataLoaders and map-style Datasets as splits, and anything understood as `Data`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from metaprune.core.errors import DataError
from metaprune.core.rng import Rng
from metaprune.data.batching import index_batches
from metaprune.data.types import Data, Split

_SCANNED_LABELS = 10_000  # validation labels read to infer the number of classes
_ACCEPTED = (
    "a Data, a spec string, or (train, val) or (train, val, test) where each is a torch DataLoader, a map-style "
    "Dataset of (input, label) pairs, or a Split"
)


class LoaderSplit:
    """A DataLoader or a map-style Dataset of (input, label) pairs as a `Split`.

    A Dataset is collated here, in the order of `rng` (or its own) and in `batch_size`; its random transforms draw
    from the global generators. A DataLoader keeps its own batches and its own order: `batch_size`, `rng` and
    `drop_last` do not apply. `augment` does not apply to either: their own transforms do that.

    Args:
        workers: processes that read a Dataset; 0 reads in this one.
    """

    def __init__(self, source: DataLoader[Any] | Dataset[Any], workers: int = 0):
        if not isinstance(source, DataLoader) and not (hasattr(source, "__getitem__") and hasattr(source, "__len__")):
            raise DataError(f"{type(source).__name__} is neither a DataLoader nor a Dataset with a length.")
        self.source = source
        self.workers = workers

    def __len__(self) -> int:
        sized: Any = self.source.dataset if isinstance(self.source, DataLoader) else self.source
        try:
            return len(sized)
        except TypeError as error:
            raise DataError(f"{type(sized).__name__} has no length: give it `__len__` (number of samples).") from error

    def batches(
        self,
        batch_size: int,
        *,
        device: str | torch.device = "cpu",
        rng: Rng | None = None,
        augment: bool = False,
        drop_last: bool = False,
    ) -> Iterator[tuple[Any, Tensor]]:
        """See `Split.batches` and the class. Floating inputs become float32, integer labels int64."""
        loader: Any = self.source
        if not isinstance(loader, DataLoader):
            indices = index_batches(len(self), batch_size, rng, drop_last)
            loader = DataLoader(
                loader,
                batch_sampler=[chunk.tolist() for chunk in indices],
                num_workers=self.workers,
                generator=(rng or Rng(0)).child("workers").torch(),  # else it would draw from the global one
            )
        for pair in loader:
            if not isinstance(pair, Sequence) or len(pair) != 2:
                raise DataError(f"A batch must be (inputs, labels), not {type(pair).__name__}: change the dataset.")
            inputs, labels = pair
            labels = torch.as_tensor(labels)
            yield _to(inputs, device), (labels if labels.is_floating_point() else labels.long()).to(device)


@contextmanager
def replayed(split: Split, rng: Rng) -> Iterator[None]:
    """Inside, a pass over `split` is the same one whenever it is made, also a user's DataLoader that shuffles.

    Torch's global generators, and those that the loader brings along, are seeded and then restored.
    """
    loader = getattr(split, "source", None)
    batches = getattr(loader, "batch_sampler", None)
    holders = (loader, getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None))
    own = [g for h in holders if isinstance(g := getattr(h, "generator", None), torch.Generator)]
    states = [g.get_state() for g in own]
    with rng.torch_global():
        try:
            for g in own:
                g.manual_seed(rng.integer())
            yield
        finally:
            for g, state in zip(own, states, strict=True):
                g.set_state(state)


def _to(value: Any, device: str | torch.device) -> Any:
    if isinstance(value, Tensor):
        return (value.float() if value.is_floating_point() else value).to(device)
    if isinstance(value, Mapping):
        return {key: _to(item, device) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_to(item, device) for item in value)
    return value


def as_split(source: Any, role: str) -> Split:
    """A `Split` from a Split, DataLoader or Dataset.

    Raises:
        DataError: anything else; says what is accepted.
    """
    if isinstance(source, Split):
        return source
    mapped = hasattr(source, "__getitem__") and hasattr(source, "__len__")
    if isinstance(source, DataLoader) or (mapped and not isinstance(source, (str, bytes, list, tuple, dict, Tensor))):
        return LoaderSplit(source)
    raise DataError(f"The {role} split is a {type(source).__name__}; accepted is {_ACCEPTED}.")


def splits_to_data(parts: Sequence[Any], name: str, num_classes: int | None) -> Data:
    """`Data` from two or three splits, loaders or datasets; see `as_data`."""
    splits = [as_split(part, role) for part, role in zip(parts, ("train", "val", "test"), strict=False)]
    for split, role in zip(splits, ("train", "val", "test"), strict=False):
        if len(split) == 0:
            raise DataError(f"The {role} split is empty.")
    train, val = splits[0], splits[1]
    with torch.random.fork_rng(devices=[]):  # a DataLoader draws from the global generator
        inputs, _ = next(iter(val.batches(1)))
    shape = tuple(inputs.shape[1:]) if isinstance(inputs, Tensor) else ()
    classes = _class_names(parts[0])
    count = num_classes if num_classes is not None else len(classes) or _count_classes(parts[0], val)
    facts = repr(([(type(part).__name__, len(split)) for part, split in zip(parts, splits, strict=True)], count, shape))
    return Data(
        name=name,
        train=train,
        val=val,
        test=splits[2] if len(splits) == 3 else None,
        num_classes=count,
        input_shape=shape,
        classes=classes if len(classes) == count else tuple(str(i) for i in range(count)),
        digest="loaders:" + hashlib.sha256(facts.encode()).hexdigest(),
    )


def _dataset_of(source: Any) -> Any:
    return source.dataset if isinstance(source, DataLoader) else source


def _class_names(source: Any) -> tuple[str, ...]:
    names = getattr(_dataset_of(source), "classes", None)
    return tuple(str(n) for n in names) if isinstance(names, (list, tuple)) else ()


def _count_classes(source: Any, val: Split) -> int:
    """Largest label plus one, from the training labels where they are at hand, else from validation batches."""
    dataset = _dataset_of(source)
    labels = getattr(dataset, "targets", getattr(dataset, "labels", None))
    if isinstance(dataset, TensorDataset) and len(dataset.tensors) == 2:
        labels = dataset.tensors[1]
    if labels is None:
        seen: list[Tensor] = []
        with torch.random.fork_rng(devices=[]):
            for _, batch in val.batches(256):
                seen.append(batch)
                if sum(len(b) for b in seen) >= _SCANNED_LABELS:
                    break
        labels = torch.cat(seen)
    tensor = torch.as_tensor(labels)
    return 0 if tensor.is_floating_point() or tensor.ndim != 1 else int(tensor.max()) + 1
