"""What users already have: DataLoaders and map-style Datasets as splits, and anything understood as `Data`."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from traceback import walk_tb
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from metaprune.core.errors import DataError, first_line
from metaprune.core.rng import Rng
from metaprune.data.arrays import numbered_classes
from metaprune.data.batching import index_batches
from metaprune.data.types import Data, Split
from metaprune.objective import Classification, Objective
from metaprune.objective.base import require_range
from metaprune.objective.batch import batch_size_of, inputs_and_target, moved

log = logging.getLogger("metaprune")

_SCANNED_LABELS = 10_000  # validation labels read to infer the number of classes
_MOST_CLASSES = 10**6  # each has a name
_ACCEPTED = (
    "a Data, a spec string, or (train, val) or (train, val, test) where each is a torch DataLoader, a map-style "
    "Dataset, or a Split"
)


class LoaderSplit:
    """A DataLoader or a map-style Dataset as a `Split`.

    Batches may be pairs, longer tuples, mappings or dataclasses; the objective says which part is the target (without
    one, `metaprune.objective.batch.inputs_and_target`).

    A Dataset is collated here, in the order of `rng` (or its own) and in `batch_size`; its random transforms draw
    from the global generators. A DataLoader keeps its own batches and its own order: `batch_size`, `rng` and
    `drop_last` do not apply. `augment` does not apply to either: their own transforms do that.

    Args:
        workers: processes that read a Dataset; 0 reads in this one.
        role: what errors call the split, as `train`.
        num_classes: with an objective of classes, labels have to lie below it; 0: they are only not negative.
    """

    def __init__(
        self,
        source: DataLoader[Any] | Dataset[Any],
        workers: int = 0,
        objective: Objective | None = None,
        role: str = "",
        num_classes: int = 0,
    ):
        if not isinstance(source, DataLoader) and not (hasattr(source, "__getitem__") and hasattr(source, "__len__")):
            raise DataError(f"{type(source).__name__} is neither a DataLoader nor a Dataset with a length.")
        self.source = source
        self.workers = workers
        self.role, self.num_classes, self.objective = role, num_classes, objective
        self._adapt = inputs_and_target if objective is None else objective.inputs_and_target
        self._counted: tuple[int, int] | None = None

    def read_by(self, objective: Objective) -> LoaderSplit:
        """Return the same source, read by the batch adapter of `objective`."""
        return LoaderSplit(self.source, self.workers, objective, self.role, self.num_classes)

    def __len__(self) -> int:
        """Number of samples; a stream without a length is walked through once to count them."""
        sized: Any = self.source.dataset if isinstance(self.source, DataLoader) else self.source
        try:
            return len(sized)
        except TypeError:  # an IterableDataset
            return self._count()[0]

    @property
    def num_batches(self) -> int | None:
        """Batches of one pass of a DataLoader; None for a Dataset, whose batches are made here."""
        if not isinstance(self.source, DataLoader):
            return None
        try:
            return len(self.source)
        except TypeError:
            return self._count()[1]

    def _count(self) -> tuple[int, int]:
        if self._counted is None:
            log.info("counting the batches of a loader without a length (train.steps_per_epoch leaves this out)")
            with torch.random.fork_rng(devices=[]):
                sizes = [batch_size_of(batch) for batch in cast("Any", self.source)]
            self._counted = sum(sizes), len(sizes)
        return self._counted

    def batches(
        self,
        batch_size: int,
        *,
        device: str | torch.device = "cpu",
        rng: Rng | None = None,
        augment: bool = False,
        drop_last: bool = False,
    ) -> Iterator[tuple[Any, Tensor]]:
        """See `Split.batches` and the class. Floating tensors become float32, integer labels int64."""
        loader: Any = self.source
        if not isinstance(loader, DataLoader):
            indices = index_batches(len(self), batch_size, rng, drop_last)
            loader = DataLoader(
                loader,
                batch_sampler=[chunk.tolist() for chunk in indices],
                num_workers=self.workers,
                generator=(rng or Rng(0)).child("workers").torch(),  # else it would draw from the global one
            )
        for batch in self._alive(loader):
            inputs, target = self._adapt(batch)
            if isinstance(target, (list, tuple)) and target and all(isinstance(t, (int, float)) for t in target):
                target = torch.as_tensor(target)
            if self.objective is not None:
                self.objective.require_labels(target, self.num_classes, self.role)
            yield moved(inputs, device), moved(target, device, is_target=True)

    def _alive(self, loader: Any) -> Iterator[Any]:
        with dead_loader_workers_told(self.role):
            yield from loader


@contextmanager
def dead_loader_workers_told(role: str = "") -> Iterator[None]:
    """Let a worker process of a DataLoader that is gone be one clear error.

    PyTorch raises wherever the main process is at that moment, so whole runs are in such a block, too.
    """
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        if not _of_a_dead_worker(error):
            raise
        line = first_line(error)
        if not isinstance(error, RuntimeError):  # the signal is still to come, and its handler raises wherever we are
            with suppress(RuntimeError):
                time.sleep(1)
        raise DataError(
            f"a worker process of the {role or 'data'} DataLoader ended ({line}): "
            "it was killed, most often for memory; take fewer workers, smaller batches, or num_workers=0, which "
            "shows what it stumbles on"
        ) from error


def _of_a_dead_worker(error: Exception) -> bool:
    """Whether PyTorch's watch said it, or what a worker had sent could not be fetched from it any more."""
    if isinstance(error, RuntimeError):
        return "DataLoader worker" in str(error)
    fetching = any(f.f_globals.get("__name__") == DataLoader.__module__ for f, _ in walk_tb(error.__traceback__))
    return fetching and not str(error).startswith("Caught ")  # else the dataset's own, handed over by a live worker


