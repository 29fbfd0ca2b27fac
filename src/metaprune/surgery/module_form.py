"""The cut network as a deep copy of the user's own class, with smaller parameters and updated attributes.

What users like best, and not always possible: forward code may derive sizes from one another (`C // num_heads`). So a
candidate is only ever handed over after it was run and found equal to the sliced graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from metaprune.core.errors import first_line
from metaprune.core.side_effects import copy_model
from metaprune.graph.call import Survivors
from metaprune.network import Network
from metaprune.surgery.attributes import Change, family_attributes, traced_changes
from metaprune.surgery.dropped import as_large_as_inputs, drop_modules, dropped_modules, renumbered
from metaprune.surgery.graph_form import branch_constants, sliced_parameter
from metaprune.surgery.other_calls import OtherCalls
from metaprune.surgery.verify import TOLERANCE, Proof, in_float64

Attributes = dict[str, dict[str, Any]]  # module path -> attribute -> new value


def verified_module(
    network: Network, alive: Survivors, tensors: Mapping[str, torch.Tensor], proof: Proof, generate: bool = True
) -> tuple[nn.Module | None, Attributes, str]:
    """Return (model, attributes, why): a copy that equals the sliced graph, or None and the reason.

    Attributes that hold an old width are rewritten only where the proof needs it: an integer that merely equals one (a
    layer's number) stays. Whatever else the original can do (see `OtherCalls`), the copy has to do, too; with
    `generate=False`, for trial cuts, generation is left out of it.
    """
    try:
        return _Candidates(network, alive, tensors, proof, generate).verified()
    except Exception as failure:  # what `copy.deepcopy` of a user's model raises
        return None, {}, f"the model cannot be copied ({type(failure).__name__}: {failure})"


class _Candidates:
    def __init__(
        self, network: Network, alive: Survivors, tensors: Mapping[str, torch.Tensor], proof: Proof, generate: bool
    ):
        self.network, self.alive, self.tensors, self.proof = network, alive, tensors, proof
        self.generate = generate
        self.dropped, self.why = dropped_modules(network, alive, proof)
        self.constants = branch_constants(network, alive, tensors)

    def verified(self) -> tuple[nn.Module | None, Attributes, str]:
        if self.why:
            return None, {}, self.why
        result = self._of_any_policy()
        if result[0] is None and any(self.dropped.values()):
            self.dropped = as_large_as_inputs(self.dropped)
            result = self._of_any_policy()
        return result

    def _of_any_policy(self) -> tuple[nn.Module | None, Attributes, str]:
        changes = traced_changes(self.network, self.alive)
        sure, guessed = [c for c in changes if c.sure], [c for c in changes if not c.sure]
        certain = {**_resolve(self.network.model, sure, "last"), **renumbered(self.network.model, self.dropped)}
        tried: list[Attributes] = []
        for policy in ("none", "first", "last", "leave", "ordered", "reversed"):
            wanted = {} if policy == "none" else _resolve(self.network.model, guessed, policy)
            wanted = self._without(wanted, self._counted)
            if wanted in tried:
                continue
            tried.append(wanted)
            if (result := self._proved(certain, wanted)) is not None:
                return self._smallest(certain, wanted, result)
            for kind in self._kinds(wanted):  # one that means something else may spoil it
                fewer = self._without(wanted, {kind})
                if fewer not in tried and (result := self._proved(certain, fewer)) is not None:
                    return self._smallest(certain, fewer, result)
                tried.append(fewer)
        return None, {}, self.why

    @cached_property
    def _counted(self) -> set[tuple[type, str]]:
        """Attributes that are 0 in some module of their class, as the numbers of layers are: no width is."""
        modules = self.network.model.modules()
        return {(type(m), n) for m in modules for n, v in vars(m).items() if type(v) is int and v == 0}

    def _smallest(
        self, certain: Attributes, wanted: Attributes, result: tuple[nn.Module, Attributes, str]
    ) -> tuple[nn.Module, Attributes, str]:
        """Leave out the attributes of one name and class at a time, as long as the proof holds."""
        for kind in self._kinds(wanted):
            fewer = self._without(wanted, {kind})
            if (proved := self._proved(certain, fewer)) is not None:
                wanted, result = fewer, proved
        return result

    def _kinds(self, wanted: Attributes) -> list[tuple[type, str]]:
        """Class and name of the attributes, where there are several."""
        kinds = {(type(self.network.model.get_submodule(p)), n) for p, values in wanted.items() for n in values}
        return sorted(kinds, key=str) if len(kinds) > 1 else []

    def _without(self, wanted: Attributes, kinds: set[tuple[type, str]]) -> Attributes:
        fewer = {
            path: {n: v for n, v in values.items() if (type(self.network.model.get_submodule(path)), n) not in kinds}
            for path, values in wanted.items()
        }
        return {path: values for path, values in fewer.items() if values}

    def _proved(self, certain: Attributes, guessed: Attributes) -> tuple[nn.Module, Attributes, str] | None:
        wanted = {p: {**guessed.get(p, {}), **certain.get(p, {})} for p in dict.fromkeys((*guessed, *certain))}
        clone = _copy_with(self.network, self.alive, self.tensors)
        drop_modules(clone, self.dropped, self.constants)
        attributes = apply_attributes(clone, wanted)
        try:
            probe = in_float64(clone)
            error = self.proof.probe_error(probe)
        except Exception as failure:  # the user's forward may raise anything on the new widths
            reason = f"{type(failure).__name__}: {first_line(failure)[:160]}"
            self.why = f"the model's own forward does not run at these widths ({reason})"
            return None
        if error > TOLERANCE:
            self.why = f"the model's own forward gives another result at these widths (relative error {error:.1e})"
            return None
        other = other_calls(self.network).failure(clone, probe, self.proof, self.generate)
        if other:
            self.why = f"the model's own class equals the cut as traced, but {other}"
            return None
        return clone, attributes, f"equals the sliced graph (relative error {error:.1e})"


_OTHER_CALLS: WeakKeyDictionary[Network, OtherCalls] = WeakKeyDictionary()


def other_calls(network: Network) -> OtherCalls:
    """Try, once for a network, what its model can do besides the traced call."""
    if network not in _OTHER_CALLS:
        _OTHER_CALLS[network] = OtherCalls.of(network)
    return _OTHER_CALLS[network]


def _copy_with(network: Network, alive: Survivors, tensors: Mapping[str, torch.Tensor]) -> nn.Module:
    """Deep copy that takes the sliced tensors in place of the originals (ties stay ties, no grads are copied)."""
    memo: dict[int, Any] = {}
    for name, original in network.model_tensors.items():
        memo[id(original)] = sliced_parameter(network, name, tensors[name], original, alive)
    return copy_model(network.model, replacements=memo)


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
    if policy in ("ordered", "reversed"):
        return _in_order(model, changes, -1 if policy == "reversed" else 1)
    wanted: Attributes = {}
    disputed: set[tuple[str, str]] = set()
    for change in changes:
        if change.old == change.new:
            continue
        module = model.get_submodule(change.path)
        held = wanted.setdefault(change.path, {})
        for name, value in _matching({**vars(module), **held}, change):
            if name in held and held[name] != value:
                disputed.add((change.path, name))
                if policy == "first":
                    continue
            held[name] = value
    if policy == "leave":
        for path, name in disputed:
            wanted[path].pop(name)
    return {path: values for path, values in wanted.items() if values}


def _in_order(model: nn.Module, changes: list[Change], step: int) -> Attributes:
    """As many constants of one value as attributes of that value: padding before and after, say; others as "first"."""
    wanted = _resolve(model, changes, "first")
    for path, old in dict.fromkeys((c.path, c.old) for c in changes):
        same = [c for c in changes if (c.path, c.old) == (path, old)]
        names = list(dict.fromkeys(n for c in same for n, _ in _matching(vars(model.get_submodule(path)), c)))
        if len(names) == len(same):
            wanted.setdefault(path, {}).update({n: c.new for n, c in zip(names[::step], same, strict=True)})
    return {path: values for path, values in wanted.items() if values}


def _matching(attributes: Mapping[str, Any], change: Change) -> Iterator[tuple[str, Any]]:
    """Attributes that hold the old constant; an argument's own name is the best match."""
    held = {n: v for n, v in attributes.items() if not n.startswith("_") and n != "training"}
    alone = held.get(change.argument)
    if isinstance(alone, int) and alone == change.old:
        yield change.argument, change.new
        return
    at = change.position or 0
    if isinstance(alone, (tuple, list)) and list(alone[at : at + 1]) == [change.old]:
        yield change.argument, type(alone)((*alone[:at], change.new, *alone[at + 1 :]))
        return
    if change.sure:
        return
    for name, value in held.items():
        if isinstance(value, bool):
            continue
        if isinstance(value, int) and value == change.old:
            yield name, change.new
        elif isinstance(value, (tuple, list)) and isinstance(change.old, tuple) and tuple(value) == change.old:
            yield name, type(value)(change.new)
