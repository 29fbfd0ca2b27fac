"""The first capture: operators are recorded while the model really runs, below autograd, on other inputs each time.

What one run cannot tell, the others do: which integers follow the batch, and whether Python branched on sizes or
values. What cannot be recorded soundly is refused with the reason, and is left to `torch.export`.
"""

from __future__ import annotations

import functools
import math
import warnings
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from metaprune.core.side_effects import ModelState
from metaprune.graph.watched_sizes import Branches, WatchedSize


class CannotRecordError(Exception):
    """Recording would be unsound, or runs differ in more than sizes that follow the batch."""


class Ref(int):
    """The number of a tensor: the model's own and the inputs first, then in the order of their making."""


@dataclass(slots=True)
class RecordedCall:
    """One operator. Tensors among its arguments are `Ref`s; `results` are (number, shape, dtype, device) or None."""

    target: Any
    args: Any
    kwargs: dict[str, Any]
    module: str
    results: list[tuple[Ref, tuple[int, ...], torch.dtype, torch.device] | None]
    several: bool  # whether it returns a list or tuple


@dataclass
class Recording:
    """One run: its calls, tensors that are neither the model's nor inputs nor made by a call, and its output."""

    inputs: list[Any]  # flattened
    calls: list[RecordedCall] = field(default_factory=list)
    constants: dict[Ref, Tensor] = field(default_factory=dict)
    outputs: list[Any] = field(default_factory=list)  # flattened: a Ref for every tensor
    out_spec: Any = None
    returned: list[Any] = field(default_factory=list)  # the leaves themselves

    def shapes(self, own: int) -> dict[Ref, tuple[int, ...]]:
        """Shapes of the inputs and of what calls made; `own`: how many tensors the model has."""
        tensors = [x for x in self.inputs if isinstance(x, Tensor)]
        made = (r for call in self.calls for r in call.results if r is not None)
        return {Ref(own + i): tuple(x.shape) for i, x in enumerate(tensors)} | {r[0]: r[1] for r in made}


@dataclass(frozen=True, slots=True)
class _Traits:
    needs_values: bool
    reads_values: bool  # hands a number to Python
    writes: tuple[tuple[int, str], ...]  # position and name of arguments that are written into


_ATEN = torch.ops.aten
_READS = {
    _ATEN._local_scalar_dense.default,
    _ATEN.item.default,
    _ATEN.is_nonzero.default,
    _ATEN.equal.default,
    _ATEN.allclose.default,
}
_NEEDS_VALUES = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output}
_DATA, _SHAPE = Tensor.data.__get__, Tensor.shape.__get__  # type: ignore[attr-defined]
_PYTHON_READS = {"tolist", "numpy", "__array__", "data_ptr", "__dlpack__", "untyped_storage", "storage"}


@functools.cache
def _traits(target: Any) -> _Traits:
    arguments = enumerate(target._schema.arguments)
    writes = tuple((i, a.name) for i, a in arguments if a.alias_info is not None and a.alias_info.is_write)
    if target is _ATEN.detach_.default:  # writes nothing of what anybody sees here
        writes = ()
    return _Traits(bool(_NEEDS_VALUES & set(target.tags)), target in _READS, writes)


def _selects_by_mask(target: Any, args: tuple) -> bool:
    """Of `x[...]`, only boolean masks give a size that depends on values."""
    if target is not _ATEN.index.Tensor:
        return True
    return any(isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1])


class _Recorder(TorchDispatchMode):
    """Records into `recording`. Nothing may be written into what is `held` (the model's, inputs), or into constants."""

    def __init__(self, recording: Recording, held: list[Tensor], module_path: list[str]):
        super().__init__()
        self.recording = recording
        self.module_path = module_path
        self.forbids_writes = True
        self._known: dict[int, tuple[weakref.ref, Ref]] = {}
        self._count = 0
        self._held = {pointer for t in held if (pointer := _storage(t))}
        self._dependent: set[Ref] = set()  # on the model's tensors or the inputs
        for tensor in held:
            self._dependent.add(self._new(tensor))

    def _new(self, tensor: Tensor) -> Ref:
        ref = Ref(self._count)
        self._count += 1
        self._known[id(tensor)] = (weakref.ref(tensor), ref)
        return ref

    def find(self, tensor: Tensor) -> Ref | None:
        entry = self._known.get(id(tensor))
        return entry[1] if entry is not None and entry[0]() is tensor else None

    def same(self, new: Tensor, old: Tensor) -> None:
        """Let `new`, made without an operator, be `old`."""
        ref = self.find(old)
        if ref is not None:
            self._known[id(new)] = (weakref.ref(new), ref)

    def depends(self, tensor: Any) -> bool:
        return isinstance(tensor, Tensor) and self.find(tensor) in self._dependent

    def refs(self, value: Any) -> Any:
        """`value` with tensors as `Ref`s; a tensor never seen is a constant."""
        if isinstance(value, Tensor):
            ref = self.find(value)
            if ref is not None:
                return ref
            pointer = _storage(value)
            if pointer and pointer in self._held:
                raise CannotRecordError("a view of the model's tensor or an input was made without an operator")
            ref = self._new(value)
            self.recording.constants[ref] = value
            self._held.add(pointer)
            return ref
        if type(value) in (list, tuple):
            return [self.refs(v) for v in value]
        return value

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        traits = _traits(func)
        if traits.reads_values or (traits.needs_values and _selects_by_mask(func, args)):
            if any(self.depends(x) for x in pytree.tree_leaves((args, kwargs))):
                raise CannotRecordError(f"{func} depends on values")
            if traits.reads_values:
                return func(*args, **kwargs)
        call_args, call_kwargs = self.refs(args), {n: self.refs(v) for n, v in kwargs.items()}
        for position, name in traits.writes:
            written = args[position] if position < len(args) else kwargs.get(name)
            pointer = _storage(written) if isinstance(written, Tensor) else 0
            if self.forbids_writes and pointer and pointer in self._held:
                raise CannotRecordError(f"{func} writes into the model's own tensor, an input or a constant")
        out = func(*args, **kwargs)
        depends = any(x in self._dependent for x in _refs_in((call_args, call_kwargs)))
        several = isinstance(out, (list, tuple))
        results: list[Any] = []
        for x in out if several else [out]:
            if not isinstance(x, Tensor):
                results.append(None)
                continue
            ref = self._new(x)
            results.append((ref, tuple(x.shape), x.dtype, x.device))
            if depends:
                self._dependent.add(ref)
        self.recording.calls.append(RecordedCall(func, call_args, call_kwargs, self.module_path[-1], results, several))
        return out


