"""Widths at which the model's own class still runs: `keep_module=True`.

Forward code derives sizes from one another (`C // num_heads`, `chunk(2)`, `reshape(B, N, C)`), which no attribute can
follow. So groups are tied to one another, or left whole, until the class runs. Nothing is assumed about the class:
policies, read off the attentions and splits of the graph, are *tried* by cutting at random widths, the least strict
first; where none holds for all groups, those that fail are found by bisection and left whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from metaprune.core.errors import VerificationError
from metaprune.graph.captured import op_name
from metaprune.graph.labels import Label
from metaprune.graph.roles import ATTENTION_ROLES, HEAD_DIMS, STREAM, VALUE_DIMS, attentions
from metaprune.graph.transformers_models import groups_experts
from metaprune.network import Network
from metaprune.search.units import Unit, fixed_groups, units_of
from metaprune.surgery.module_form import verified_module
from metaprune.surgery.verify import Proof
from metaprune.values import Constraints, Plan, Space

PROBES = 2  # random cuts that a set of groups has to survive
MOST_PROBES = 24  # of a bisection
STRIKES = 5  # failures in a row after which a class of like groups is left whole
EXPERT_WIDTHS = 8  # 16 bytes of a half-precision number, see `groups_experts`
KEEP = (0.3, 0.9)  # keep ratios of the random cuts; what a class does below is not asked, the cut will tell


@dataclass(frozen=True)
class ModuleRules:
    """ties: groups (by name) that keep one ratio. whole: groups that keep their full width. why: in words.

    round_to: widths are multiples of this, as a kernel of the class asks for.
    """

    ties: tuple[tuple[str, ...], ...] = ()
    whole: tuple[str, ...] = ()
    why: str = "any widths"
    round_to: int = 1

    def applied_to(self, constraints: Constraints) -> Constraints:
        """Add these rules to the constraints."""
        exact = [tuple(f"={name}" for name in tie) for tie in self.ties]
        return replace(
            constraints,
            ties=(*constraints.ties, *exact),
            whole=(*constraints.whole, *(f"={name}" for name in self.whole)),
            round_to=math.lcm(constraints.round_to, self.round_to),
        )


def module_rules(network: Network, seed: int = 0, constraints: Constraints | None = None) -> ModuleRules:
    """Find the least strict rules under which random cuts of `network` have a module form.

    Groups that `constraints` leave whole are not tried.

    Costs a few float64 forward passes of the example inputs; for a class with rules of its own `MOST_PROBES` of them,
    and some more groups than needed may then be left whole.
    """
    return _Search(network, seed, fixed_groups(network.space, constraints or Constraints())).rules()


def kernel_multiple(network: Network) -> int:
    """Compute what widths are multiples of where the class runs experts by a kernel that asks for it, else 1."""
    return EXPERT_WIDTHS if groups_experts(network.model) else 1


def random_plan(space: Space, units: Sequence[Unit], draw: np.random.Generator) -> Plan:
    """Draw a width of every unit, and which channels stay; all other groups stay whole."""
    masks = [np.ones(g.width, dtype=bool) for g in space]
    for unit in units:
        level = np.abs(unit.ratios()[:-1] - draw.uniform(*KEEP)).argmin()
        for g, width in zip(unit.groups, unit.levels[level], strict=True):
            masks[g][draw.permutation(len(masks[g]))[width:]] = False
    return Plan.of(space, masks)


@dataclass(frozen=True)
class _Policy:
    name: str
    ties: tuple[tuple[int, ...], ...] = ()
    whole: frozenset[int] = frozenset()


class _Search:
    def __init__(self, network: Network, seed: int, fixed: set[int]):
        self.network, self.fixed = network, fixed
        self.draw = np.random.default_rng(seed)
        self.probes = 0
        self.failure = ""
        self.group_of = np.full(len(network.labelled.atoms), -1, dtype=np.int64)
        for g, group in enumerate(network.space):
            self.group_of[group.atoms] = g

    def rules(self) -> ModuleRules:
        if not self._probe(()):
            raise VerificationError(f"no module form even of the network as it is: {self.failure}. Use form='graph'")
        policies = self._policies()
        for policy in policies:
            if self._runs(self._units(policy)):
                return self._result(policy, ())
        start = self._all_but_attention()
        rest = (policies[0],) if start else dict.fromkeys((policies[0], policies[-1]))
        tried = [(p, self._accepted(p, start)) for p in rest]
        policy, free = max(tried, key=lambda t: self._elements(t[1]))
        left = set(range(len(self.network.space))) - free - self.fixed
        return self._result(policy, tuple(sorted(left)))

    def _all_but_attention(self) -> set[int]:
        """Groups that can shrink if all attention (and, if need be, the residual streams too) stays whole."""
        for whole in (ATTENTION_ROLES, (*ATTENTION_ROLES, STREAM)):
            free = frozenset(g for g, group in enumerate(self.network.space) if group.role not in whole)
            if len(free) < len(self.network.space):
                rest = frozenset(range(len(self.network.space))) - free
                if self._runs(self._units(_Policy("", whole=rest))):
                    return set(free)
        return set()

    def _result(self, policy: _Policy, whole: tuple[int, ...]) -> ModuleRules:
        names = [g.name for g in self.network.space]
        left = tuple(names[g] for g in sorted(policy.whole.union(whole)))
        why = policy.name + (f"; left whole where the class does not follow: {self.failure}" if whole else "")
        ties = tuple(tuple(names[g] for g in tie) for tie in policy.ties)
        return ModuleRules(ties, left, why, kernel_multiple(self.network))

    # ---------------------------------------------------------------------------------------- what to try

    def _policies(self) -> list[_Policy]:
        parts = tuple(self._equal_parts())
        attention_groups = [tuple(self._groups(label) for label in labels) for labels in self._attention_labels()]
        dims = tuple((*q, *v) for _, q, v, _ in attention_groups if len({*q, *v}) == 2)
        roles = [g.role for g in self.network.space]
        whole = frozenset(g for g, role in enumerate(roles) if role in (HEAD_DIMS, VALUE_DIMS))
        aligned = tuple((*heads, *stream) for heads, _, _, stream in attention_groups if heads and stream)
        policies = [
            _Policy("any widths"),
            _Policy("equal parts where a layer is split", parts),
            _Policy("equal parts; value dimensions as many as query/key dimensions", parts + dims),
            _Policy("equal parts; head dimensions whole", parts, whole),
            _Policy("equal parts; head dimensions whole; embedding in the ratio of the heads", parts + aligned, whole),
        ]
        distinct = {(p.ties, p.whole): p for p in reversed(policies)}
        return list(reversed(distinct.values()))

    def _attention_labels(self) -> Iterator[tuple[Label, ...]]:
        """(heads, query/key dimensions, value dimensions, embedding that is projected) of every attention."""
        graph, labelled = self.network.captured.graph, self.network.labelled
        for heads, q, v in attentions(graph, labelled):
            head = next((h for h in heads if len(self._groups(h)) == 1), None)
            members = (m for g in self._groups(q) for m in self.network.space.groups[g].members if m.dim == 0)
            projected = (labelled.parameters[m.parameter] for m in members)
            yield head, q, v, next((labels[1] for labels in projected if len(labels) == 2), None)

    def _equal_parts(self) -> Iterator[tuple[int, ...]]:
        """Groups that are the pieces of one `chunk` or `split` into equal parts."""
        for node in self.network.captured.graph.nodes:
            if node.op == "call_function" and op_name(node.target) in ("chunk", "split", "tensor_split"):
                pieces = self.network.labelled.facts[node.name].labels
                dims = zip(*(p for p in pieces if p is not None), strict=True)
                for labels in dims:
                    groups = [self._groups(label) for label in labels]
                    tied = tuple(dict.fromkeys(g for part in groups for g in part))
                    if len(tied) > 1:  # parts of several groups are of one size if all those groups keep one ratio
                        yield tied

    def _groups(self, label: Label) -> tuple[int, ...]:
        final = None if label is None else self.network.labelled.atoms.final(label)
        if final is None:
            return ()
        groups = self.group_of[np.unique(final[final >= 0])]
        return tuple(int(g) for g in dict.fromkeys(groups[groups >= 0].tolist()))

    # ---------------------------------------------------------------------------------------- trying

    def _units(self, policy: _Policy) -> list[Unit]:
        """Groups that shrink together under a policy, those of most parameters first."""
        units = units_of(self.network.space, self._result(policy, ()).applied_to(Constraints()), self.fixed)
        return sorted((u for u in units if len(u.levels) > 1), key=lambda u: -self._elements(u.groups))

    def _elements(self, groups: Iterable[int]) -> int:
        """Elements of the parameters that hold any of the groups."""
        names = {m.parameter for g in groups for m in self.network.space.groups[g].members}
        return sum(self.network.tensors[n].numel() for n in names)

    def _runs(self, units: Sequence[Unit]) -> bool:
        return all(self._probe(units) for _ in range(PROBES))

    def _probe(self, units: Sequence[Unit]) -> bool:
        """Whether a random cut of these units (all else whole) has a module form."""
        self.probes += 1
        alive = self.network.survivors(random_plan(self.network.space, units, self.draw))
        try:
            proof = Proof(self.network, alive, self.network.tensors)
            model, _, why = verified_module(self.network, alive, self.network.tensors, proof, generate=False)
        except VerificationError as error:  # widths at which nothing is left of a piece, say
            model, why = None, str(error)
        if model is None:
            self.failure = why
        return model is not None

    def _accepted(self, policy: _Policy, start: set[int]) -> set[int]:
        """Groups that can shrink together: `start`, then classes of like units, halves of a class that fails.

        A class is given up after `STRIKES` failures in a row.
        """
        classes: dict[tuple, list[Unit]] = {}
        kinds, groups = self.network.isomorphic_classes, self.network.space.groups
        accepted: list[Unit] = []
        for unit in self._units(policy):
            if start.issuperset(unit.groups.tolist()):
                accepted.append(unit)
            else:
                classes.setdefault(tuple((kinds[g], groups[g].role) for g in unit.groups), []).append(unit)
        proven = list(accepted)
        last = self.probes + MOST_PROBES
        for like in classes.values():
            waiting, strikes = [like], 0
            while waiting and strikes < STRIKES and self.probes < last:
                candidates = waiting.pop(0)
                if self._probe([*accepted, *candidates]):
                    accepted += candidates
                    strikes = 0
                    continue
                strikes += 1
                if len(candidates) > 1:
                    middle = len(candidates) // 2
                    waiting = [candidates[:middle], candidates[middle:], *waiting]
        chosen = accepted if self._runs(accepted) else proven
        return {int(g) for unit in chosen for g in unit.groups}
