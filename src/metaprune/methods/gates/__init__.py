"""Static gates, learned with the weights on the data at hand."""

from metaprune.protocol.spec import MethodSpec

METHOD = MethodSpec(
    name="gates", config="metaprune.methods.gates.config:GatesConfig", method="metaprune.methods.gates.method:Gates"
)
