"""Empty branches in the module form: modules that are run for them alone become idle, or what is left of them.

The module that ends in the last product of a branch hands its output to the addition, more or less directly. It
becomes a `Constant`; norms before it, a BatchNorm behind it and the like become `Idle`. The proof says whether that is
the cut network.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from metaprune.core.errors import first_line
from metaprune.elastic.folding import emptied_branches, outermost
from metaprune.graph.branches import hands_on
from metaprune.graph.call import Survivors
from metaprune.graph.captured import module_of
from metaprune.network import Network
from metaprune.surgery.verify import Proof, in_float64

DroppedModules = dict[str, list[int]]
"""Path of a module -> [what stands there, how many values it returns, which of them it is]; [.., 0, 0]: it alone."""
IDLE, CONSTANT, WHOLE_CONSTANT = 0, 1, 2


class Idle(nn.Module):
    """Stands where nothing is left to do: hands its first input on, at `position` of `count` values, or alone."""

    def __init__(self, count: int = 0, position: int = 0):
        super().__init__()
        self.count, self.position = count, position

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.returned(next(x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)))

    def returned(self, value: Tensor) -> Any:
        """Put a value in the place where the module had it."""
        if not self.count:
            return value
        return tuple(value if i == self.position else None for i in range(self.count))


class Constant(Idle):
    """What is left of an empty branch: a number per channel, or zero, whatever the input is.

    constant: parameter of the size of the channels, ones behind it for positions; None is zero.
    whole: it is returned as large as the input, for forwards that view it or write into it.
    """

    def __init__(self, constant: nn.Parameter | None, whole: bool, count: int = 0, position: int = 0):
        super().__init__(count, position)
        self.constant = constant
        self.whole = whole

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        given = (x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.is_floating_point())
        like = next(given, torch.zeros(()))
        value = like.new_zeros(()) if self.constant is None else self.constant
        if self.whole:
            shape = list(like.shape)
            if value.dim():
                shape[-value.dim()] = value.shape[0]
            value = value.expand(shape).clone()
        return self.returned(value)


def dropped_modules(network: Network, alive: Survivors, proof: Proof) -> tuple[DroppedModules, str]:
    """Find the modules that empty branches leave nothing to do for; a text says why there is no module form."""
    branches = outermost(emptied_branches(network.space, alive))
    if not branches:
        return {}, ""
    gone = frozenset().union(*(b.gone for b in branches))
    idle = _idle_modules(network, gone)
    ends = {b.name.partition("#")[0] for b in branches}
    if missing := sorted(ends - set(idle)):
        return {}, f"the branch {missing[0]!r} is no module of its own"
    left = {t for b in branches for t in b.tensors if not any(t.startswith(f"{path}.") for path in idle)}
    if left:
        return {}, f"{sorted(left)[0]} is a parameter of a dropped branch, but belongs to no module of it"
    try:
        returned = _returned(network, idle, proof)
    except Exception as error:  # the user's forward may raise anything
        return {}, f"the model does not run with hooks ({type(error).__name__}: {first_line(error)[:160]})"
    return {path: [CONSTANT if path in ends else IDLE, *returned.get(path, (0, 0))] for path in idle}, ""


def as_large_as_inputs(dropped: DroppedModules) -> DroppedModules:
    """Let every constant be as large as its input."""
    return {path: [WHOLE_CONSTANT if kind else IDLE, *where] for path, (kind, *where) in dropped.items()}


def drop_modules(model: nn.Module, dropped: DroppedModules, constants: Mapping[str, nn.Parameter]) -> None:
    """Replace modules in place. constants: by the names of their parameters."""
    for path, (kind, *where) in dropped.items():
        new = Constant(constants.get(f"{path}.constant"), kind == WHOLE_CONSTANT, *where) if kind else Idle(*where)
        model.set_submodule(path, new)
        new.train(model.training)


def modules_dropped_in(model: nn.Module) -> DroppedModules:
    """Read off a module form what `drop_modules` replaced in it."""
    dropped: DroppedModules = {}
    for path, module in model.named_modules():
        if isinstance(module, Idle):
            kind = CONSTANT + module.whole if isinstance(module, Constant) else IDLE
            dropped[path] = [kind, module.count, module.position]
    return dropped


def renumbered(model: nn.Module, dropped: DroppedModules) -> dict[str, dict[str, int]]:
    """Number anew what is left of modules with a `layer_idx`: a cache asks number 0 how long it is."""
    kinds = {type(m) for p in dropped if type(getattr(m := model.get_submodule(p), "layer_idx", None)) is int}
    numbered: dict[str, dict[str, int]] = {}
    for kind in kinds:
        kept = [path for path, m in model.named_modules() if type(m) is kind and path not in dropped]
        for i, path in enumerate(kept):
            if getattr(model.get_submodule(path), "layer_idx", None) != i:
                numbered[path] = {"layer_idx": i}
    return numbered


def _idle_modules(network: Network, gone: frozenset[str]) -> list[str]:
    """The largest modules all of whose nodes are gone."""
    busy: set[str] = set()
    idle: set[str] = set()
    for node in network.captured.graph.nodes:
        if node.op == "call_function" and not hands_on(node):
            parts = module_of(node).split(".")
            paths = {".".join(parts[:i]) for i in range(1, len(parts) + 1)} - {""}
            (idle if node.name in gone else busy).update(paths)
    idle -= busy
    modules = {path for path, _ in network.model.named_modules()}
    return sorted(p for p in idle & modules if p.rpartition(".")[0] not in idle)


def _returned(network: Network, paths: list[str], proof: Proof) -> dict[str, tuple[int, int]]:
    """Run a copy of the model; find how many values its modules return, and which is the first tensor among them."""
    probe, returned = in_float64(network.model), {}

    def look(path: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, (tuple, list)):
                tensors = [i for i, x in enumerate(output) if isinstance(x, Tensor)]
                returned[path] = (len(output), tensors[0] if tensors else 0)

        return hook

    for path in paths:
        probe.get_submodule(path).register_forward_hook(look(path))
    proof.call(probe, proof.args, proof.kwargs, traced=True)
    return returned
