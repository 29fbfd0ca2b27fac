"""What must hold for every network: cut = mask, costs = counts, and the input model is left as it was."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from metaprune.graph.capture import untouched
from metaprune.graph.transformers_models import as_traced
from metaprune.network import Network
from metaprune.search.units import units_of
from metaprune.surgery import Pruned, cut
from metaprune.surgery.verify import TOLERANCE, call_in_float64, in_float64, relative_error
from metaprune.tracing import trace
from metaprune.values import Constraints, Plan, Space

FULL_WIDTH_TOLERANCE = 1e-5  # float32: eager code may take fused paths that the traced graph does not


def random_plan(space: Space, keep: float, seed: int, constraints: Constraints | None = None) -> Plan:
    """Keeps a random share `keep` of every group: the largest allowed width within it, or else the smallest allowed."""
    draw = np.random.default_rng(seed)
    widths = space.widths.copy()
    for unit in units_of(space, constraints or Constraints()):
        within = int((unit.ratios() <= keep + 1e-12).sum())
        widths[unit.groups] = unit.levels[max(within, 1) - 1]
    masks = [np.zeros(group.width, dtype=bool) for group in space]
    for mask, width in zip(masks, widths, strict=True):
        mask[draw.permutation(len(mask))[:width]] = True
    return Plan.of(space, masks)


@torch.no_grad()
def perturb(model: nn.Module, seed: int = 0, scale: float = 0.05) -> nn.Module:
    """Noise on every parameter and BatchNorm statistic, in place: zero gammas and unit variances hide mistakes."""
    draw = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=draw).to(parameter) * scale)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=draw) * 0.1)
            variance = cast("torch.Tensor", module.running_var)
            variance.copy_(torch.rand(variance.shape, generator=draw) + 0.5)
    return model


def counted_macs(module: nn.Module, *args: Any, **kwargs: Any) -> int:
    """Multiply-accumulates that PyTorch's dispatcher sees; what is fused runs product by product to be countable."""
    with FlopCounterMode(display=False) as counter, _unfused():
        module(*args, **kwargs)  # with gradients on: nn.MultiheadAttention's fused path cannot be counted
    assert counter.get_total_flops() % 2 == 0
    return counter.get_total_flops() // 2


@contextmanager
def _unfused() -> Iterator[None]:
    """Attention and LSTM as single products."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="TF32 acceleration")  # reading mkldnn's flags warns on some builds
        with sdpa_kernel(SDPBackend.MATH), torch.backends.mkldnn.flags(enabled=False):
            yield


def output_error(a: nn.Module, b: nn.Module, args: tuple, kwargs: dict[str, Any]) -> float:
    """Relative difference of the outputs of two modules: copies in float64 and eval mode."""
    outputs = []
    with torch.random.fork_rng(devices=[]):
        for module in (a, b):
            torch.manual_seed(0)  # a forward that draws draws the same
            outputs.append(call_in_float64(in_float64(module), args, kwargs, traced=True))
    return relative_error(*outputs)


def _hooks(module: nn.Module) -> dict[str, list[int]]:
    held = {name: hooks for name, hooks in vars(module).items() if name.endswith("_hooks") and isinstance(hooks, dict)}
    return {name: [id(h) for h in hooks.values()] for name, hooks in held.items()}


def _snapshot(model: nn.Module) -> dict[str, Any]:
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {
        "tensor objects": {n: id(t) for n, t in tensors},
        "requires_grad": {n: t.requires_grad for n, t in tensors},
        "gradient objects": {n: id(t.grad) if t.grad is not None else None for n, t in tensors},
        "values": {n: t.detach().clone() for n, t in tensors},
        "gradients": {n: t.grad.clone() for n, t in tensors if t.grad is not None},
        "training modes": {n: m.training for n, m in model.named_modules()},
        "attributes": {n: sorted(vars(m)) for n, m in model.named_modules()},
        "hooks": {n: _hooks(m) for n, m in model.named_modules()},
        "torch's random state": torch.random.get_rng_state(),
        "numpy's random state": np.random.get_state(legacy=False),  # noqa: NPY002 (the global one must not move)
        "python's random state": random.getstate(),
        "default dtype": torch.get_default_dtype(),
        "grad mode": torch.is_grad_enabled(),
    }


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and _bits(a) == _bits(b)
    if isinstance(a, np.ndarray):
        return bool(np.array_equal(a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def _bits(tensor: torch.Tensor) -> bytes | None:
    return None if tensor.is_meta else tensor.contiguous().reshape(-1).view(torch.uint8).cpu().numpy().tobytes()


@contextmanager
def assert_untouched(model: nn.Module) -> Iterator[None]:
    """Assert that weights, buffers, modes, gradients, hooks and global random states are bit-identical afterwards."""
    before = _snapshot(model)
    yield
    after = _snapshot(model)
    for what, value in before.items():
        assert _same(value, after[what]), f"{what} changed"


def assert_cut_equals_mask(
    model: nn.Module,
    example_inputs: Any,
    *,
    keep: float = 0.5,
    seeds: Sequence[int] = (0, 1, 2),
    example_kwargs: dict[str, Any] | None = None,
) -> list[Pruned]:
    """Trace, cut to a random `keep` for every seed, and check all that is promised; returns the cuts.

    Promised: sliced = masked and module form = graph form (1e-9, float64); MACs = what the dispatcher counts;
    parameters = those of the cut model; cost of a plan = cost of its widths; the traced graph at full width = the
    model; the model is left as it was.
    """
    with assert_untouched(model):
        network = trace(model, example_inputs, example_kwargs)
        _check_full_width(network)
        return [_check_cut(network, random_plan(network.space, keep, seed)) for seed in seeds]


def _check_full_width(network: Network) -> None:
    args, kwargs = network.captured.example
    with torch.no_grad(), untouched(network.model), as_traced(network.model):
        torch.manual_seed(0)  # a forward that draws draws the same
        eager = network.model(*args, **kwargs)
        torch.manual_seed(0)
        error = relative_error(network.run(*args, **kwargs), eager)
    assert error <= FULL_WIDTH_TOLERANCE, f"the traced graph differs from the model by {error:.1e}"
    leaves = [x for x in pytree.tree_leaves(eager) if isinstance(x, torch.Tensor)]
    assert any(x.any() for x in leaves), "all outputs are zero: this network can prove nothing"
    full = network.cost()
    assert full.params == sum(p.numel() for p in network.model.parameters())


def _check_cut(network: Network, plan: Plan) -> Pruned:
    pruned = cut(network, plan)
    assert pruned.error is not None and pruned.error <= TOLERANCE
    args, kwargs = network.captured.example
    graph = pruned.as_graph() if pruned.form == "module" else pruned.model
    error = output_error(graph, pruned.model, args, kwargs)
    assert error <= TOLERANCE, f"graph form and module form differ by {error:.1e}"
    batch = next((int(x.shape[0]) for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)), 1)
    model, cost = network.cost_model(batch), network.cost(plan, batch=batch)
    if not model.inexact:
        assert cost == network.cost(plan.widths(network.space), batch=batch)
    with torch.random.fork_rng(devices=[]):
        counted = counted_macs(copy.deepcopy(pruned.model).eval(), *args, **kwargs)
    assert cost.macs == counted, f"{cost.macs} MACs by the rules, {counted} by the dispatcher"
    for form in (pruned.model, graph):
        assert cost.params == sum(p.numel() for p in form.parameters())
    return pruned
