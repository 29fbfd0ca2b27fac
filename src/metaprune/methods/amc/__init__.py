"""AMC's search for keep ratios by layer, judged right after the cut, with a Bayesian optimiser."""

from metaprune.protocol.spec import MethodSpec

METHOD = MethodSpec(
    name="amc", config="metaprune.methods.amc.config:AMCConfig", method="metaprune.methods.amc.method:AMC"
)
