"""Which samples go where: stratified, deterministic index arrays."""

from __future__ import annotations

import numpy as np

from metaprune.core.errors import DataError
from metaprune.core.rng import Rng
from metaprune.objective import Split

# Splits never depend on the user's seed: figures of two runs must be about the same test images.
SPLIT_RNG = Rng(0, ("data", "split"))
VAL_FRACTION = 0.10
TEST_FRACTION = 0.15


def hold_out(labels: np.ndarray, fraction: float, rng: Rng, groups: np.ndarray | None = None) -> np.ndarray:
    """Indices held out: `fraction` of each class, at least one of each class that has two; sorted.

    Args:
        labels: int [N].
        groups: [N]; samples of one group go to the same side, and the fraction is of each class's groups.

    Raises:
        DataError: nothing can be held out (no class has two samples or groups).
    """
    if groups is None:
        unit_labels, unit_of = labels, np.arange(len(labels))
    else:
        _, first, unit_of = np.unique(groups, return_index=True, return_inverse=True)
        unit_labels = labels[first]
    generator = rng.numpy()
    chosen: list[np.ndarray] = []
    for label in np.unique(unit_labels):
        units = np.flatnonzero(unit_labels == label)
        count = max(1, round(len(units) * fraction)) if len(units) > 1 else 0
        chosen.append(generator.permutation(units)[:count])
    held = np.concatenate(chosen) if chosen else np.empty(0, dtype=np.int64)
    if len(held) == 0:
        raise DataError(
            f"{len(labels)} samples cannot be split: no class has two for training and validation; give more images, "
            "or a validation part of their own."
        )
    return np.flatnonzero(np.isin(unit_of, held))


def stratified_limit(labels: np.ndarray, limit: int, rng: Rng) -> np.ndarray:
    """Draw `limit` indices with each class in its share (largest remainder), shuffled; all if `limit` is not smaller.

    Raises:
        DataError: `limit` below 1.
    """
    if limit < 1:
        raise DataError(f"limit={limit} keeps no training sample: give at least 1.")
    generator = rng.numpy()
    order = generator.permutation(len(labels))
    if limit >= len(labels):
        return order
    values, counts = np.unique(labels, return_counts=True)
    exact = counts * limit / len(labels)
    quota = np.floor(exact).astype(int)
    for index in np.argsort(-(exact - quota), kind="stable")[: limit - quota.sum()]:
        quota[index] += 1
    selected = [order[labels[order] == value][:count] for value, count in zip(values, quota, strict=True)]
    return generator.permutation(np.concatenate(selected))


def without(count: int, held: np.ndarray) -> np.ndarray:
    """List all indices below `count` that are not in `held`, sorted."""
    return np.setdiff1d(np.arange(count), held)


def at_most(split: Split, samples: int) -> Split:
    """Take the first samples of a split; one that cannot be cut, as over a user's loader, stays whole."""
    return split.take(samples) if hasattr(split, "take") else split
