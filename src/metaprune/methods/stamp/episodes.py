"""Samples of data sets: balanced over classes, from all classes of a target or some of a reference."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metaprune.core.errors import DataError
from metaprune.core.rng import Rng
from metaprune.data import Data
from metaprune.methods.gating.training import Sample
from metaprune.methods.stamp.config import LOOKS
from metaprune.objective import Classification
from metaprune.objective.batch import call_arguments, channels_last


def seen_as(sample: Sample, look: str) -> Sample:
    """Show the sample's images [B, C, H, W] in another look; inputs of other forms are left as they are."""
    images = sample.args[0] if sample.args else None
    if look == LOOKS[0] or not (isinstance(images, Tensor) and images.dim() == 4 and images.is_floating_point()):
        return sample
    if "grey" in look:
        images = channels_last(images.mean(dim=1, keepdim=True).expand_as(images).contiguous())
    if "inverted" in look:
        images = -images  # of normalised values
    return dataclasses.replace(sample, args=(images, *sample.args[1:]))


class Pool:
    """The training split of one data set by class.

    Raises:
        DataError: a split that cannot be indexed, no labels, fewer than two classes.
    """

    def __init__(self, data: Data, device: Any):
        if not isinstance(data.objective, Classification):
            kind = "no objective" if data.objective is None else f"objective {data.objective.name!r}"
            raise DataError(
                f"{data.name} has {kind}: stamp's episodes are about classes, so it prunes classifiers only; for "
                "other objectives use a criterion such as taylor, or another learned method"
            )
        split: Any = data.train
        if not (hasattr(split, "subset") and hasattr(split, "labels")):
            raise DataError(
                f"{data.name}: stamp draws samples by class, which a DataLoader does not allow; give a data spec, an "
                "npz or an image folder"
            )
        self.data, self.name, self.split, self.device = data, data.name, split, device
        labels = np.asarray(split.labels)
        self.classes = np.unique(labels)
        if len(self.classes) < 2:
            raise DataError(f"{data.name} has {len(self.classes)} class in its training split: stamp needs at least 2")
        self._members = {int(c): np.flatnonzero(labels == c) for c in self.classes}

    def choose(self, ways: tuple[int, int], rng: Rng) -> np.ndarray:
        """Choose a random subset of the classes, between ways[0] and ways[1] of them (as many as there are)."""
        draw = rng.numpy()
        low, high = (min(w, len(self.classes)) for w in ways)
        return np.sort(draw.choice(self.classes, int(draw.integers(low, high + 1)), replace=False))

    def draw(
        self,
        classes: Sequence[int] | np.ndarray,
        count: int,
        rng: Rng,
        *,
        augment: bool = True,
        relabel: bool = True,
        look: str = LOOKS[0],
    ) -> Sample:
        """Draw `count` samples, equally many of every class up to one; with replacement where a class has fewer.

        relabel: number the classes 0, 1, ... in the order given; else labels are the data's own.
        """
        draw = rng.numpy()
        order = draw.permutation(len(classes))
        chosen = []
        for turn, position in enumerate(order):
            members = self._members[int(classes[position])]
            wanted = count // len(classes) + (turn < count % len(classes))
            chosen.append(draw.choice(members, wanted, replace=wanted > len(members)))
        part = self.split.subset(np.concatenate(chosen))
        inputs, labels = next(
            iter(part.batches(len(part), device=self.device, rng=rng.child("batch"), augment=augment))
        )
        if relabel:
            number = torch.zeros(int(max(self.classes)) + 1, dtype=torch.int64)
            number[torch.as_tensor(np.asarray(classes))] = torch.arange(len(classes))
            labels = number.to(labels.device)[labels]
        return seen_as(Sample(*call_arguments(channels_last(inputs)), labels), look)
