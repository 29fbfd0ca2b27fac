"""Splits: disjoint, stratified, deterministic batches and augmentation."""

import copy

import numpy as np
import pytest
import torch

from metaprune.core.errors import DataError
from metaprune.core.rng import Rng
from metaprune.data import TensorSplit
from metaprune.data.arrays import Arrays, Options, convert, to_data
from metaprune.data.splits import hold_out, stratified_limit


def numbered(count=200, classes=4, channels=1, size=8):
    """Images whose pixels hold their own number (below 65,536) in the first two places."""
    images = np.zeros((count, channels, size, size), dtype=np.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = np.arange(count) // 256, np.arange(count) % 256
    return images, np.sort(np.arange(count) % classes).astype(np.int64)


def ids(split):
    return set((split.images[:, 0, 0, 0].int() * 256 + split.images[:, 0, 0, 1].int()).tolist())


def split(count=50, flip=True, channels=1):
    torch.manual_seed(0)
    images = torch.randint(0, 256, (count, channels, 8, 6), dtype=torch.uint8)
    return TensorSplit(images, torch.arange(count) % 5, [0.5] * channels, [0.25] * channels, pad=2, flip=flip)


def collect(source, **options):
    inputs, labels = zip(*source.batches(16, **options), strict=True)
    return torch.cat(inputs), torch.cat(labels)


def test_held_out_parts_are_disjoint_stratified_and_complete():
    images, labels = numbered()
    data = to_data("x", Arrays({"train": (images, labels)}), Options())
    parts = [ids(data.train), ids(data.val), ids(data.test)]
    assert set.union(*parts) == set(range(200))
    assert sum(map(len, parts)) == 200
    assert torch.bincount(data.test.labels).tolist() == [8, 8, 8, 8]  # 15% of 50, rounded
    assert torch.bincount(data.val.labels).tolist() == [5, 5, 5, 5]


def test_given_test_part_is_kept_whole_and_out_of_training():
    images, labels = numbered(100)
    test = np.full((10, 1, 8, 8), 255, dtype=np.uint8), np.arange(10) % 4
    data = to_data("x", Arrays({"train": (images, labels), "test": test}), Options())
    assert len(data.test) == 10 and bool((data.test.images == 255).all())
    assert len(data.train) + len(data.val) == 100
    assert not ids(data.train) & ids(data.val)


def test_splits_do_not_depend_on_the_seed_but_limit_does():
    arrays = Arrays({"train": numbered()})
    first, second = (to_data("x", arrays, Options(seed=s, limit=40)) for s in (0, 1))
    assert ids(first.test) == ids(second.test) and ids(first.val) == ids(second.val)
    assert ids(first.train) != ids(second.train)
    assert ids(first.train) == ids(to_data("x", arrays, Options(seed=0, limit=40)).train)
    assert torch.bincount(first.train.labels).tolist() == [10, 10, 10, 10]
    assert first.digest != second.digest


def test_groups_stay_together():
    images, labels = numbered(240)
    groups = np.array([f"g{label}-{i % 12}" for i, label in enumerate(labels)])
    data = to_data("x", Arrays({"train": (images, labels)}, groups=groups), Options())
    sides = [{groups[i] for i in ids(part)} for part in (data.train, data.val, data.test)]
    assert not sides[0] & sides[1] and not sides[0] & sides[2] and not sides[1] & sides[2]


def test_hold_out_of_nothing_is_an_error():
    with pytest.raises(DataError, match="no class has two"):
        hold_out(np.arange(5), 0.1, Rng(0))


def test_stratified_limit():
    labels = np.repeat([0, 1, 2], [10, 60, 30])
    kept = stratified_limit(labels, 20, Rng(0))
    assert len(set(kept.tolist())) == 20
    assert np.bincount(labels[kept]).tolist() == [2, 12, 6]
    assert sorted(stratified_limit(labels, 500, Rng(0)).tolist()) == list(range(100))
    with pytest.raises(DataError, match="limit=0"):
        stratified_limit(labels, 0, Rng(0))


def test_batches_in_order_are_normalised():
    source = split(channels=3)
    inputs, labels = collect(source)
    assert inputs.dtype == torch.float32 and labels.dtype == torch.int64
    assert torch.equal(labels, source.labels)
    expected = (source.images.float() / 255 - 0.5) / 0.25
    assert torch.allclose(inputs, expected, atol=1e-6)


def test_shuffling_is_by_rng_and_a_permutation():
    source = split()
    first, again, other = (collect(source, rng=Rng(0, (p,)))[1] for p in ("a", "a", "b"))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(first.sort().values, source.labels.sort().values)


@pytest.mark.parametrize("flip", [True, False])
def test_augmentation_is_crops_and_mirrors_of_the_padded_image(flip):
    source = split(20, flip=flip)
    source.mean, source.std = (0.0,), (1 / 255,)  # batches then hold the pixels
    inputs, _ = collect(source, rng=Rng(0), augment=True)
    assert torch.equal(inputs, collect(source, rng=Rng(0), augment=True)[0])
    order = torch.randperm(20, generator=Rng(0).child("order").torch())
    mirrored = 0
    for image, origin in zip(inputs.round(), source.images[order].float(), strict=True):
        padded = torch.nn.functional.pad(origin, (2, 2, 2, 2))
        crops = [padded[:, r : r + 8, c : c + 6] for r in range(5) for c in range(5)]
        straight = any(torch.equal(image, crop) for crop in crops)
        mirror = any(torch.equal(image, crop.flip(2)) for crop in crops)
        assert straight or mirror
        mirrored += mirror and not straight
    assert (mirrored > 0) is flip


def test_augmentation_needs_rng_and_batches_need_samples():
    with pytest.raises(DataError, match="needs `rng`"):
        next(split().batches(4, augment=True))
    with pytest.raises(DataError, match="drop_last"):
        next(split(3).batches(4, drop_last=True))
    with pytest.raises(DataError, match="batch_size"):
        next(split().batches(0))
    assert [len(y) for _, y in split(10).batches(4, drop_last=True)] == [4, 4]


def test_global_random_state_is_untouched():
    before = torch.random.get_rng_state()
    source = split()
    state = torch.random.get_rng_state()
    collect(source, rng=Rng(1), augment=True)
    assert torch.equal(state, torch.random.get_rng_state())
    torch.random.set_rng_state(before)


def test_subset_take_copy_and_digest():
    source = split()
    assert torch.equal(source.subset([4, 2]).labels, source.labels[[4, 2]])
    assert len(source.take(7)) == 7 and len(source.take(700)) == 50
    assert copy.deepcopy(source).digest() == source.digest()
    changed = source.subset(range(50))
    changed.images[0, 0, 0, 0] ^= 1
    assert changed.digest() != source.digest()


@pytest.mark.parametrize(
    ("images", "labels", "mean"),
    [
        (torch.zeros(2, 1, 4, 4), torch.zeros(2), [0.5]),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), torch.zeros(2), [0.5]),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(3), [0.5]),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2), [0.5]),
    ],
)
def test_wrong_tensors(images, labels, mean):
    with pytest.raises(DataError):
        TensorSplit(images, labels, mean, [0.2] * len(mean))


def test_convert():
    grey = torch.full((2, 1, 8, 8), 100, dtype=torch.uint8)
    assert convert(grey, 4, 3).shape == (2, 3, 4, 4)
    assert bool((convert(grey, 12, 3) == 100).all())
    colour = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    colour[:, 1] = 200
    assert convert(colour, None, 1).unique().tolist() == [117]  # 0.587 * 200
    with pytest.raises(DataError, match="channels=2"):
        convert(grey, None, 2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_same_batches_on_a_gpu():
    source = split()
    host = collect(source, rng=Rng(0), augment=True)
    device = collect(source, rng=Rng(0), augment=True, device="cuda")
    assert torch.allclose(host[0], device[0].cpu(), atol=1e-6) and torch.equal(host[1], device[1].cpu())