def _refs_in(value: Any) -> Iterator[Ref]:
    if type(value) is Ref:
        yield value
    elif isinstance(value, (list, tuple)):
        for v in value:
            yield from _refs_in(v)
    elif isinstance(value, dict):
        for v in value.values():
            yield from _refs_in(v)


def _storage(tensor: Tensor) -> int:
    """Where the numbers lie; 0 for tensors without any."""
    return 0 if not tensor.numel() else tensor.untyped_storage().data_ptr()


class _PythonReads(TorchFunctionMode):
    """Refuses values that leave torch by methods of tensors, follows `.data`, and hands out sizes that are watched.

    shapes: of the run before, on a batch that was one sample smaller.
    """

    def __init__(self, recorder: _Recorder, branches: Branches | None, shapes: Mapping[Ref, tuple[int, ...]]):
        super().__init__()
        self._recorder = recorder
        self._branches, self._shapes = branches, shapes

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in _PYTHON_READS and self._recorder.depends(args[0]):
            raise CannotRecordError(f"{name}() of a value that depends on inputs or parameters")
        result = func(*args, **(kwargs or {}))
        if name == "__get__" and func == _DATA and isinstance(result, Tensor):
            self._recorder.same(result, args[0])
        elif self._branches is not None and (name in ("size", "numel") or (name == "__get__" and func == _SHAPE)):
            dim = args[1] if len(args) > 1 else (kwargs or {}).get("dim")
            return self._watched(args[0], result, dim, self._branches)
        elif (
            self._branches is not None and name == "__len__"
        ):  # Python makes a plain number of it, whatever is returned
            self._branches.curved |= isinstance(self._watched(args[0], result, 0, self._branches), WatchedSize)
        return result

    def _watched(self, tensor: Tensor, result: Any, dim: int | None, branches: Branches) -> Any:
        """Sizes that have grown since the run before, watched: all of them, that of `dim`, or their product."""
        ref = self._recorder.find(tensor)
        before = None if ref is None else self._shapes.get(ref)
        if before is None or len(before) != tensor.dim() or before == tuple(tensor.shape):
            return result
        if isinstance(result, torch.Size):
            pairs = zip(result, before, strict=True)
            return torch.Size([WatchedSize(n, n - b, branches) if n != b else n for n, b in pairs])
        grown = result - (math.prod(before) if dim is None else before[dim])
        return WatchedSize(result, grown, branches) if grown else result


@contextmanager
def _module_paths(model: nn.Module) -> Iterator[list[str]]:
    """A stack whose last entry is the path of the module that runs."""
    paths = {id(m): name for name, m in reversed(list(model.named_modules(remove_duplicate=False)))}
    stack = [""]

    def enter(module: nn.Module, _: Any) -> None:
        stack.append(paths.get(id(module), stack[-1]))

    def leave(module: nn.Module, _: Any, __: Any) -> None:
        stack.pop()

    hooks = [
        module_hooks.register_module_forward_pre_hook(enter),
        module_hooks.register_module_forward_hook(leave, always_call=True),
    ]
    try:
        yield stack
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _as_exporting() -> Iterator[None]:
    """Let libraries take the branches that they take under `torch.export`."""
    flags = [f for f in ("_is_compiling_flag", "_is_exporting_flag") if hasattr(torch.compiler, f)]
    before = {f: getattr(torch.compiler, f) for f in flags}
    try:
        for f in flags:
            setattr(torch.compiler, f, True)
        yield
    finally:
        for f, value in before.items():
            setattr(torch.compiler, f, value)


