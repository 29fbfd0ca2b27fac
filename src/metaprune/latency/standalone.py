"""Segments as modules of their own, and what `torch.compile` and ONNX Runtime make of a module."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from metaprune.core.errors import NotAvailableError, one_line_error
from metaprune.core.imports import import_optional
from metaprune.elastic.program import Program, ProgramAtWidths, Ref, Scaled, Step, Weight

Made = tuple[nn.Module, tuple]  # a module and its inputs


def segment_modules(
    program: Program,
    at_widths: ProgramAtWidths,
    tensors: Mapping[str, torch.Tensor],
    args: tuple,
    kwargs: dict[str, Any],
    segment_of: Mapping[str, int],
    wanted: set[int],
) -> dict[int, Made]:
    """Run the network once and build the `wanted` segments with the inputs that they got. place: node -> segment."""
    values: dict[int, Any] = dict(enumerate(program.flatten_inputs(args, kwargs)))
    made = {s: _SegmentModule(tensors, values) for s in wanted}
    readers: dict[int, set[int]] = {}  # slot -> segments that read it

    def call(step: Step, a: list, k: dict) -> Any:
        values[step.slot] = step.target(*a, **k)
        segment = segment_of.get(step.node.name, -1)
        for slot in _slots((step.args, step.kwargs)):
            readers.setdefault(slot, set()).add(segment)
        if segment in made and _holds_tensor(values[step.slot]):
            made[segment].add(step)
        return values[step.slot]

    program.run(at_widths, tensors, args, kwargs, call)
    final = _slots(at_widths.output)
    return {
        s: m.finish(lambda slot, s=s: slot in final or bool(readers.get(slot, set()) - {s})) for s, m in made.items()
    }


class _SegmentModule:
    def __init__(self, tensors: Mapping[str, torch.Tensor], values: dict[int, Any]):
        self._tensors, self._values = tensors, values
        self._graph, self._root = fx.Graph(), nn.Module()
        self._inner: dict[int, fx.Node] = {}
        self._outer: dict[int, fx.Node] = {}
        self._constants: dict[Any, fx.Node] = {}

    def add(self, step: Step) -> None:
        args, kwargs = self._value(step.args), self._value(step.kwargs)
        self._inner[step.slot] = self._graph.call_function(step.target, tuple(args), kwargs)

    def finish(self, is_read: Callable[[int], bool]) -> Made:
        slots = [s for s in self._inner if isinstance(self._values[s], torch.Tensor)]
        outputs = tuple(self._inner[s] for s in slots if is_read(s) or not self._inner[s].users)
        self._graph.output(outputs)
        inputs = tuple(self._values[slot].clone() for slot in reversed(self._outer))
        return fx.GraphModule(self._root, self._graph).eval(), inputs

    def _value(self, value: Any) -> Any:
        if isinstance(value, Scaled):
            return self._values[value.ref.slot] * value.kept // value.total
        if isinstance(value, Ref):
            return self._ref(value.slot)
        if isinstance(value, Weight):
            return self._constant(value.name, self._tensors[value.name])
        if isinstance(value, torch.Tensor):
            return self._constant(id(value), value)
        if isinstance(value, (list, tuple)):
            return [self._value(v) for v in value]
        if isinstance(value, dict):
            return {k: self._value(v) for k, v in value.items()}
        return value

    def _ref(self, slot: int) -> Any:
        if slot in self._inner:
            return self._inner[slot]
        if not isinstance(self._values[slot], torch.Tensor):
            return self._values[slot]  # a size: known for this structure
        if slot not in self._outer:
            with self._graph.inserting_before(None):  # at the very beginning, so the last one comes first
                self._outer[slot] = self._graph.placeholder(f"x{len(self._outer)}")
        return self._outer[slot]

    def _constant(self, key: Any, tensor: torch.Tensor) -> fx.Node:
        if key not in self._constants:
            name = f"constant_{len(self._constants)}"
            self._root.register_buffer(name, tensor.detach().clone())
            self._constants[key] = self._graph.get_attr(name)
        return self._constants[key]


def _slots(value: Any) -> set[int]:
    leaves = pytree.tree_leaves(value, is_leaf=lambda v: isinstance(v, (Ref, Scaled)))
    return {v.slot if isinstance(v, Ref) else v.ref.slot for v in leaves if isinstance(v, (Ref, Scaled))}


def _holds_tensor(value: Any) -> bool:
    return any(isinstance(v, torch.Tensor) for v in pytree.tree_leaves(value))


def compiled(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Callable[[], Any]:
    """Compile the module by `torch.compile`.

    Raises:
        NotAvailableError: it does not compile here (on the CPU that takes a C++ compiler).
    """
    run = torch.compile(module, dynamic=False)
    try:
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run(*args, **kwargs)
    except Exception as error:  # the compiler raises many unrelated classes
        raise NotAvailableError(
            f"torch.compile does not work here: {one_line_error(error)}. On the CPU it needs a C++ compiler such as "
            "g++; "
            "runtime=eager needs none"
        ) from error
    return lambda: run(*args, **kwargs)


def onnx_session(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Callable[[], Any]:
    """Open the module in an ONNX Runtime session on the CPU, with the threads of torch.

    Raises:
        NotAvailableError: the exporter or the runtime lacks an operator.
    """
    runtime = import_optional("onnxruntime", "onnx")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(module, args, kwargs, strict=False)
            file = io.BytesIO()
            cast("Any", torch.onnx.export(program, dynamo=True, verbose=False)).save(file)
        session = runtime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # exporter and runtime raise many unrelated classes
        raise NotAvailableError(
            f"ONNX Runtime cannot run this network: {one_line_error(error)}. Use runtime=eager or compile"
        ) from error
    leaves = zip(program.graph_signature.user_inputs, pytree.tree_leaves((args, kwargs)), strict=True)
    wanted = {i.name for i in session.get_inputs()}
    feed = {name: x.detach().numpy() for name, x in leaves if name in wanted and isinstance(x, torch.Tensor)}
    return lambda: session.run(None, feed)
