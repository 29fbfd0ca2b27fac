"""For testing networks, rules and methods against metaprune: oracles and small networks, usable in any test suite."""

from metaprune.testing.networks import TOYS, Toy, toy
from metaprune.testing.oracles import (
    assert_cut_equals_mask,
    assert_untouched,
    counted_macs,
    output_error,
    perturb,
    random_plan,
)

__all__ = [
    "TOYS",
    "Toy",
    "assert_cut_equals_mask",
    "assert_untouched",
    "counted_macs",
    "output_error",
    "perturb",
    "random_plan",
    "toy",
]
