"""Reader norm: channels are ranked by the weights that read them."""

from metaprune.protocol.spec import MethodSpec

METHOD = MethodSpec(
    name="reader_norm",
    config="metaprune_reader_norm.config:ReaderNormConfig",
    method="metaprune_reader_norm.method:ReaderNorm",
    verbs="metaprune_reader_norm.cli:VERBS",
    report="metaprune_reader_norm.report:section",
)
