"""Several data sets as one: labels follow each other, samples stay what they are by themselves."""

import dataclasses

import pytest
import torch
from torch.utils.data import DataLoader

from metaprune.core.errors import ConfigError, DataError
from metaprune.core.rng import Rng
from metaprune.data import as_data, load_data
from metaprune.data.joined import join_data
from metaprune.testing.method_suite import small_data


@pytest.fixture
def parts():
    return [dataclasses.replace(small_data(seed, n), name=f"part{seed}") for seed, n in ((0, 40), (1, 25))]


def test_samples_and_labels_are_those_of_the_parts_in_order(parts):
    joined = join_data(parts, "both")
    x, y = (torch.cat(c) for c in zip(*joined.train.batches(16), strict=True))
    alone = [next(iter(p.train.batches(100))) for p in parts]
    assert torch.equal(x, torch.cat([a[0] for a in alone]))
    assert torch.equal(y, torch.cat([alone[0][1], alone[1][1] + 10])) and torch.equal(y, joined.train.labels)
    assert joined.num_classes == 20 and len(joined.test) == 65 and joined.domains == tuple(parts)
    assert joined.classes[0] == "part0/0" and joined.classes[10] == "part1/0"


def test_any_subset_in_any_order_shuffled_and_augmented(parts):
    split = join_data(parts, "both").train
    chosen = split.subset([60, 3, 41, 3]).batches(4)
    x, y = next(iter(chosen))
    whole, labels = (torch.cat(c) for c in zip(*split.batches(7), strict=True))
    assert torch.equal(x, whole[[60, 3, 41, 3]]) and torch.equal(y, labels[[60, 3, 41, 3]])
    for augment in (False, True):
        drawn = [torch.cat([y for _, y in split.batches(9, rng=Rng(s), augment=augment)]) for s in (0, 0, 1)]
        assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
        assert torch.equal(drawn[0].sort().values, labels.sort().values)
    assert len(split.take(5)) == 5 and len(split.take(500)) == 65


def test_what_cannot_be_joined_says_why(parts):
    with pytest.raises(ConfigError, match="joins one data set"):
        load_data("join:builtin:digits")
    with pytest.raises(ConfigError, match=r"'digits' in data .* is not understood"):
        load_data("join:builtin:digits+digits")
    with pytest.raises(DataError, match=r"different shapes.*data\.image_size"):
        join_data([parts[0], dataclasses.replace(parts[1], input_shape=(3, 28, 28))], "both")
    loader = as_data((DataLoader(parts[0].train.labels),) * 2, objective="match_outputs")
    with pytest.raises(DataError, match="cannot be joined"):
        join_data([loader, parts[1]], "both")


def test_two_built_in_sets_are_one():
    joined = load_data("join:builtin:digits+builtin:digits", limit=30)
    assert joined.num_classes == 20 and joined.name == "join:builtin:digits+builtin:digits"
