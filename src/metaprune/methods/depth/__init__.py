"""Depth: whole residual branches go, the widths of the others stay."""

from metaprune.protocol.spec import MethodSpec

METHOD = MethodSpec(
    name="depth", config="metaprune.methods.depth.config:DepthConfig", method="metaprune.methods.depth.method:Depth"
)
