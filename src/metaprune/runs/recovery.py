"""Recovery as a step of a run: masks stay at zero, checkpoints know the cut, new weights are cut to size."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from metaprune.core.files import tensors_digest
from metaprune.core.modes import device_of
from metaprune.core.rng import Rng
from metaprune.core.tensors import named_tensors
from metaprune.data import Data
from metaprune.recover.config import RecoverConfig
from metaprune.recover.run import recover, run_own
from metaprune.recover.scratch import Initialise, initialise_from, reinitialise
from metaprune.runs.prepare import Prepared
from metaprune.surgery.cut import Pruned
from metaprune.train.masks import held_at_zero, set_to_zero


def recovered(
    pruned: Pruned,
    prepared: Prepared,
    recovery: RecoverConfig,
    rng: Rng,
    checkpoint_dir: Path | None,
    own_weights: bool,
) -> dict[str, Any] | None:
    """Recover `pruned.model` in place; the training history, or None if nothing was asked for.

    own_weights: the method made weights that need not come from the original's, nor their statistics.
    """
    if prepared.own_loop is None and (prepared.data is None or recovery.kind == "none"):
        return None
    network, alive = pruned.network, pruned.network.survivors(pruned.plan)
    masks = network.at(pruned.plan).masks(pruned.masks)
    with held_at_zero(pruned.model, masks):
        if prepared.own_loop is not None:
            return run_own(prepared.own_loop, pruned.model, prepared.data).to_dict()
        identity: dict[str, Any] = {"plan": pruned.plan.to_dict(), "weights": tensors_digest(network.tensors)}
        if prepared.rounds > 1:  # earlier rounds made the weights that this one begins with
            identity["rounds"] = prepared.rounds
        if masks:
            identity["masks"] = tensors_digest(masks)
        history = recover(
            pruned.model,
            network.model,
            cast("Data", prepared.data),
            recovery,
            rng=rng,
            device=device_of(pruned.model),
            progress=prepared.progress,
            checkpoint_dir=checkpoint_dir,
            identity=identity,
            initialise=_initialiser(pruned, masks, rng),
            pruned=pruned,
            to_size=None if own_weights else lambda tensors: network.sliced(alive, tensors=tensors),
        )
    return history.to_dict()


def _initialiser(pruned: Pruned, masks: Mapping[str, torch.Tensor], rng: Rng) -> Initialise | None:
    """New weights for training from scratch, under the same masks; a module form without masks makes its own."""
    fresh = _initialise_graph(pruned, rng) if pruned.form == "graph" else None
    if not masks:
        return fresh

    def masked(model: nn.Module) -> None:
        if fresh is None:
            reinitialise(model, rng.child("initialise"))
        else:
            fresh(model)
        set_to_zero(model, masks)

    return masked


def _initialise_graph(pruned: Pruned, rng: Rng) -> Initialise:
    """Those of a re-initialised original, cut to size."""
    network = pruned.network
    alive = network.survivors(pruned.plan)

    def tensors_of(fresh: nn.Module) -> Mapping[str, torch.Tensor]:
        return network.sliced(alive, tensors=named_tensors(fresh)[0])

    return initialise_from(network.model, tensors_of, rng.child("initialise"))
