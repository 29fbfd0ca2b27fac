"""Masks of single weights, by magnitude."""

from metaprune.protocol.spec import MethodSpec

METHOD = MethodSpec(
    name="weight_masks",
    config="metaprune.methods.weight_masks.config:WeightMasksConfig",
    method="metaprune.methods.weight_masks.method:WeightMasks",
)
