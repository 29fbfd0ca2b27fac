"""A fitted metanetwork, ready for a network: what its inputs mean, and what it was fitted with."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from metaprune.core.errors import ConfigError
from metaprune.core.rng import Rng
from metaprune.core.strict import from_dict
from metaprune.methods.metagraph.config import MetaConfig, MetanetConfig
from metaprune.methods.metagraph.kernels import SLOTS
from metaprune.methods.metagraph.metanet import ATTRIBUTE_KINDS, EDGE_KINDS, SITE_KINDS, Metanet
from metaprune.methods.metagraph.network_graph import MAX_FEATURES
from metaprune.methods.metagraph.operators import ACTIVATIONS
from metaprune.protocol.artifact import Artifact, plain
from metaprune.protocol.method import PruneTask


def features() -> list[Any]:
    """List what the metanetwork's inputs mean; artifacts of other features cannot be used."""
    return plain([ATTRIBUTE_KINDS, EDGE_KINDS, SITE_KINDS, ACTIVATIONS, SLOTS, MAX_FEATURES])


@dataclass(frozen=True)
class RestoredMetanet:
    """An artifact, ready: the metanetwork, and how it was told of budgets."""

    metanet: Metanet
    meta: MetaConfig
    info: Mapping[str, Any]


def restored(artifact: Artifact, task: PruneTask) -> RestoredMetanet:
    """Raises ConfigError for an artifact whose inputs mean something else, or that is damaged."""
    if artifact.info.get("features") != features():
        raise ConfigError(
            "the artifact was fitted with other node and edge features than this version's: fit it again with "
            "`metaprune fit metagraph RECIPE`"
        )
    bad = [n for n, t in artifact.tensors.items() if not t.isfinite().all()]
    if bad:
        raise ConfigError(f"NaN or infinity in the artifact's {', '.join(bad[:4])}: fit it again")
    figures = {k: artifact.info.get(k) for k in ("seconds", "stages", "macs", "history", "options", "graph")}
    try:
        config = from_dict(MetanetConfig, dict(artifact.info["options"]["metanet"]), "metanet")
        meta = from_dict(MetaConfig, dict(artifact.info["options"]["meta"]), "meta")
        with Rng(0).torch_global():  # its initialisation is overwritten, and draws
            metanet = Metanet(config).to(task.network.device)
        metanet.load_state_dict({n: t.to(task.network.device) for n, t in artifact.tensors.items()})
    except (KeyError, RuntimeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(
            f"the artifact's tensors and options do not belong together ({reason}): fit it again"
        ) from error
    return RestoredMetanet(metanet, meta, figures)


def warn_of_others(artifact: Artifact, mine: Mapping[str, Any], default: Mapping[str, Any]) -> None:
    """Warn where a recipe's options have no effect: an artifact brings its own sizes and meta-training.

    mine, default: the options of a fit, as the recipe has them and as they are by default.
    """
    theirs = artifact.info["options"]
    others = [n for n in ("metanet", "meta", "data_models") if mine[n] not in (default[n], theirs[n])]
    if others:
        warnings.warn(
            f"the artifact was fitted with other options of {', '.join(others)}: its own are used",
            UserWarning,
            stacklevel=3,
        )
    ours, learnt = ({k: options[k] for k in ("criterion", "criterion_options")} for options in (mine, theirs))
    if ours != learnt:
        warnings.warn(f"the metanetwork learned to prepare for {learnt}, and {ours} prunes", UserWarning, stacklevel=3)
