"""From a finished cut to the parts of its record."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import torch
from torch import nn

from metaprune._version import __version__
from metaprune.core.files import tensors_digest
from metaprune.core.tensors import named_tensors
from metaprune.protocol.options import MethodOptions, recipe_options
from metaprune.recover.config import RecoverConfig
from metaprune.runs.schema import CostRecord, EffortRecord, ProofRecord, SpaceRecord
from metaprune.surgery.cut import Pruned
from metaprune.values import Constraints, Proposal

OWN_LOOP = "own loop"
"""Kind of recovery that a function of the user's own did."""


def environment(seed: int, device: torch.device) -> dict[str, Any]:
    """Versions, machine, date and seed."""
    return {
        "metaprune": __version__,
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


def weights_digest(model: nn.Module) -> str:
    """Digest of a model's tensors: whether figures are of the weights as they are now."""
    return tensors_digest(named_tensors(model)[0])


def space_record(pruned: Pruned, asked: Constraints) -> SpaceRecord:
    """Groups of a cut with their widths before and after, and what is locked."""
    network, plan = pruned.network, pruned.plan
    widths = plan.widths(network.space)
    return SpaceRecord(
        digest=network.space.digest(),
        groups=[
            {
                "name": group.name,
                "before": group.width,
                "after": int(width),
                "members": [f"{m.parameter}:{m.dim}" for m in group.members],
            }
            for group, width in zip(network.space, widths, strict=True)
        ],
        locked=[dict(vars(d)) for d in network.space.locked],
        uncovered=[dict(vars(u)) for u in network.uncovered],
        notes=list(network.notes),
        over_merged=network.space.over_merged,
        patterns=network.space.named_by(asked),
    )


def cost_record(pruned: Pruned) -> CostRecord:
    """Cost of one sample before and after a cut."""
    network = pruned.network
    return CostRecord(before=network.cost().to_dict(), after=network.cost(pruned.plan, masks=pruned.masks).to_dict())


def proof_record(pruned: Pruned) -> ProofRecord:
    """Record how a cut was proved."""
    return ProofRecord(
        form=pruned.form, why=pruned.why, error=pruned.error, unproved=pruned.unproved, config=pruned.config.why
    )


def options_record(method: Any) -> dict[str, Any]:
    """Options of a method object as resolved, with their defaults; empty for one that is no dataclass."""
    if isinstance(method, MethodOptions) and dataclasses.is_dataclass(method):
        return method.public()
    return recipe_options(method) if dataclasses.is_dataclass(method) else {}


def effort_record(
    pruned: Pruned, recover: RecoverConfig, history: Mapping[str, Any] | None, own_loop: bool
) -> EffortRecord | None:
    """Record what recovery took; distillation pays for the teacher's forward passes, too."""
    if own_loop:
        return EffortRecord(kind=OWN_LOOP)
    if history is None:
        return None
    samples = sum(round(row["samples_per_s"] * row["seconds"]) for row in history["rows"])
    teacher = float(pruned.network.cost().macs) if recover.kind == "distil" else 0.0
    each = 3 * float(pruned.network.cost(pruned.plan).macs) + teacher
    return EffortRecord(kind=recover.kind, samples=samples, macs=samples * each)


def total_effort(efforts: Sequence[EffortRecord | None]) -> EffortRecord | None:
    """Add up what the recoveries of all rounds took; of loops of the user's own nothing is known."""
    took = [effort for effort in efforts if effort is not None]
    if len(took) < 2 or any(effort.macs is None for effort in took):
        return took[-1] if took else None
    return EffortRecord(
        kind=took[-1].kind,
        samples=sum(effort.samples or 0 for effort in took),
        macs=sum(effort.macs or 0.0 for effort in took),
    )


def describe_masks(pruned: Pruned, proposal: Proposal) -> dict[str, Any] | None:
    """Describe masks of single weights: parameters left (and their share of the full network's), and the pattern.

    `whole` names weights that the pattern left out.
    """
    if not pruned.masks:
        return None
    network, details = pruned.network, dict(proposal.details.get("masks", {}))
    nonzero = int(network.cost(pruned.plan, masks=pruned.masks).nonzero)
    return {
        "nonzero": nonzero,
        "share": nonzero / int(network.cost().params),
        "pattern": details.get("pattern"),
        "whole": list(details.get("whole", ())),
    }
