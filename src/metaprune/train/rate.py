"""The learning rate that fits given weights: a short ramp, judged on samples that it does not train on."""

from __future__ import annotations

from collections.abc import Callable

LEAST, FACTOR, STEPS = 1e-6, 2.0, 24
WORSE = 1.5  # times the first loss: higher rates are not tried


def fitting_rate(update: Callable[[float], bool], judged: Callable[[], float]) -> float:
    """Return half the rate at which the held-out loss of a ramp is least; the weights are the caller's to restore.

    Rates double from update to update, from 1e-6 on (the range test of Smith, Cyclical Learning Rates, WACV 2017,
    section 3.3, which reads the training loss). Tried by hand, one seed, on a ResNet-20 that was cut to 50 and 30% of
    its MACs and trained for one epoch of 5,000 images: rates of a half to twice the least lose up to 1.5 points to the
    best.

    Args:
        update: takes one step at a rate, on a new batch; False where loss or gradient are not finite.
        judged: measures the loss on the held-out batch, always the same one.
    """
    first = judged()
    best, rate, lowest = LEAST, LEAST, first
    for _ in range(STEPS):
        if not update(rate):
            break
        loss = judged()
        if loss < lowest:
            best, lowest = rate, loss
        if not loss < WORSE * first:
            break
        rate *= FACTOR
    return best / 2
