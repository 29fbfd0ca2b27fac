"""Several classification data sets as one, as a reference of several domains: `join:SPEC+SPEC`."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from metaprune.core.errors import ConfigError, DataError
from metaprune.core.rng import Rng
from metaprune.data.arrays import Options
from metaprune.data.batching import index_batches, require_rng
from metaprune.data.scheme import DataScheme, load_spec
from metaprune.data.types import Data
from metaprune.objective import Classification


class JoinedSplit:
    """Splits one after the other; each is normalised and augmented as it is by itself.

    Args:
        parts: splits with `labels` and `subset`.
        classes: of each part; the labels of a part follow those of the parts before.
        order: int64, which samples of all, and in which order; by default all.
    """

    def __init__(self, parts: Sequence[Any], classes: Sequence[int], order: Tensor | None = None):
        self.parts, self.classes = tuple(parts), tuple(classes)
        self._first = [0, *itertools.accumulate(self.classes)]
        self._ends = [0, *itertools.accumulate(len(part) for part in self.parts)]
        self.order = torch.arange(self._ends[-1]) if order is None else order
        labels = [torch.as_tensor(p.labels) + first for p, first in zip(self.parts, self._first, strict=False)]
        self.labels = torch.cat(labels)[self.order]

    def __len__(self) -> int:
        return len(self.order)

    def batches(
        self,
        batch_size: int,
        *,
        device: str | torch.device = "cpu",
        rng: Rng | None = None,
        augment: bool = False,
        drop_last: bool = False,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Split.batches`."""
        require_rng(augment, rng)
        for number, chunk in enumerate(index_batches(len(self), batch_size, rng, drop_last)):
            draw = rng.child("joined", number) if augment and rng is not None else None
            yield self._batch(self.order[chunk], device, draw)

    def _batch(self, chosen: Tensor, device: Any, rng: Rng | None) -> tuple[Tensor, Tensor]:
        """The samples `chosen`, in that order; augmented where `rng` says how."""
        inputs, targets, places = [], [], []
        for p, (part, first) in enumerate(zip(self.parts, self._first, strict=False)):
            at = torch.nonzero((chosen >= self._ends[p]) & (chosen < self._ends[p + 1])).flatten()
            if len(at):
                split = part.subset(chosen[at] - self._ends[p])
                draw = None if rng is None else rng.child(p)
                x, y = next(iter(split.batches(len(at), device=device, rng=draw, augment=draw is not None)))
                inputs.append(x)
                targets.append(y + first)
                places.append(at.to(x.device))
        order = torch.cat(places).argsort()
        return torch.cat(inputs)[order], torch.cat(targets)[order]

    def subset(self, indices: Tensor | Sequence[int]) -> JoinedSplit:
        """Take the samples at `indices`, in that order."""
        return JoinedSplit(self.parts, self.classes, self.order[torch.as_tensor(indices, dtype=torch.long)])

    def take(self, count: int) -> JoinedSplit:
        """Take the first `count` samples, or all where there are fewer."""
        return self.subset(range(min(count, len(self))))


def join_data(parts: Sequence[Data], name: str) -> Data:
    """Make one data set of several; `domains` of the result are the parts.

    Raises:
        DataError: parts that are not classified by index, cannot be indexed, or are of different shapes.
    """
    for part in parts:
        if not isinstance(part.objective, Classification) or not hasattr(part.train, "subset"):
            raise DataError(f"{part.name} cannot be joined with others: that takes images of classes, not loaders")
    if len({part.input_shape for part in parts}) > 1:
        shapes = ", ".join(f"{part.name} {list(part.input_shape)}" for part in parts)
        raise DataError(f"{name} joins samples of different shapes ({shapes}): set data.image_size and data.channels")
    counts = [part.num_classes for part in parts]
    tests = [part.test for part in parts]
    return Data(
        name,
        JoinedSplit([part.train for part in parts], counts),
        JoinedSplit([part.val for part in parts], counts),
        None if None in tests else JoinedSplit(tests, counts),
        sum(counts),
        parts[0].input_shape,
        tuple(f"{part.name}/{label}" for part in parts for label in part.classes),
        hashlib.sha256(" ".join(part.digest for part in parts).encode()).hexdigest(),
        carved=tuple(dict.fromkeys(c for part in parts for c in part.carved)),
        domains=tuple(parts),
    )


def _load(name: str, spec: str, options: Options, skip_corrupt: bool) -> Data:
    specs = name.split("+")
    if len(specs) < 2:
        raise ConfigError(
            f"Data {spec!r} joins one data set: write join:SPEC+SPEC, as join:builtin:digits+builtin:emoji"
        )
    return join_data([load_spec(one, f"{one!r} in data {spec!r}", options, skip_corrupt) for one in specs], spec)


JOIN = DataScheme(load=_load, form="join:SPEC+SPEC")
