"""Soft filter pruning: filters are zeroed after every epoch of training, and may come back."""

from metaprune.protocol.spec import MethodSpec

METHOD = MethodSpec(
    name="sfp", config="metaprune.methods.sfp.config:SFPConfig", method="metaprune.methods.sfp.method:SFP"
)
