"""The proof of a cut: sliced output = masked output on the example inputs, in float64."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from metaprune.core.errors import VacuousProofWarning, VerificationError
from metaprune.elastic.masked import run_masked
from metaprune.elastic.weights import SlicedTensors, slice_tensor
from metaprune.graph.call import Survivors
from metaprune.network import Network

TOLERANCE = 1e-9  # relative, float64


def relative_error(actual: Any, expected: Any) -> float:
    """Largest difference over all output tensors, relative to the largest expected entry of each tensor.

    Infinite if structures, shapes or finiteness differ.
    """
    a, b = pytree.tree_leaves(actual), pytree.tree_leaves(expected)
    if len(a) != len(b):
        return float("inf")
    worst = 0.0
    for x, y in zip(a, b, strict=True):
        if not isinstance(y, torch.Tensor):
            continue
        if not isinstance(x, torch.Tensor) or x.shape != y.shape:
            return float("inf")
        x, y = (torch.view_as_real(v).double() if v.is_complex() else v.double() for v in (x, y))
        finite = torch.isfinite(y)
        if not torch.equal(torch.isfinite(x), finite) or not torch.equal(x[~finite], y[~finite]):  # NaN equals nothing
            return float("inf")
        difference = (x - y)[finite].abs().max() if finite.any() else torch.zeros(())
        scale = y[finite].abs().max() if finite.any() else torch.ones(())
        worst = max(worst, float(difference / scale if scale > 0 else difference))
    return worst


def to_float64(value: Any) -> Any:
    return pytree.tree_map(lambda x: x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x, value)


class _Promoted(TorchFunctionMode):
    """Casts that a forward hard-codes (rotary embeddings are computed in float32) go to float64 too."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func in (torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16):
            func = torch.Tensor.double
        promote = lambda v: torch.float64 if isinstance(v, torch.dtype) and v.is_floating_point else v  # noqa: E731
        return func(*(promote(a) for a in args), **{n: promote(v) for n, v in (kwargs or {}).items()})


@torch.no_grad()
def run_float64(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Output of a copy in float64 and eval mode, whatever dtypes its forward names."""
    probe = copy.deepcopy(module).double().eval()
    args, kwargs = to_float64((args, kwargs))
    with _Promoted():
        return probe(*args, **kwargs)


def _varied(x: Any) -> Any:
    """Constant inputs (torch.zeros as an example) prove little: noise in 0..1 is added to them."""
    if not isinstance(x, torch.Tensor) or not x.is_floating_point() or x.numel() < 2 or (x != x.flatten()[0]).any():
        return x
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    return x + noise.to(x.device)


_DEFECT = "Nothing was changed. This is a defect of an operator rule: please report it with the output of net.explain()"


class Proof:
    """Runs the sliced graph once and compares with it whatever claims to be equal."""

    def __init__(self, network: Network, alive: Survivors, tensors: Mapping[str, torch.Tensor]):
        self.network, self.alive, self.tensors = network, alive, tensors
        self.args, self.kwargs = pytree.tree_map(_varied, to_float64(network.captured.example))
        program = network.at(alive).program(dtype=torch.float64)
        part = SlicedTensors(tensors, network.labelled, alive, torch.float64)
        try:
            with torch.no_grad():
                self.sliced = network.program.run(program, part, self.args, self.kwargs)
        except RuntimeError as error:
            raise VerificationError(f"the cut network does not run: {error}\n{_DEFECT}") from error

    def masked_error(self) -> float:
        """Relative error of the sliced graph against the masked original."""
        whole = self.network.at().program(dtype=torch.float64)
        full = SlicedTensors(self.tensors, self.network.labelled, None, torch.float64)
        labelled = self.network.labelled
        with torch.no_grad():
            masked = run_masked(self.network.program, whole, labelled, full, self.alive, self.args, self.kwargs)
        return relative_error(self.sliced, self._without_dropped(masked))

    def _without_dropped(self, masked: Any) -> Any:
        """The surviving indices of the masked output (all of them, unless outputs were left free)."""
        output = next(n for n in self.network.captured.graph.nodes if n.op == "output")
        leaves, spec = pytree.tree_flatten(masked)
        nodes = pytree.tree_leaves(output.args[0])
        facts = self.network.labelled.facts
        remaining = [
            slice_tensor(leaf, facts[node.name].labels[0] or [], self.alive) if isinstance(leaf, torch.Tensor) else leaf
            for leaf, node in zip(leaves, nodes, strict=True)
        ]
        return pytree.tree_unflatten(remaining, spec)

    def check(self) -> float:
        """Raises VerificationError unless sliced = masked; returns the error."""
        leaves = [x for x in pytree.tree_leaves(self.sliced) if isinstance(x, torch.Tensor) and x.is_floating_point()]
        if any(x.isnan().any() for x in leaves):
            raise VerificationError(
                "the cut network's output holds NaN, which equals nothing: look for NaN in the weights or the example "
                "inputs, or a piece of the network that kept no channel (raise min_keep). Nothing was changed"
            )
        if leaves and not any(x.any() for x in leaves):
            warnings.warn(
                "all outputs are zero on the example inputs, so their equality says little: trace with other inputs",
                VacuousProofWarning,
                stacklevel=4,
            )
        error = self.masked_error()
        if not error <= TOLERANCE:
            raise VerificationError(
                f"the cut network differs from its masked original by {error:.2e} (relative, float64; allowed "
                f"{TOLERANCE}). {_DEFECT}"
            )
        return error

    def module_error(self, module: nn.Module) -> float:
        """Relative error of a module against the sliced graph (a copy runs in float64, eval mode)."""
        with torch.random.fork_rng(devices=[]):
            return relative_error(run_float64(module, self.args, self.kwargs), self.sliced)
