"""Take back what a call of a model leaves behind: attributes, containers and caches that its forward fills.

A forward may set attributes that `__init__` never declared, fill caches, or hand activations to lists of a hook. Under
`torch.export` these would hold fake tensors; after a trial run they would hold values that the user never computed.
"""

from __future__ import annotations

import copy
import functools
import sys
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_CONTAINERS = (dict, OrderedDict, defaultdict, list, set, deque)  # exactly: subclasses may do anything on access
_OPAQUE = (torch.Generator, str, bytes, int, float, complex, type, types.ModuleType)
_LIBRARIES = ("torch", "builtins", "numpy")


@contextmanager
def side_effects_undone(model: nn.Module) -> Iterator[ModelState]:
    """Give modules, the plain objects they hold, buffers and the global random state back as they were.

    What module-level and class-level caches of the model's own code got inside the block goes, too.
    """
    before = ModelState(model)
    try:
        with torch.random.fork_rng(devices=[]):
            yield before
    finally:
        before.restore()


class ModelState:
    """What a forward may change, but for the global random state, as it is now; `restore` may be called many times."""

    def __init__(self, model: nn.Module):
        classes = {cls for m in model.modules() for cls in type(m).__mro__ if _is_users(cls.__module__)}
        caches = list(_caches(classes))
        self._held = [_Held(item) for item in _reachable(model) if not isinstance(item, Tensor)]
        self._held += [_Held(v) for v in caches if type(v) in _CONTAINERS]
        self._classes = {cls: {n: v for n, v in vars(cls).items() if not n.startswith("__")} for cls in classes}
        self._calls = [(f, f.cache_info().misses) for f in caches if isinstance(f, functools._lru_cache_wrapper)]
        self._buffers = [(b, b.detach().clone()) for b in model.buffers() if not b.is_meta]

    def restore(self) -> None:
        """Give everything back as it was."""
        for item in self._held:
            item.restore()
        for cls, before in self._classes.items():
            _restore_class(cls, before)
        for function, misses in self._calls:
            if function.cache_info().misses != misses:
                function.cache_clear()
        with torch.no_grad():
            for buffer, before in self._buffers:
                if not torch.equal(buffer, before) and not buffer.is_inference():
                    buffer.copy_(before)


def copy_model(
    model: nn.Module, convert: Callable[[Tensor], Tensor] | None = None, replacements: Mapping[int, Any] | None = None
) -> Any:
    """Copy a model deeply.

    Activations that an earlier call left in attributes are copied without the graph that made them: such tensors cannot
    be copied otherwise.

    Args:
        convert: what to make of every tensor that the model holds anywhere.
        replacements: objects to put in place of others, by the others' `id`.
    """
    memo = dict(replacements or {})
    for tensor in (t for t in _reachable(model) if isinstance(t, Tensor)):
        if id(tensor) in memo:
            continue
        if convert is not None:
            value = convert(tensor.detach())
            value = value.clone() if value.data_ptr() == tensor.data_ptr() else value
            memo[id(tensor)] = nn.Parameter(value, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value
        elif tensor.grad_fn is not None:
            memo[id(tensor)] = tensor.detach().clone()
    return copy.deepcopy(model, memo)


class _Held:
    """The items of a container, or the attributes of an object, at one time."""

    def __init__(self, item: Any):
        self.target: Any = item if type(item) in _CONTAINERS else vars(item)
        self.before = self.target.copy()

    def restore(self) -> None:
        if _same(self.target, self.before):
            return
        self.target.clear()
        (self.target.update if isinstance(self.target, (dict, set)) else self.target.extend)(self.before)


def _same(now: Any, before: Any) -> bool:
    if len(now) != len(before):
        return False
    if isinstance(now, dict):
        pairs = zip(now.items(), before.items(), strict=True)
        return all(a is c and b is d for (a, b), (c, d) in pairs)
    if isinstance(now, set):
        return now == before
    return all(a is b for a, b in zip(now, before, strict=True))


def _reachable(model: nn.Module) -> Iterator[Any]:
    """Modules, containers, plain objects and tensors that are reached from `model`, hooks and closures included."""
    waiting: list[Any] = [model]
    seen: set[int] = set()
    while waiting:
        item = waiting.pop()
        if item is None or isinstance(item, _OPAQUE) or id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            yield item
        elif type(item) in _CONTAINERS:
            yield item
            waiting += item.values() if isinstance(item, dict) else item
        elif isinstance(item, (tuple, frozenset)):
            waiting += item
        elif isinstance(item, types.FunctionType):
            waiting += [cell.cell_contents for cell in item.__closure__ or () if not _is_empty(cell)]
        elif isinstance(item, types.MethodType):
            waiting.append(item.__self__)
        elif isinstance(item, functools.partial):
            waiting += [item.func, item.args, item.keywords]
        elif isinstance(getattr(item, "__dict__", None), dict):
            yield item
            waiting += vars(item).values()


def _is_empty(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is cell
    except ValueError:
        return True


def _is_users(module: str) -> bool:
    return module.partition(".")[0] not in _LIBRARIES


def _caches(classes: set[type]) -> Iterator[Any]:
    """Containers and memoised functions among the globals and class attributes of the model's own code."""
    scopes: list[Any] = [vars(sys.modules[name]) for name in {c.__module__ for c in classes} if name in sys.modules]
    for scope in [*scopes, *map(vars, classes)]:
        for name, value in list(scope.items()):
            if not name.startswith("__") and type(value) in (*_CONTAINERS, functools._lru_cache_wrapper):
                yield value


def _restore_class(cls: type, before: dict[str, Any]) -> None:
    for name in [n for n in vars(cls) if not n.startswith("__") and n not in before]:
        delattr(cls, name)
    for name, value in before.items():
        if vars(cls).get(name) is not value:
            setattr(cls, name, value)
