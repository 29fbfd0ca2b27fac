"""The calls of a model that its trace did not see: the default call, padded, in train mode, generation with a cache.

A module form is handed over for its user to call as he likes. So whatever the original does in these calls, it has to
do as well. What the original itself cannot do, or does differently, is not asked of it.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from metaprune.core.batches import copied
from metaprune.core.errors import first_line
from metaprune.graph.capture import untouched
from metaprune.graph.captured import leaves_with_paths
from metaprune.graph.transformers_models import keeps_cache
from metaprune.network import Network
from metaprune.surgery.verify import TOLERANCE, Proof, call_in_float64, in_float64, relative_error, to_float64

_NEW_TOKENS = 2
_GENERATE = {"max_new_tokens": _NEW_TOKENS, "min_new_tokens": _NEW_TOKENS, "do_sample": False, "num_beams": 1}
_RETURN = {"output_logits": True, "return_dict_in_generate": True, "pad_token_id": 0}


@dataclass(frozen=True)
class OtherCalls:
    """Which calls the original model takes besides the traced one.

    default: leaves of the output, by name, that the call with tensors alone shares with the traced call.
    train: leaves of the output in train mode; None: it does not run there, or its own code knows no such mode.
    generates: `generate` gives the same logits with and without its cache.
    runs: the call with tensors alone runs in the model's own dtype, which kernels may depend on.
    padded: leaves of the output that an `attention_mask` which hides the last token leaves as they were before it;
        None: there is no such call. Other kernels see a mask: those of `transformers` repeat heads themselves then.
    """

    default: frozenset[str] = frozenset()
    train: int | None = None
    generates: bool = False
    runs: bool = False
    padded: frozenset[str] | None = None

    @classmethod
    def of(cls, network: Network) -> OtherCalls:
        """Try them on a copy of the network's model, in float64."""
        args, kwargs = to_float64(network.captured.example)
        differs = kwargs.keys() != _tensors_only(kwargs).keys() or keeps_cache(network.model)
        mask = _last_token_hidden(network.model, args, kwargs)
        if (
            not differs
            and mask is None
            and not hasattr(network.model, "generate")
            and not _differs_in_training(network)
        ):
            return cls()
        probe = in_float64(network.model)
        same, runs = frozenset[str](), False
        if differs:
            runs = _attempt(lambda: _run(network.model, network) or True) is not None
            traced = _attempt(lambda: _named(call_in_float64(probe, args, kwargs, traced=True)))
            default = _attempt(lambda: _named(call_in_float64(probe, args, _tensors_only(kwargs))))
            same = frozenset(_equal_leaves(traced or {}, default or {}))
        padded = None
        if mask is not None:
            expected = _attempt(lambda: _named(call_in_float64(probe, args, kwargs, traced=True)))
            hidden = _attempt(lambda: _named(call_in_float64(probe, args, {**_tensors_only(kwargs), **mask})))
            if expected is not None and hidden is not None:
                padded = frozenset(_equal_leaves(_but_last(expected, mask), _but_last(hidden, mask)))
        generates = _attempt(lambda: _cache_error(probe, args, _tensors_only(kwargs)))
        train = None
        if _differs_in_training(network):
            train = _attempt(lambda: len(pytree.tree_leaves(call_in_float64(probe.train(), args, kwargs))))
        return cls(same, train, generates is not None and generates <= TOLERANCE, runs, padded)

    def failure(self, module: nn.Module, probe: nn.Module, proof: Proof, generate: bool = True) -> str:
        """Say in which of these calls a module is not what the original was; empty where it is.

        Args:
            probe: its copy of `in_float64`.
            generate: try generation, too.
        """
        args, kwargs = proof.args, proof.kwargs
        try:
            if self.default:
                expected, actual = _named(proof.sliced), _named(proof.call(probe, args, _tensors_only(kwargs)))
                wrong = sorted(self.default - set(_equal_leaves(expected, actual)))
                if wrong:
                    return f"its default call gives another {wrong[0] or 'output'}"
            mask = _last_token_hidden(module, args, kwargs)
            if self.padded is not None and mask is not None:
                hidden = _but_last(_named(proof.call(probe, args, {**_tensors_only(kwargs), **mask})), mask)
                expected = _but_last(_named(proof.sliced), mask)
                if wrong := sorted(self.padded - set(_equal_leaves(expected, hidden))):
                    return f"with an attention mask it gives another {wrong[0] or 'output'}"
            if self.runs:
                _run(module, proof.network)
            if generate and self.generates and (error := _cache_error(probe, args, _tensors_only(kwargs))) > TOLERANCE:
                return f"it generates otherwise with a cache than without (relative error {error:.1e})"
            if self.train is not None:
                leaves = len(pytree.tree_leaves(proof.call(probe.train(), args, kwargs)))
                if leaves != self.train:
                    return f"in train mode it returns {leaves} tensors, the original {self.train}"
        except Exception as error:  # the user's code may raise anything
            mode = "in train mode" if probe.training else "called as by default"
            return f"it does not run {mode} ({type(error).__name__}: {first_line(error)[:160]})"
        return ""


