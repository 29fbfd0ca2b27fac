"""The parts of a record: plain JSON-able data about the machine, the network and the cut."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from typing import Any

import torch

import metaprune
from metaprune.surgery.cut import Pruned
from metaprune.values import Proposal


def environment(seed: int, device: torch.device) -> dict[str, Any]:
    return {
        "metaprune": metaprune.__version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": seed,
        "environment": {
            "torch": torch.__version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "device": str(device),
            "threads": torch.get_num_threads(),
        },
    }


def describe_cut(pruned: Pruned) -> dict[str, Any]:
    """`space`, `cost` and `proof` of a cut."""
    network, plan = pruned.network, pruned.plan
    widths = plan.widths(network.space)
    groups = [
        {"name": g.name, "before": g.width, "after": int(w), "members": [f"{m.parameter}:{m.dim}" for m in g.members]}
        for g, w in zip(network.space, widths, strict=True)
    ]
    return {
        "space": {
            "digest": network.space.digest(),
            "groups": groups,
            "locked": [vars(d) for d in network.space.locked],
            "uncovered": [vars(u) for u in network.uncovered],
            "notes": network.notes,
            "over_merged": network.space.over_merged,
        },
        "cost": {"before": network.cost().to_dict(), "after": network.cost(plan, masks=pruned.masks).to_dict()},
        "proof": {"form": pruned.form, "why": pruned.why, "error": pruned.error, "config": pruned.config.why},
    }


def describe_masks(pruned: Pruned, proposal: Proposal) -> dict[str, Any] | None:
    """Of masks of single weights: parameters that are left (and their share of the full network's), and the pattern.

    `whole` names weights that the pattern left out.
    """
    if not pruned.masks:
        return None
    network, told = pruned.network, dict(proposal.details.get("masks", {}))
    nonzero = int(network.cost(pruned.plan, masks=pruned.masks).nonzero)
    return {
        "nonzero": nonzero,
        "share": nonzero / int(network.cost().params),
        "pattern": told.get("pattern"),
        "whole": list(told.get("whole", ())),
    }
