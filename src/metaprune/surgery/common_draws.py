"""Common random numbers for a proof: what a forward draws is drawn once at full size, and sliced wherever it is cut.

A network that samples (a VAE, dropout that is always on, noise layers) equals its masked original only given the same
draws. The masked run records them, in order; the sliced graph and the module form take the surviving part of each.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode

from metaprune.elastic.weights import slice_tensor
from metaprune.graph.call import Labels, Survivors, bound_arguments

_NORMAL = ("normal.Tensor_float", "normal.float_Tensor", "normal.Tensor_Tensor")
_BERNOULLI = ("bernoulli", "bernoulli_.Tensor", "bernoulli.Tensor")
# these depend on other values than sizes, in a way that no slice of a common draw gives
_BY_SEED = ("multinomial", "poisson", "binomial", "_standard_gamma", "_sample_dirichlet", "rrelu_with_noise")


@dataclass(frozen=True)
class Draw:
    """A tensor that was drawn at full size, and the labels of its dimensions."""

    value: Tensor
    labels: Labels

    def surviving(self, alive: Survivors) -> Tensor:
        """Slice the draw to what survives."""
        return slice_tensor(self.value, self.labels, alive)


def draws_numbers(node: fx.Node) -> bool:
    """Tell whether a node of the graph draws random numbers in evaluation mode."""
    if not isinstance(node.target, torch._ops.OpOverload) or torch.Tag.nondeterministic_seeded not in node.target.tags:
        return False
    bound = bound_arguments(node)
    training = bound.get("train", bound.get("training", True))
    return training is not False and bound.get("dropout_p", 1.0) != 0.0


class Recorded(TorchDispatchMode):
    """Draws at full size and keeps what was drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.draws: list[Draw] = []
        self._labels: Iterable[Labels | None] = ()

    def expect(self, labels: Iterable[Labels | None]) -> None:
        """Say the labels of the step that runs next."""
        self._labels = labels

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        torch.manual_seed(len(self.draws))
        like = _result_like(func, args, kwargs)
        standard = None if like is None else _standard(func, like)
        value = func(*args, **kwargs) if standard is None else _applied(func, standard, args)
        drawn = standard if standard is not None else value
        self.draws.append(Draw(drawn.detach().clone(), self._labels_of(drawn)) if isinstance(drawn, Tensor) else _NONE)
        return value

    def _labels_of(self, drawn: Tensor) -> Labels:
        labels = next((ls for ls in self._labels if ls is not None and len(ls) == drawn.dim()), [None] * drawn.dim())
        return [x if x is None or len(x) == n else None for x, n in zip(labels, drawn.shape, strict=True)]


class Replayed(TorchDispatchMode):
    """Gives the surviving part of the recorded draws, in their order."""

    def __init__(self, draws: Iterable[Draw], alive: Survivors):
        super().__init__()
        self._draws, self._alive, self._count = iter(draws), alive, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        torch.manual_seed(self._count)  # what is drawn by its seed alone is drawn alike
        self._count += 1
        draw = next(self._draws, _NONE)
        like = _result_like(func, args, kwargs)
        if like is None:
            return func(*args, **kwargs)
        value = draw.surviving(self._alive)
        return _applied(func, value.to(like.device), args) if value.shape == like.shape else func(*args, **kwargs)


_NONE = Draw(torch.empty(0), [None])


def _name(func: Any) -> str:
    return f"{func._schema.name.partition('::')[2]}.{func._overloadname}".removesuffix(".default")


def _result_like(func: Any, args: tuple, kwargs: dict[str, Any]) -> Tensor | None:
    """A tensor like the draw; None for draws that are common by their seed alone."""
    name = _name(func)
    if name.partition(".")[0] in _BY_SEED:
        return None
    if func._schema.name.endswith("_") or name == "native_dropout":
        return args[0]
    if name in _NORMAL:
        return torch.broadcast_tensors(*(a for a in args[:2] if isinstance(a, Tensor)))[0]
    if name in _BERNOULLI:
        return args[0]
    value = func(*args, **kwargs)
    return value if isinstance(value, Tensor) else None


def _standard(func: Any, like: Tensor) -> Tensor | None:
    """What a draw that depends on values is made from: standard normal or uniform numbers; None for all others."""
    if _name(func) in _NORMAL:
        return torch.randn(like.shape, dtype=like.dtype, device=like.device)
    if _name(func) in (*_BERNOULLI, "native_dropout"):
        return torch.rand(like.shape, dtype=torch.float64, device=like.device)
    return None


def _applied(func: Any, drawn: Tensor, args: tuple) -> Any:
    """The operator's result, made from what was drawn."""
    name = _name(func)
    if name == "native_dropout":
        keep = drawn < 1 - args[1]
        return args[0] * keep / (1 - args[1]), keep
    if name in _NORMAL:
        value = args[0] + args[1] * drawn
    elif name in _BERNOULLI:
        probability = args[0] if name == "bernoulli" else args[1]
        value = (drawn < probability).to(args[0].dtype)
    else:
        value = drawn
    return args[0].copy_(value) if func._schema.name.endswith("_") else value.clone()
