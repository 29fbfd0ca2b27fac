"""The cut network as a deep copy of the user's own class, with smaller parameters and updated attributes.

What users like best, and not always possible: forward code may derive sizes from one another (`C // num_heads`). So a
candidate is only ever handed over after it was run and found equal to the sliced graph.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from metaprune.graph.call import Survivors
from metaprune.network import Network
from metaprune.surgery.attributes import Change, family_attributes, traced_changes
from metaprune.surgery.graph_form import sliced_parameter
from metaprune.surgery.verify import TOLERANCE, Proof

Attributes = dict[str, dict[str, Any]]  # module path -> attribute -> new value


def verified_module(
    network: Network, alive: Survivors, tensors: Mapping[str, torch.Tensor], proof: Proof
) -> tuple[nn.Module | None, Attributes, str]:
    """(model, attributes, why): the first candidate that equals the sliced graph, or None and the reason."""
    why = ""
    try:
        for candidate, attributes in module_candidates(network, alive, tensors):
            try:
                error = proof.module_error(candidate)
            except Exception as failure:  # the user's forward may raise anything on the new widths
                line = next(iter(str(failure).splitlines()), "")
                why = f"the model's own forward does not run at these widths ({type(failure).__name__}: {line[:160]})"
                continue
            if error <= TOLERANCE:
                return candidate, attributes, f"equals the sliced graph (relative error {error:.1e})"
            why = f"the model's own forward gives another result at these widths (relative error {error:.1e})"
    except Exception as failure:
        why = f"the model cannot be copied ({type(failure).__name__}: {failure})"
    return None, {}, why


def module_candidates(
    network: Network, alive: Survivors, tensors: Mapping[str, torch.Tensor]
) -> Iterator[tuple[nn.Module, Attributes]]:
    """Deep copies with every policy for constants that disagree about an attribute.

    First wins, last wins, leave it, or the i-th constant goes to the i-th attribute of that value.

    Raises whatever `copy.deepcopy` of the model raises.
    """
    changes = traced_changes(network, alive)
    seen: list[Attributes] = []
    for policy in ("first", "last", "leave", "ordered"):
        wanted = _resolve(network.model, changes, policy)
        if wanted in seen:
            continue
        seen.append(wanted)
        clone = _copy_with(network, alive, tensors)
        yield clone, apply_attributes(clone, wanted)


def _copy_with(network: Network, alive: Survivors, tensors: Mapping[str, torch.Tensor]) -> nn.Module:
    """Deep copy that takes the sliced tensors in place of the originals (ties stay ties, no grads are copied)."""
    memo: dict[int, Any] = {}
    for name, original in network.tensors.items():
        memo[id(original)] = sliced_parameter(network, name, tensors[name], original, alive)
    return copy.deepcopy(network.model, memo)


def apply_attributes(model: nn.Module, wanted: Attributes) -> Attributes:
    """Set attributes in place: those given, then those of the torch.nn families; returns all that were set."""
    applied: Attributes = {path: dict(values) for path, values in wanted.items()}
    set_attributes(model, wanted)
    for path, module in model.named_modules():
        for name, value in family_attributes(module).items():
            setattr(module, name, value)
            applied.setdefault(path, {})[name] = value
    return applied


def set_attributes(model: nn.Module, attributes: Attributes) -> None:
    """Set attributes in place. A list read back from JSON takes the type of the value it replaces."""
    for path, values in attributes.items():
        module = model.get_submodule(path)
        for name, value in values.items():
            held = getattr(module, name, value)
            setattr(module, name, type(held)(value) if isinstance(held, (tuple, list)) else value)


def _resolve(model: nn.Module, changes: list[Change], policy: str) -> Attributes:
    if policy == "ordered":
        return _in_order(model, changes)
    wanted: Attributes = {}
    disputed: set[tuple[str, str]] = set()
    for change in changes:
        if change.old == change.new:
            continue
        module = model.get_submodule(change.path)
        for name, value in _matching(module, change):
            held = wanted.setdefault(change.path, {})
            if name in held and held[name] != value:
                disputed.add((change.path, name))
                if policy == "first":
                    continue
            held[name] = value
    if policy == "leave":
        for path, name in disputed:
            wanted[path].pop(name)
    return {path: values for path, values in wanted.items() if values}


def _in_order(model: nn.Module, changes: list[Change]) -> Attributes:
    """As many constants of one value as attributes of that value: padding before and after, say."""
    wanted: Attributes = {}
    for path, old in dict.fromkeys((c.path, c.old) for c in changes):
        same = [c for c in changes if (c.path, c.old) == (path, old)]
        names = list(dict.fromkeys(n for c in same for n, _ in _matching(model.get_submodule(path), c)))
        if len(names) == len(same):
            wanted.setdefault(path, {}).update({n: c.new for n, c in zip(names, same, strict=True) if c.new != old})
    return {path: values for path, values in wanted.items() if values}


def _matching(module: nn.Module, change: Change) -> Iterator[tuple[str, Any]]:
    """Attributes of `module` that hold the old constant; an argument's own name is the best match."""
    held = {n: v for n, v in vars(module).items() if not n.startswith("_") and n != "training"}
    alone = held.get(change.argument)
    if isinstance(alone, int) and alone == change.old:
        yield change.argument, change.new
        return
    for name, value in held.items():
        if isinstance(value, bool):
            continue
        if isinstance(value, int) and value == change.old:
            yield name, change.new
        elif isinstance(value, (tuple, list)) and isinstance(change.old, tuple) and tuple(value) == change.old:
            yield name, type(value)(change.new)
