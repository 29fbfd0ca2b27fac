"""PruningNet: weights for all structures at once, and a search in a budget (MetaPruning, Liu et al., ICCV 2019)."""

from metaprune.protocol.spec import MethodSpec

METHOD = MethodSpec(
    name="pruningnet",
    config="metaprune.methods.pruningnet.config:PruningNetConfig",
    method="metaprune.methods.pruningnet.method:PruningNet",
    learned=True,
    verbs="metaprune.methods.pruningnet.cli:VERBS",
    report="metaprune.methods.pruningnet.report:section",
    card="card.md",
    next_step="metaprune search {folder} --budget macs=50%",
)
