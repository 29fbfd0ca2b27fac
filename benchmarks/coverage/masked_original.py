"""A second judge of a cut, which reads no label and no graph: the user's own module with zeros where the plan drops.

Parameters are zero in the rows of every dropped channel, and the module's own forward runs in float64. Statistics over
channels (LayerNorm, GroupNorm, RMSNorm, a mean over channels) are taken over the channels that are left.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from metaprune.core.side_effects import copy_model
from metaprune.network import Network
from metaprune.surgery import Pruned
from metaprune.surgery.common_draws import Replayed
from metaprune.surgery.verify import Proof, call_in_float64, in_float64, relative_error
from metaprune.values import Plan


def original_error(network: Network, pruned: Pruned) -> float:
    """Relative difference, in float64, of a cut network and its masked original; infinite where shapes differ."""
    args, kwargs = network.captured.example
    alive = network.survivors(pruned.plan)
    proof = Proof(network, alive, network.tensors)  # for the random numbers of networks that draw
    everything = network.survivors(Plan())
    draws = nullcontext() if proof._draws is None else Replayed(proof._draws, everything)
    with torch.random.fork_rng(devices=[]):
        original = _call(masked_original(network, pruned.plan), args, kwargs, _OverSurvivors(), draws)
        cut = _call(in_float64(pruned.model), args, kwargs, nullcontext(), proof.common_draws)
    if any(a.shape != b.shape for a, b in _pairs(original, cut)):  # an output whose width was left free
        original = proof._without_dropped(original)
    return relative_error(cut, original)


def _pairs(a: Any, b: Any) -> list[tuple[Tensor, Tensor]]:
    pairs = zip(pytree.tree_leaves(a), pytree.tree_leaves(b), strict=True)
    return [(x, y) for x, y in pairs if isinstance(x, Tensor) and isinstance(y, Tensor)]


def _call(
    module: nn.Module, args: tuple, kwargs: dict[str, Any], mode: AbstractContextManager, draws: AbstractContextManager
) -> Any:
    with draws, mode:
        return call_in_float64(module, args, kwargs, traced=True)


@torch.no_grad()
def masked_original(network: Network, plan: Plan) -> nn.Module:
    """A copy of the model in float64 whose parameters and buffers are zero in the rows of dropped channels."""
    model = copy_model(network.model, lambda t: t.double() if t.is_floating_point() else t, {}).eval()
    tensors = dict([*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)])
    for group, kept in zip(network.space, plan.masks(network.space), strict=True):
        for member in group.members:
            rows = torch.from_numpy(member.rows[~kept]).reshape(-1)
            tensors[member.parameter].index_fill_(member.dim, rows, 0)
    return model


class _OverSurvivors(TorchFunctionMode):
    """Statistics over channels leave out channels that are exactly zero."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func in (F.layer_norm, F.rms_norm):
            return _over_last(func, *args, **kwargs)
        if func is F.group_norm:
            return _by_group(*args, **kwargs)
        if func in (torch.mean, Tensor.mean):
            return _mean(func, *args, **kwargs)
        if func is torch._weight_norm:
            return func(*args, **kwargs).nan_to_num()  # a dropped row has the norm zero
        return func(*args, **kwargs)


def _alive(x: Tensor, dims: list[int]) -> Tensor:
    """Where `x` is not zero throughout, along `dims`; all other dimensions have size one."""
    others = [d for d in range(x.dim()) if d not in dims]
    return (x != 0).sum(others, keepdim=True) > 0 if others else x != 0


def _over_last(func: Any, x: Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: Any = None) -> Tensor:
    dims = list(range(x.dim() - len(tuple(shape)), x.dim()))
    alive = _alive(x, dims) if weight is None else (weight != 0) | (bias != 0 if bias is not None else False)
    count = alive.sum()
    x = x * alive
    if func is F.layer_norm:
        x = (x - x.sum(dims, keepdim=True) / count) * alive
    eps = (1e-5 if func is F.layer_norm else torch.finfo(x.dtype).eps) if eps is None else eps
    x = x * torch.rsqrt(x.square().sum(dims, keepdim=True) / count + eps)
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _by_group(x: Tensor, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
    alive = _alive(x, [1]) if weight is None else ((weight != 0) | (bias != 0)).reshape(1, -1, *[1] * (x.dim() - 2))
    rows = (alive * torch.ones_like(x[:1])).reshape(1, groups, -1)
    y = x.reshape(x.shape[0], groups, -1) * rows
    count = rows.sum(2, keepdim=True).clamp(min=1)  # a whole group may be dropped
    y = (y - y.sum(2, keepdim=True) / count) * rows
    y = (y * torch.rsqrt(y.square().sum(2, keepdim=True) / count + eps)).reshape(x.shape)
    if weight is None:
        return y
    shape = (1, -1, *[1] * (x.dim() - 2))
    return y * weight.reshape(shape) + bias.reshape(shape)


def _mean(func: Any, x: Tensor, dim: Any = None, keepdim: bool = False, **options: Any) -> Tensor:
    """Over one dimension, the last or that of an image's channels: others hold places, which ReLU may make zero."""
    mean = func(x, dim, keepdim, **options) if dim is not None else func(x, **options)
    dims = [] if dim is None else [d % x.dim() for d in ((dim,) if isinstance(dim, int) else dim)]
    if dims not in ([x.dim() - 1], [1] if x.dim() == 4 else []):
        return mean
    return mean * (x.shape[dims[0]] / _alive(x, dims).sum().clamp(min=1))
