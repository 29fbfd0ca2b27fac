"""Integer attributes of a module that must follow its parameters, by module family.

Two sources: families of `torch.nn` (a handler each, registered by class, subclasses included), and, for everything
else, constants that the trace saw in the module's forward: where a reshape, split or expand changes from 12 to 6, an
integer attribute 12 of the module that ran it becomes 6. What this gets wrong, verification catches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from metaprune.elastic.folding import emptied_branches
from metaprune.graph.call import Fact, Patch, Survivors, bound_arguments
from metaprune.graph.captured import module_of, op_name
from metaprune.graph.look_ups import looked_up_label
from metaprune.network import Network

HANDLERS: list[tuple[type | tuple[type, ...], Callable[[nn.Module], dict[str, Any]]]] = []


def handler(*kinds: type) -> Callable[[Callable[[Any], dict[str, Any]]], Callable[[Any], dict[str, Any]]]:
    """Register a function from a module with new parameters to the attributes that follow from them."""

    def register(function: Callable[[Any], dict[str, Any]]) -> Callable[[Any], dict[str, Any]]:
        HANDLERS.append((kinds, function))
        return function

    return register


@handler(nn.Linear)
def linear(m: nn.Linear) -> dict[str, Any]:
    return {"out_features": m.weight.shape[0], "in_features": m.weight.shape[1]}


@handler(nn.modules.conv._ConvNd)
def conv(m: nn.modules.conv._ConvNd) -> dict[str, Any]:
    """Read the channels off the weight; `groups` is set from the traced call, before this is read."""
    first, second = m.weight.shape[0], m.weight.shape[1] * m.groups
    out, into = (second, first) if m.transposed else (first, second)
    return {"out_channels": out, "in_channels": into}


@handler(nn.modules.batchnorm._NormBase)
def batch_norm(m: nn.modules.batchnorm._NormBase) -> dict[str, Any]:
    known = m.weight if m.weight is not None else m.running_mean
    return {} if known is None else {"num_features": known.shape[0]}


@handler(nn.LayerNorm, nn.RMSNorm)
def layer_norm(m: nn.LayerNorm) -> dict[str, Any]:
    return {} if m.weight is None else {"normalized_shape": tuple(m.weight.shape)}


@handler(nn.GroupNorm)
def group_norm(m: nn.GroupNorm) -> dict[str, Any]:
    return {} if m.weight is None else {"num_channels": m.weight.shape[0]}


@handler(nn.Embedding)
def embedding(m: nn.Embedding) -> dict[str, Any]:
    return {"num_embeddings": m.weight.shape[0], "embedding_dim": m.weight.shape[1]}


@handler(nn.PReLU)
def prelu(m: nn.PReLU) -> dict[str, Any]:
    return {"num_parameters": m.weight.shape[0]}


@handler(nn.RNNBase)
def recurrent(m: nn.RNNBase) -> dict[str, Any]:
    rows, columns = m.get_parameter("weight_ih_l0").shape
    sizes = {"input_size": columns, "hidden_size": rows // {"LSTM": 4, "GRU": 3}.get(m.mode, 1)}
    return {**sizes, "proj_size": len(m.get_parameter("weight_hr_l0"))} if m.proj_size else sizes


@handler(nn.modules.rnn.RNNCellBase)
def recurrent_cell(m: nn.modules.rnn.RNNCellBase) -> dict[str, Any]:
    return {"input_size": m.weight_ih.shape[1], "hidden_size": m.weight_hh.shape[1]}


@handler(nn.Bilinear)
def bilinear(m: nn.Bilinear) -> dict[str, Any]:
    out, first, second = m.weight.shape
    return {"out_features": out, "in1_features": first, "in2_features": second}


@dataclass(frozen=True)
class Change:
    """A constant that module `path` used and that follows the cut; ints, or tuples of ints.

    sure: it is what the attribute named `argument` means in a module of torch.nn, or of experts; others are only equal
        numbers.
    """

    path: str
    argument: str
    old: Any
    new: Any
    position: int | None = None  # in a list argument
    sure: bool = False


def family_attributes(module: nn.Module) -> dict[str, Any]:
    attributes: dict[str, Any] = {}
    for kinds, function in HANDLERS:
        if isinstance(module, kinds):
            attributes.update({k: v for k, v in function(module).items() if getattr(module, k, v) != v})
    return attributes


def traced_changes(network: Network, alive: Survivors) -> list[Change]:
    """Constants of the trace that follow the cut, with the module that used them; some keep their value."""
    changes: list[Change] = []
    gone = frozenset().union(*(b.gone for b in emptied_branches(network.space, alive)))
    for node in network.captured.graph.nodes:
        if node.op != "call_function" or node.name in gone:
            continue
        fact = network.labelled.facts[node.name]
        path = module_of(node)
        bound = bound_arguments(node)
        for patch in fact.patches:
            old, new = _before_after(patch, bound, alive, network)
            if isinstance(old, int):
                sure = _is_torchs(network.model, path, patch.argument)
                changes.append(Change(path, patch.argument, old, new, patch.position, sure))
        if op_name(node.target) in NORMS_WITHOUT_WEIGHTS:
            name, labels = NORMS_WITHOUT_WEIGHTS[op_name(node.target)], network.labelled.facts[node.name].labels[0]
            if labels and labels[1] is not None and _is_torchs(network.model, path, name):
                changes.append(Change(path, name, len(labels[1]), alive.count(labels[1]), sure=True))
        for label in _chosen_along(fact, network):
            old, new = len(label), alive.count(label)
            changes += [Change(path, "num_experts", old, new, sure=sure) for sure in (True, False)]
        if fact.rewrite is not None and op_name(node.target).startswith("split"):
            sizes = tuple(network.captured.concrete(v)[bound["dim"]] for v in node.meta["val"])
            new_sizes = tuple(fact.rewrite(alive)[1][1])
            if sizes != new_sizes:
                changes.append(Change(path, "split_sizes", sizes, new_sizes))
                changes += [Change(path, "split_size", a, b) for a, b in zip(sizes, new_sizes, strict=True) if a != b]
    return list(dict.fromkeys(changes))


def _chosen_along(fact: Fact, network: Network) -> Iterator[np.ndarray]:
    """Labels of dimensions that a router chooses along, or looks up what was chosen in."""
    if fact.choice is not None:
        yield fact.choice.label
    if fact.look_up is not None:
        label = looked_up_label(network.labelled, fact.look_up)
        if label is not None:
            yield label


# norms that know their width by an attribute alone, where they have no weights
NORMS_WITHOUT_WEIGHTS = {"batch_norm": "num_features", "instance_norm": "num_features", "group_norm": "num_channels"}


def _is_torchs(model: nn.Module, path: str, attribute: str) -> bool:
    """Whether the attribute is one of a class of torch.nn, so that its name says what it means."""
    try:
        module = model.get_submodule(path)
    except AttributeError:
        return False
    kinds = [k for k in type(module).__mro__ if k.__module__.startswith("torch.nn.modules")]
    return len(kinds) > 1 and attribute in vars(module)


def _before_after(patch: Patch, bound: dict[str, Any], alive: Survivors, network: Network) -> tuple[Any, Any]:
    old = bound[patch.argument] if patch.position is None else bound[patch.argument][patch.position]
    if isinstance(old, torch.fx.Node):
        old = network.captured.concrete(old.meta["val"])
    if patch.value is not None:
        return old, patch.value(alive)
    return (old, old) if old == -1 or patch.label is None else (old, old * alive.count(patch.label) // len(patch.label))
