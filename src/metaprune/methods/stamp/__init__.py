"""STAMP: masks generated from a data set (Song et al., arXiv 2006.12139, 2020)."""

from metaprune.protocol.spec import MethodSpec

METHOD = MethodSpec(
    name="stamp",
    config="metaprune.methods.stamp.config:StampConfig",
    method="metaprune.methods.stamp.method:Stamp",
    learned=True,
    verbs="metaprune.methods.stamp.cli:VERBS",
    report="metaprune.methods.stamp.report:section",
    card="card.md",
    next_step="metaprune adapt {folder} --data builtin:emoji --budget {options[metric]}=25%",
)
