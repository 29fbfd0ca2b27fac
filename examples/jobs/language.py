"""Next token: a share of the Brown corpus for SmolLM2-135M, in sequences of 128 tokens."""

from metaprune_datasets.text import brown


def data():
    """(train, val, test) of few sequences: seconds of a large network per step on a CPU."""
    train, val, test = brown()
    return train.take(128), val.take(8), test.take(32)
