"""Pruning in rounds: cut a little, recover, go on from there. Every round sees the smaller network as a user's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from metaprune.calibration.compensate import Compensation
from metaprune.core.errors import PlanError
from metaprune.core.rng import Rng
from metaprune.core.tensors import named_tensors
from metaprune.elastic.weights import unslice_tensor
from metaprune.network import Network
from metaprune.runs.prepare import Prepared
from metaprune.surgery.cut import Pruned
from metaprune.tracing import trace
from metaprune.values import Budget, Constraints, Plan, Proposal


@dataclass(frozen=True)
class Round:
    """Where a round begins.

    Attributes:
        prepared: on the network as the rounds before left it, with this round's budget.
        number: of the round, from 1 on.
        original: the network before the first round.
        plan: what is left of the original.
        weights: tensors at the original's full size that differ from its own.
    """

    prepared: Prepared
    number: int
    original: Network
    plan: Plan = field(default_factory=Plan)
    weights: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def first(cls, prepared: Prepared) -> Round:
        """Begin with the network itself."""
        return cls(replace(prepared, budget=budget_of_round(prepared, 1)), 1, prepared.network)

    def after(self, prepared: Prepared, number: int, pruned: Pruned) -> Round:
        """Go on from the recovered network of the round before.

        prepared: of the whole run.

        Raises:
            PlanError: a dropped branch left a constant, which may be trained, and no tensor of the original holds it.
        """
        keeps = pruned.plan.keep
        left = [b.name for b in self.original.branches if b.constant and not any(keeps.get(g, (0,)) for g in b.groups)]
        if left:
            raise PlanError(
                f"round {number} cannot carry on what the dropped branch {left[0]!r} left: set rounds=1 or min_keep=1"
            )
        captured = self.original.captured
        args, kwargs = captured.example
        network = trace(pruned.model, args, kwargs, free_outputs=prepared.free_outputs, batch_dim=prepared.batch_dim)
        later = replace(
            prepared,
            network=network,
            budget=budget_of_round(prepared, number),
            constraints=_without_ratios(prepared.constraints, self.original),
        )
        tensors = self._full_size(pruned.plan, named_tensors(pruned.model)[0])
        return Round(later, number, self.original, pruned.plan, tensors)

    @property
    def rng(self) -> Rng:
        """Draws of this round; those of a run of one round are the run's own."""
        rng = Rng(self.prepared.seed)
        return rng if self.prepared.rounds == 1 else rng.child("round", self.number)

    def folder(self, checkpoint_dir: Path | None, is_last: bool) -> Path | None:
        """Where the round keeps its long work; the last one where a run of one round does."""
        return checkpoint_dir if checkpoint_dir is None or is_last else checkpoint_dir / "rounds" / str(self.number)

    def composed(
        self, proposal: Proposal, compensation: Compensation | None
    ) -> tuple[Plan, Mapping[str, Tensor] | None]:
        """Say a proposal for this round's network in terms of the original: the plan, and weights at full size.

        Raises:
            PlanError: masks of single weights in a run of several rounds.
        """
        if proposal.masks and self.prepared.rounds > 1:
            name = self.prepared.method.name
            raise PlanError(
                f"rounds are for methods that drop channels, and {name!r} masks single weights: set rounds=1"
            )
        new = proposal.weights if compensation is None else compensation.weights
        if self.prepared.network is self.original:
            return proposal.plan, new
        keep = dict(self.plan.keep)
        for name, channels in proposal.plan.keep.items():
            before = self.plan.keep.get(name, range(self.original.space[name].width))
            keep[name] = tuple(before[i] for i in channels)
        return Plan(keep), {**self.weights, **self._full_size(self.plan, new or {})}

    def _full_size(self, plan: Plan, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Put tensors of the network at `plan` into their places among those before."""
        labels, alive = self.original.labelled.parameters, self.original.survivors(plan)
        full = {**self.original.tensors, **self.weights}
        return {n: unslice_tensor(t.detach(), full[n], labels.get(n), alive) for n, t in tensors.items() if n in full}


def budget_of_round(prepared: Prepared, number: int) -> Budget:
    """Bounds of a round: from the full cost they fall by the same factor each time; the last are those asked for."""
    if prepared.rounds == 1:
        return prepared.budget
    full, share = prepared.network.cost(), number / prepared.rounds
    bounds = prepared.budget.bounds(full)
    if share < 1:
        bounds = {m: float(full[m]) * min(1.0, b / float(full[m])) ** share for m, b in bounds.items()}
    return Budget(**bounds)


def _without_ratios(constraints: Constraints, network: Network) -> Constraints:
    """What the first round has brought to its ratio stays as it is: a ratio is of the full width."""
    if not constraints.ratios:
        return constraints
    done = network.space.match(tuple(constraints.ratios), "ratio")
    names = tuple(network.space.groups[g].name for g in sorted(done))
    return replace(constraints, ratios={}, ignore=(*constraints.ignore, *names))