@torch.no_grad()
def _run(module: nn.Module, network: Network) -> None:
    """Call a module with tensors alone, in its own dtype."""
    args, kwargs = copied(network.captured.example)
    with untouched(module):
        module(*args, **_tensors_only(kwargs))


def _differs_in_training(network: Network) -> bool:
    """Whether parts are used in train mode only, or the code of any class asks for the mode."""
    used = network.labelled.parameters.keys() - network.labelled.train_only
    parameters = {n for n, t in network.tensors.items() if isinstance(t, nn.Parameter)}
    return not parameters <= used or any(_asks_for_mode(kind) for kind in {type(m) for m in network.model.modules()})


@functools.cache
def _asks_for_mode(kind: type[nn.Module]) -> bool:
    if kind.__module__.startswith("torch.nn.modules"):
        return False
    try:
        return "training" in inspect.getsource(kind)
    except (OSError, TypeError):  # made in a notebook, or by code
        return True


def _tensors_only(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {n: v for n, v in kwargs.items() if any(isinstance(x, torch.Tensor) for x in pytree.tree_leaves(v))}


def _last_token_hidden(model: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, torch.Tensor] | None:
    """The `attention_mask` [batch, length] that hides the last of the token numbers; None where a call has neither."""
    try:
        signature = inspect.signature(model.forward)
        tokens = signature.bind_partial(*args, **kwargs).arguments.get("input_ids")
    except (TypeError, ValueError):
        return None
    if "attention_mask" not in signature.parameters or not isinstance(tokens, torch.Tensor) or tokens.dim() != 2:
        return None
    mask = torch.ones_like(tokens)
    mask[:, -1] = 0
    return {"attention_mask": mask} if tokens.shape[1] > 1 else None


def _but_last(leaves: Mapping[str, torch.Tensor], mask: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Leaves of one entry per token, without those of the last one."""
    length = mask["attention_mask"].shape[1]
    return {n: x[:, :-1] for n, x in leaves.items() if x.dim() > 1 and x.shape[1] == length}


def _attempt(call: Callable[[], Any]) -> Any:
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        try:
            return call()
        except Exception:  # the user's code may raise anything; what the original cannot do is not asked for
            return None


def _named(output: Any) -> dict[str, torch.Tensor]:
    """Tensors of an output by their place in it; fields of dataclasses that are no pytrees, too."""
    return {pytree.keystr(path): x for path, x in leaves_with_paths(output) if isinstance(x, torch.Tensor)}


def _equal_leaves(expected: Mapping[str, torch.Tensor], actual: Mapping[str, torch.Tensor]) -> list[str]:
    return [n for n in expected if n in actual and relative_error(actual[n], expected[n]) <= TOLERANCE]


def _cache_error(probe: nn.Module, args: tuple, kwargs: dict[str, Any]) -> float:
    """Relative difference of the logits of two new tokens, with and without a cache.

    Raises whatever `generate` raises; AttributeError without one.
    """
    generate: Any = probe.generate
    names = inspect.signature(generate).parameters
    if "max_new_tokens" not in names and "generation_config" not in names:
        raise AttributeError("generate takes no max_new_tokens")
    transformers_like = "generation_config" in names
    options: dict[str, Any] = {**_GENERATE, **_RETURN} if transformers_like else {"max_new_tokens": _NEW_TOKENS}
    results = []
    for use_cache in (True, False):
        if transformers_like or "use_cache" in names:
            options["use_cache"] = use_cache
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results.append(call_in_float64(_Bound(generate), args, {**kwargs, **options}))
    if transformers_like:
        results = [r.logits for r in results]
    return relative_error(*results)


class _Bound(nn.Module):
    """A bound method in the place of a module."""

    def __init__(self, method: Callable[..., Any]):
        super().__init__()
        self._method = [method]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._method[0](*args, **kwargs)
