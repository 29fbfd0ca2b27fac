"""Next token: a little of the Brown corpus for SmolLM2-135M, in sequences of 64 tokens."""

from metaprune_datasets.text import corpus


def data():
    """(train, val, test) of few sequences: a step of such a network takes seconds on a CPU."""
    train, val, test = corpus("brown", length=64)
    return train.take(24), val.take(4), test.take(12)
