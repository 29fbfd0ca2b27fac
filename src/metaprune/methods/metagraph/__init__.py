"""Metanetwork: a scoring rule learned on a zoo; a rewrite before the cut (Y. Liu et al., arXiv 2506.12041, 2025)."""

from metaprune.protocol.spec import MethodSpec

METHOD = MethodSpec(
    name="metagraph",
    config="metaprune.methods.metagraph.config:MetaGraphConfig",
    method="metaprune.methods.metagraph.method:MetaGraph",
    learned=True,
    verbs="metaprune.methods.metagraph.cli:VERBS",
    report="metaprune.methods.metagraph.report:section",
    card="card.md",
    next_step="metaprune prune {recipe} {again} --set method.options.artifact={folder}",
)
