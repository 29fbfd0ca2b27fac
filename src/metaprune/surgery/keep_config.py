"""Widths that the config of a transformers model can say: `keep_config=True`.

No table of architectures. Every number of the config is changed alone, and the class is built with it on the meta
device: the dimensions that change are those that the number sets. Groups of one number, in all layers, get one keep
ratio; groups that are factors of one dimension (heads times head dimensions) have numbers of their own. Whether that is
enough is then tried by cutting at random widths, the least strict rules first.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from metaprune.core.errors import ConfigError, NotAvailableError, VerificationError
from metaprune.graph.roles import ATTENTION_ROLES, HEAD_DIMS, HEADS, HIDDEN, KV_HEADS, QUERY_HEADS, STREAM, VALUE_DIMS
from metaprune.network import Network
from metaprune.search.units import Unit, units_of
from metaprune.surgery.cut import cut
from metaprune.surgery.hf_config import built_shapes, has_config, whole_numbers
from metaprune.surgery.keep_module import PROBES, ModuleRules, kernel_multiple, random_plan
from metaprune.values import Constraints

Dim = tuple[str, int]  # a parameter and one of its dimensions

_POLICIES = (  # roles that keep their full width, and roles of one ratio; the least strict first
    ((), ()),
    ((HEAD_DIMS, VALUE_DIMS), ()),
    ((HEAD_DIMS, VALUE_DIMS, QUERY_HEADS), ()),
    ((HEAD_DIMS, VALUE_DIMS, QUERY_HEADS), (STREAM, HEADS, KV_HEADS)),  # as the heads have to divide the stream
    ((HEAD_DIMS, VALUE_DIMS, STREAM), ()),
    (ATTENTION_ROLES, ()),
    ((*ATTENTION_ROLES, STREAM), ()),
    ((*ATTENTION_ROLES, HIDDEN), ()),
)


def config_rules(network: Network, seed: int = 0) -> ModuleRules:
    """Find the least strict rules under which random cuts of `network` are what its config can say.

    Raises:
        ConfigError: the model has no config of transformers.
        NotAvailableError: no cut that was tried can be said by its config.
    """
    if not has_config(network.model):
        raise ConfigError(
            f"keep_config is for models of transformers: {type(network.model).__name__} has no config. "
            "keep_module=True keeps a class"
        )
    set_by = numbers_of_dims(network)
    draw = np.random.default_rng(seed)
    reason = "its layers have no number in it"
    tried: list[ModuleRules] = []
    for whole, one_ratio in _POLICIES:
        rules = _rules(network, set_by, whole, one_ratio)
        if rules in tried or len(rules.whole) == len(network.space):
            continue
        units = [u for u in units_of(network.space, rules.applied_to(Constraints())) if len(u.levels) > 1]
        if not units:
            continue
        tried.append(rules)
        failure = next((why for _ in range(PROBES) if (why := _failure(network, units, draw))), "")
        if not failure:
            return rules
        reason = failure if len(tried) == 1 else reason
    raise NotAvailableError(f"keep_config: no cut of this model is what its config can say ({reason}). Leave it out")


def numbers_of_dims(network: Network) -> dict[Dim, frozenset[str]]:
    """Which numbers of the config set each dimension of a parameter.

    A number that is not set (`n_inner` of GPT-2) goes before those that it would be derived from.
    """
    model = network.model
    try:
        original = built_shapes(model, {})
    except Exception as error:  # what a class raises
        raise NotAvailableError(
            f"keep_config: {type(model).__name__} cannot be built from its config: {type(error).__name__}: {error}"
        ) from error
    unset_size = 2 * max(max(shape, default=1) for shape in original.values())
    found: dict[Dim, set[str]] = defaultdict(set)
    first: dict[Dim, set[str]] = defaultdict(set)
    for key, value in whole_numbers(model.config):
        try:
            built = built_shapes(model, {key: unset_size if value is None else 2 * value})
        except Exception:  # a number that others contradict
            continue
        if built.keys() == original.keys():
            for dim in _changed(original, built):
                (first if value is None else found)[dim].add(key)
    return {dim: frozenset(first.get(dim) or found[dim]) for dim in {*found, *first}}


def _changed(before: Mapping[str, tuple[int, ...]], after: Mapping[str, tuple[int, ...]]) -> Iterator[Dim]:
    for name, shape in before.items():
        yield from ((name, d) for d, (a, b) in enumerate(zip(shape, after[name], strict=True)) if a != b)


@dataclass(frozen=True)
class _Group:
    """A group as the config sees it: the numbers behind its dimensions, and those dimensions."""

    name: str
    role: str
    numbers: frozenset[str]
    dims: frozenset[Dim]


def _rules(
    network: Network, set_by: Mapping[Dim, Collection[str]], whole_roles: Collection[str], one_ratio: Collection[str]
) -> ModuleRules:
    groups = []
    for g in network.space:
        dims = frozenset((m.parameter, m.dim) for m in g.members)
        groups.append(_Group(g.name, g.role, frozenset(n for d in dims for n in set_by.get(d, ())), dims))
    whole = tuple(g.name for g in groups if g.role in whole_roles or not g.numbers)
    roles_of = defaultdict(set)
    for g in groups:
        for dim in g.dims:
            roles_of[dim].add(g.role)
    factors = {frozenset(pair) for roles in roles_of.values() for pair in itertools.combinations(roles, 2)}
    aligned = tuple(g.name for g in groups if g.role in one_ratio)
    ties = [aligned] if len(aligned) > 1 else []
    for number in sorted({n for g in groups for n in g.numbers}):
        mine = [g for g in groups if number in g.numbers]
        roles = dict.fromkeys(g.role for g in mine)
        free = {r for r in roles if r not in whole_roles}
        moved = {r for r in roles if r in free or not any(frozenset((r, f)) in factors for f in free)}
        for role in (r for r in roles if r in moved):
            tied = tuple(g.name for g in mine if g.role in moved and frozenset((role, g.role)) not in factors)
            if len(tied) > 1 and tied not in ties:
                ties.append(tied)
    held = [r for r in dict.fromkeys(g.role for g in network.space) if r in whole_roles]
    why = "one width for all that a number of the config sets" + (f"; whole: {', '.join(held)}" if held else "")
    return ModuleRules(tuple(ties), whole, why, kernel_multiple(network))


def _failure(network: Network, units: Sequence[Unit], draw: np.random.Generator) -> str:
    """Say why the config cannot say a random cut of these units; empty where it can."""
    try:
        with torch.random.fork_rng(devices=[]):
            pruned = cut(network, random_plan(network.space, units, draw), form="module", verify=False)
    except VerificationError as error:
        return str(error)
    return "" if pruned.config.changes is not None else pruned.config.why