@contextmanager
def replayed(split: Split, rng: Rng) -> Iterator[None]:
    """Inside, a pass over `split` is the same one whenever it is made, also a user's DataLoader that shuffles.

    Torch's global generators, and those that the loader brings along, are seeded and then restored.
    """
    loader = getattr(split, "source", None)
    batches = getattr(loader, "batch_sampler", None)
    holders = (loader, getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None))
    generators = [g for h in holders if isinstance(g := getattr(h, "generator", None), torch.Generator)]
    states = [g.get_state() for g in generators]
    with rng.torch_global():
        try:
            for g in generators:
                g.manual_seed(rng.integer())
            yield
        finally:
            for g, state in zip(generators, states, strict=True):
                g.set_state(state)


def as_split(source: Any, role: str, objective: Objective | None = None) -> Split:
    """Make a `Split` from a Split, DataLoader or Dataset.

    Raises:
        DataError: anything else; says what is accepted.
    """
    if isinstance(source, Split):
        return source
    mapped = hasattr(source, "__getitem__") and hasattr(source, "__len__")
    if isinstance(source, DataLoader) or (mapped and not isinstance(source, (str, bytes, list, tuple, dict, Tensor))):
        return LoaderSplit(source, objective=objective, role=role)
    raise DataError(f"The {role} split is no data but a {type(source).__name__}: give {_ACCEPTED}.")


def splits_to_data(
    parts: Sequence[Any], name: str, num_classes: int | None, objective: Objective | None = None
) -> Data:
    """Make `Data` from two or three splits, loaders or datasets; see `as_data`."""
    splits = [as_split(part, role, objective) for part, role in zip(parts, ("train", "val", "test"), strict=False)]
    first = [_first_batch(split, role) for split, role in zip(splits, ("train", "val", "test"), strict=False)]
    train, val = splits[0], splits[1]
    inputs, target = first[1]
    shape = tuple(inputs.shape[1:]) if isinstance(inputs, Tensor) else ()
    classes = _class_names(parts[0])
    is_classes = isinstance(objective, Classification) or (objective is None and _are_class_indices(target))
    count = num_classes if num_classes is not None else 0
    if count > _MOST_CLASSES:
        raise DataError(
            f"num_classes={count:,} does not fit: give how many classes there are, {_MOST_CLASSES:,} at most"
        )
    if is_classes and num_classes is None:
        count = len(classes) or _count_classes(parts[0], val)
    if objective is None and is_classes and count > 0:
        objective = Classification()
    if isinstance(objective, Classification):
        for (_, labels), role in zip(first, ("train", "val", "test"), strict=False):
            objective.require_labels(labels, count, role)
        splits = [_of_classes(split, objective, count) for split in splits]
        train, val = splits[0], splits[1]
    facts = repr(
        ([(type(part).__name__, _length(split)) for part, split in zip(parts, splits, strict=True)], count, shape)
    )
    return Data(
        name=name,
        train=train,
        val=val,
        test=splits[2] if len(splits) == 3 else None,
        num_classes=count,
        input_shape=shape,
        classes=classes if len(classes) == count else _numbered(count, num_classes, splits),
        digest="loaders:" + hashlib.sha256(facts.encode()).hexdigest(),
        objective=objective,
    )


def _of_classes(split: Split, objective: Objective, count: int) -> Split:
    if not isinstance(split, LoaderSplit):
        return split
    return LoaderSplit(split.source, split.workers, objective, split.role, count)


def _numbered(count: int, asked: int | None, splits: Sequence[Split]) -> tuple[str, ...]:
    lengths = [_length(split) for split in splits]
    known = [n for n in lengths if isinstance(n, int)]
    return numbered_classes(count - 1, sum(known) if asked is None and known == lengths else count)


def _first_batch(split: Split, role: str) -> tuple[Any, Any]:
    with torch.random.fork_rng(devices=[]):  # a DataLoader draws from the global generator
        batch = next(iter(split.batches(1)), None)
    if batch is None:
        raise DataError(f"The {role} split is empty.")
    return batch


def _length(split: Split) -> int | str:
    """Samples, where they are known without a walk through the data."""
    source: Any = getattr(split, "source", split)
    try:
        return len(getattr(source, "dataset", source))
    except TypeError:
        return "stream"


def _are_class_indices(target: Any) -> bool:
    return isinstance(target, Tensor) and target.ndim == 1 and not target.is_floating_point()


def _dataset_of(source: Any) -> Any:
    return source.dataset if isinstance(source, DataLoader) else source


def _class_names(source: Any) -> tuple[str, ...]:
    names = getattr(_dataset_of(source), "classes", None)
    return tuple(str(n) for n in names) if isinstance(names, (list, tuple)) else ()


def _count_classes(source: Any, val: Split) -> int:
    """Largest label plus one, from the training labels where they are at hand, else from validation batches."""
    dataset = _dataset_of(source)
    labels, role = getattr(dataset, "targets", getattr(dataset, "labels", None)), "train"
    if isinstance(dataset, TensorDataset) and len(dataset.tensors) == 2:
        labels = dataset.tensors[1]
    if labels is not None and not _are_class_indices(torch.as_tensor(labels)):
        return 0
    if labels is None:
        seen: list[Tensor] = []
        with torch.random.fork_rng(devices=[]):
            for _, batch in val.batches(256):
                if not _are_class_indices(batch):
                    return 0
                seen.append(batch)
                if sum(len(b) for b in seen) >= _SCANNED_LABELS:
                    break
        labels = torch.cat(seen)
        role = "val"
    labels = torch.as_tensor(labels)
    require_range(labels, 0, None, role)
    return int(labels.max()) + 1 if len(labels) else 0
