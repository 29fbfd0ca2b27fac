"""NetAdapt: the budget is met in steps, each in the layer whose cut hurts least after a short training."""

from metaprune.protocol.spec import MethodSpec

METHOD = MethodSpec(
    name="netadapt",
    config="metaprune.methods.netadapt.config:NetAdaptConfig",
    method="metaprune.methods.netadapt.method:NetAdapt",
)
