"""Augmentation by the field's names: what it does to images and labels, and that one seed gives one pass."""

import pytest
import torch

from metaprune.core.errors import ConfigError, DataError
from metaprune.core.rng import Rng
from metaprune.data.augment import AugmentedSplit, augmented
from metaprune.objective import Classification
from metaprune.testing.method_suite import small_data

pytest.importorskip("torchvision")


def one_pass(split, seed=0, augment=True):
    return list(split.batches(16, rng=Rng(seed), augment=augment))


@pytest.mark.parametrize("option", [{"rand_augment": 9}, {"random_erasing": 1.0}, {"mixup": 0.4}, {"cutmix": 1.0}])
def test_a_pass_is_changed_and_repeats_with_its_seed(option):
    split = small_data().train
    changed = AugmentedSplit(split, 10, **option)
    plain, first, again, other = one_pass(split), one_pass(changed), one_pass(changed), one_pass(changed, seed=1)
    assert all(torch.equal(a, b) and torch.equal(x, y) for (a, x), (b, y) in zip(first, again, strict=True))
    assert not torch.equal(first[0][0], other[0][0])
    assert not any(torch.equal(a, b) for (a, _), (b, _) in zip(plain, first, strict=True))
    assert torch.equal(one_pass(changed, augment=False)[0][0], one_pass(split, augment=False)[0][0])


def test_mixed_labels_are_probabilities_that_classification_takes():
    images, labels = one_pass(AugmentedSplit(small_data().train, 10, mixup=0.4, cutmix=1.0))[0]
    assert labels.shape == (16, 10)
    torch.testing.assert_close(labels.sum(dim=1), torch.ones(16))
    logits = torch.randn(len(images), 10)
    expected = -(labels * logits.log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(Classification().loss(logits, labels), expected)


def test_a_part_of_a_split_is_augmented_alike():
    split = AugmentedSplit(small_data().train, 10, mixup=0.4)
    assert len(split.subset(range(20))) == 20
    assert one_pass(split.subset(range(20)))[0][1].shape == (16, 10)


def test_wrong_options_and_data_without_images():
    split = small_data().train
    assert augmented(split, 10, {"rand_augment": None, "mixup": 0.0}) is split
    for option in ({"rand_augment": 31}, {"mixup": -1.0}, {"random_erasing": 2.0}):
        with pytest.raises(ConfigError, match=next(iter(option))):
            AugmentedSplit(split, 10, **option)
    with pytest.raises(DataError, match="images"):
        AugmentedSplit([(torch.zeros(1), 0)], 10, mixup=0.1)