def record_run(
    model: nn.Module,
    state: ModelState,
    own: Mapping[str, Tensor],
    args: tuple,
    kwargs: dict[str, Any],
    branches: Branches | None = None,
    before: Recording | None = None,
    *,
    training: bool = False,
) -> Recording:
    """Run the model once and record it.

    Args:
        state: to which the model is brought back afterwards.
        own: the model's tensors by name, each once.
        training: run in train mode, where BatchNorm may write into buffers.
        branches: takes what Python asks of sizes that have grown since the run `before`, of one sample less.

    Raises:
        CannotRecordError: values leave torch, or something is written into the model or an input.
    """
    leaves = pytree.tree_leaves((args, kwargs))
    recording = Recording(leaves)
    held = [*own.values(), *(x for x in leaves if isinstance(x, Tensor))]
    if any(type(t) not in (Tensor, nn.Parameter, nn.Buffer) or t.is_meta or t.layout != torch.strided for t in held):
        raise CannotRecordError("tensors without plain numbers are left to torch.export")
    with (
        warnings.catch_warnings(),
        torch.random.fork_rng(devices=[]),
        torch.inference_mode(),
        _as_exporting(),
        _module_paths(model) as path,
    ):
        warnings.simplefilter("ignore")
        torch.default_generator.manual_seed(0)
        recorder = _Recorder(recording, held, path)
        shapes = {} if before is None else before.shapes(len(own))
        for module in model.modules():
            module.training = training
        try:
            recorder.forbids_writes = not training
            with _PythonReads(recorder, branches, shapes), recorder:
                out = model(*args, **kwargs)
        finally:
            state.restore()
        recording.returned, recording.out_spec = pytree.tree_flatten(out)
        if not all(x is None or isinstance(x, (Tensor, bool, int, float, str)) for x in recording.returned):
            raise CannotRecordError("an output is no tensor, number or text")
        recording.outputs = [recorder.refs(x) for x in recording.returned]
    return recording


def moved_integers(first: Recording, second: Recording) -> dict[Any, tuple[int, int]]:
    """Compare two runs call by call; returns the integers that differ, by their place, as (first, second).

    Places are (call, "args" or name, index, ...), ("shape", call, result, dimension), and ("input", leaf, dimension).

    Raises:
        CannotRecordError: they differ in anything but integers; says in what.
    """
    if len(first.calls) != len(second.calls):
        raise CannotRecordError(f"runs make {len(first.calls)} and {len(second.calls)} calls")
    moved: dict[Any, tuple[int, int]] = {}
    for i, (a, b) in enumerate(zip(first.calls, second.calls, strict=True)):
        if a.target is not b.target or a.module != b.module:
            raise CannotRecordError(f"runs go other ways in {a.module or 'the model'}: {a.target} and {b.target}")
        _compare(a.args, b.args, (i, "args"), moved)
        if a.kwargs or b.kwargs:
            _compare(list(a.kwargs), list(b.kwargs), (i, "names"), moved)
            for name, value in a.kwargs.items():
                _compare(value, b.kwargs[name], (i, name), moved)
        for k, (x, y) in enumerate(zip(a.results, b.results, strict=True)):
            if (x is None) != (y is None) or (x and y and (x[0] != y[0] or x[2] != y[2] or len(x[1]) != len(y[1]))):
                raise CannotRecordError(
                    f"{a.target} in {a.module or 'the model'} returns something else in another run"
                )
            if x and y and x[1] != y[1]:
                moved.update(
                    {("shape", i, k, d): p for d, p in enumerate(zip(x[1], y[1], strict=True)) if p[0] != p[1]}
                )
    _compare(first.outputs, second.outputs, ("output",), moved)
    if any(place[0] == "output" for place in moved):
        raise CannotRecordError("a size is returned")
    for i, (x, y) in enumerate(zip(first.inputs, second.inputs, strict=True)):
        if isinstance(x, Tensor):
            moved.update({("input", i, d): p for d, p in enumerate(zip(x.shape, y.shape, strict=True)) if p[0] != p[1]})
    _compare_constants(first, second)
    return moved


def _compare(a: Any, b: Any, place: tuple, moved: dict[Any, tuple[int, int]]) -> None:
    if type(a) is not type(b):
        raise CannotRecordError(f"runs differ in an argument: {a!r} and {b!r}")
    if type(a) is list:
        if len(a) != len(b):
            raise CannotRecordError(f"runs differ in a list of arguments: {a!r} and {b!r}")
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            _compare(x, y, (*place, i), moved)
    elif a != b and a == a:  # NaN is like NaN
        if type(a) is not int:
            raise CannotRecordError(f"runs differ in an argument: {a!r} and {b!r}")
        moved[place] = (a, b)


def _compare_constants(first: Recording, second: Recording) -> None:
    """Tensors that come from nowhere must hold the same in both runs: else values left torch unseen."""
    if first.constants.keys() != second.constants.keys():
        raise CannotRecordError("runs take other tensors from outside")
    for ref, x in first.constants.items():
        y = second.constants[ref]
        if x.shape != y.shape or x.dtype != y.dtype or not torch.equal(x.nan_to_num(), y.nan_to_num()):
            raise CannotRecordError("a tensor that no operator made differs between runs: values leave torch")
