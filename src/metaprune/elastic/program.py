"""One executor for the traced graph: any widths, any weights, with gradients.

`Program.at(alive)` bakes the integer constants for a set of survivors (milliseconds, cached); `Program.run`
then executes it with tensors that are the model's own, sliced, masked, generated or rewritten: whatever the mapping
`tensors` returns under a parameter's name. Supernet training, search, soft gates and the proof all use it.
"""

from __future__ import annotations

import copy
import functools
import operator
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.amp.autocast_mode import _enter_autocast as enter_autocast
from torch.utils import _pytree as pytree

from metaprune.core.batches import batch_size, described_inputs
from metaprune.core.errors import InputsError, PlanError
from metaprune.elastic.folding import Rest, Rewrite, emptied_branches
from metaprune.graph.branches import folded_addition
from metaprune.graph.call import Survivors, bound_arguments, with_argument, written_in_place
from metaprune.graph.captured import Captured, wrong_batch
from metaprune.graph.labelling import Labelled
from metaprune.graph.patching import patched_call
from metaprune.values import Space

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True, slots=True)
class Ref:
    """The value of an earlier step."""

    slot: int


@dataclass(frozen=True, slots=True)
class Weight:
    """A tensor of the model, fetched when it is used (a lazy mapping then never holds them all)."""

    name: str


@dataclass(frozen=True, slots=True)
class Scaled:
    """A symbolic size times kept / total."""

    ref: Ref
    kept: int
    total: int


@dataclass(slots=True)
class Step:
    node: fx.Node
    target: Callable
    args: Any
    kwargs: Any
    slot: int
    free: tuple[int, ...] = ()  # slots whose last use this is


@dataclass
class ProgramAtWidths:
    """A program with its constants baked for one set of survivors."""

    steps: list[Step]
    output: Any
    slots: int


Tensors = Mapping[str, torch.Tensor]
CallStep = Callable[[Step, list, dict], Any]


class Program:
    """Runs a captured graph. `at` bakes its constants for a set of survivors, `run` executes what was baked."""

    def __init__(
        self, captured: Captured, labelled: Labelled, space: Space, switchable: frozenset[str], cache: int = 16
    ):
        self._captured, self._labelled, self._space = captured, labelled, space
        self._facts = labelled.facts
        self._switchable = switchable  # batch_norm and dropout nodes that follow the training flag
        nodes = {node.name: node for node in captured.graph.nodes}
        self._written = [i for i, name in enumerate(captured.inputs) if written_in_place(nodes[name])]
        self._cache: OrderedDict[Any, ProgramAtWidths] = OrderedDict()
        self._cache_size = cache

    def at(
        self,
        alive: Survivors | None = None,
        *,
        key: Any = None,
        training: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        rounded: bool = False,
    ) -> ProgramAtWidths:
        """Bake constants. `dtype`/`device` rewrite explicit arguments of the graph (a float32 cast in a float64 run).

        `key` (hashable) names the survivors in the cache; without it nothing is cached. `rounded`: what empty branches
        leave has the precision that a cut network stores it with.
        """
        device = device or self.device
        full_key = (key, training, dtype, device, rounded)
        if key is not None and full_key in self._cache:
            self._cache.move_to_end(full_key)
            return self._cache[full_key]
        program = self._bake(alive, training, dtype, device, rounded)
        if key is not None:
            self._cache[full_key] = program
            if len(self._cache) > self._cache_size:
                self._cache.popitem(last=False)
        return program

    def _bake(
        self,
        alive: Survivors | None,
        training: bool,
        dtype: torch.dtype | None,
        device: torch.device,
        rounded: bool,
    ) -> ProgramAtWidths:
        places: dict[fx.Node, Any] = {}
        steps: list[Step] = []
        output: Any = None
        slots = 0
        emptied = [] if alive is None else emptied_branches(self._space, alive)
        gone = frozenset().union(*(b.gone for b in emptied))
        folded = {b.addition: b for b in emptied}
        for node in self._captured.graph.nodes:
            if node.name in gone:
                continue
            if alive is not None and node.name in folded:
                rest = Rest.of(self._captured, self._labelled, self._space, folded[node.name], alive)
                rewrite = functools.partial(_rewrite_literals, dtype=dtype, device=device)
                steps.append(self._folded(node, rest, places, slots, rewrite, rounded))
                places[node] = Ref(slots)
                slots += 1
                continue
            if node.op == "placeholder":
                places[node] = (
                    Weight(self._captured.sources[node.name]) if node.name in self._captured.sources else Ref(slots)
                )
                slots += isinstance(places[node], Ref)
                continue
            if node.op == "get_attr":
                places[node] = _attribute(self._captured.graph.owning_module, node.target)
                continue
            if node.op == "output":
                output = _resolve_nodes(node.args[0], places)
                continue
            target, args, kwargs = patched_call(
                node,
                self._facts[node.name],
                alive,
                lambda n, count, total: Scaled(places[n], count, total),
                lambda positions: torch.from_numpy(np.ascontiguousarray(positions)).to(device),
            )
            if training and node.name in self._switchable:
                args, kwargs = with_argument(target, args, kwargs, _flag(node), True)
            kept = None if target is enter_autocast else dtype  # autocast leaves float64 as it is
            args, kwargs = (_rewrite_literals(_resolve_nodes(a, places), kept, device) for a in (args, kwargs))
            label = self._facts[node.name].rescale_output
            if target is torch.ops.aten.view.default:  # traced from contiguous inputs; others have to run too
                target = _reshape
            places[node] = Ref(slots)
            steps.append(Step(node, target, list(args), kwargs, slots))
            slots += 1
            if label is not None and alive is not None and alive.cut(label):
                steps.append(Step(node, _unscale, [places[node], alive.count(label), len(label)], {}, slots))
                places[node] = Ref(slots)
                slots += 1
        _mark_last_uses(steps, output)
        return ProgramAtWidths(steps, output, slots)

    @staticmethod
    def _folded(
        node: fx.Node, rest: Rest, places: Mapping[fx.Node, Any], slot: int, rewrite: Rewrite, rounded: bool
    ) -> Step:
        """The step that adds what is left of an empty branch to a stream."""
        operator, stream = folded_addition(node, rest.branch)
        if not rest.branch.constant:
            return Step(node, operator or _same, [places[stream]], {}, slot)
        names = rest.names

        def add(stream: torch.Tensor, read: list[torch.Tensor]) -> torch.Tensor:
            tensors = dict(zip(names, read, strict=True))
            constant = rest.stored(tensors).to(stream.dtype) if rounded else rest.constant(tensors, rewrite)
            return operator(stream, constant)

        return Step(node, add, [places[stream], [Weight(name) for name in names]], {}, slot)

    @property
    def graph(self) -> fx.Graph:
        """The captured graph."""
        return self._captured.graph

    @property
    def sources(self) -> Mapping[str, str]:
        """Names of the model's tensors, by the name of their placeholder."""
        return self._captured.sources

    @property
    def out_spec(self) -> pytree.TreeSpec:
        return self._captured.out_spec

    @property
    def device(self) -> torch.device:
        tensor = next(iter(self._captured.tensors.values()), None)
        return torch.device("cpu") if tensor is None else tensor.device

    def run(
        self,
        program: ProgramAtWidths,
        tensors: Tensors,
        args: tuple,
        kwargs: dict[str, Any] | None = None,
        call: CallStep | None = None,
    ) -> Any:
        """Execute; returns what the model returns. `call` may replace how a step is executed (the proof does).

        Raises:
            PlanError: inputs of another structure than the traced ones.
            InputsError: a batch for which the model's forward takes another branch.
        """
        execution = Execution(self, program, tensors, args, kwargs or {})
        try:
            for step in program.steps:
                execution.run(step, call)
        except BaseException:
            execution.leave_autocast()  # its exit was not reached
            raise
        return execution.output()

    def flatten_inputs(self, args: tuple, kwargs: dict[str, Any]) -> list[Any]:
        """Inputs in the order of the graph's placeholders; those that the graph writes into are copies."""
        traced = self._captured.example[1]
        ordered = {n: kwargs[n] for n in traced if n in kwargs}
        leaves = pytree.tree_leaves((args, ordered))
        if len(leaves) != len(self._captured.inputs) or len(ordered) != len(kwargs):
            raise PlanError(
                f"the network was traced with {described_inputs(*self._captured.example)}, but was called with "
                f"{described_inputs(args, kwargs)}: trace it with all inputs that it will be given, by the same names "
                "(example_kwargs), or leave the others out of the batches"
            )
        if self._captured.batch_range != (1, None):
            batch = batch_size(args, kwargs, self._captured.batch_dim)
            if not self._captured.takes(batch):
                raise InputsError(wrong_batch(batch, *self._captured.batch_range))
        for index in self._written:
            leaves[index] = leaves[index].clone()
        return leaves


class Execution:
    """A run of a program that is under way, for whoever runs it step by step; `Program.run` runs all of it."""

    def __init__(self, program: Program, at: ProgramAtWidths, tensors: Tensors, args: tuple, kwargs: Mapping[str, Any]):
        inputs = program.flatten_inputs(args, dict(kwargs))
        self._env: list[Any] = [*inputs, *[None] * (at.slots - len(inputs))]
        self._at, self._tensors, self._out_spec = at, tensors, program.out_spec

    def operands(self, step: Step) -> tuple[list, dict[str, Any]]:
        """Fetch the arguments of the step that is next."""
        a = [_fetch(x, self._env, self._tensors) for x in step.args]
        k = {n: _fetch(x, self._env, self._tensors) for n, x in step.kwargs.items()} if step.kwargs else {}
        return a, k

    def run(self, step: Step, call: CallStep | None = None) -> Any:
        """Run the step that is next, by `call` if there is one; returns its value."""
        a, k = self.operands(step)
        value = self._env[step.slot] = step.target(*a, **k) if call is None else call(step, a, k)
        for slot in step.free:
            self._env[slot] = None
        return value

    def value(self, slot: int) -> Any:
        """Return what a step left, as long as a later one reads it."""
        return self._env[slot]

    def continued(self, at: ProgramAtWidths, tensors: Tensors) -> Execution:
        """Copy this run, to go on with the steps of another program that is the same up to here.

        Values are copied with what they share: steps that write in place then change nothing here.
        """
        other = copy.copy(self)
        other._at, other._tensors = at, tensors
        other._env = [*copy.deepcopy(self._env), *[None] * (at.slots - len(self._env))]
        return other

    def output(self) -> Any:
        """Return what the model returns, once all steps have run."""
        leaves = pytree.tree_leaves(self._at.output, is_leaf=_is_place)
        return pytree.tree_unflatten([_fetch(x, self._env, self._tensors) for x in leaves], self._out_spec)

    def leave_autocast(self) -> None:
        """Leave autocast regions that were entered."""
        for entered in (x for x in self._env if isinstance(x, torch.amp.autocast)):
            entered.__exit__(None, None, None)


def operands_by_name(step: Step, args: list, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Fetched operands of an operator by the names of its schema, defaults filled in."""
    schema = step.target._schema.arguments  # pyrefly: ignore[missing-attribute] (functions of Python have none)
    defaults = {x.name: x.default_value for x in schema}
    return {**defaults, **dict(zip([x.name for x in schema], args, strict=False)), **kwargs}


def _is_place(value: Any) -> bool:
    return isinstance(value, (Ref, Weight)) or value is None


def _fetch(value: Any, env: list, tensors: Tensors) -> Any:
    kind = type(value)
    if kind is Ref:
        return env[value.slot]
    if kind is Weight:
        return tensors[value.name]
    if kind is Scaled:
        return env[value.ref.slot] * value.kept // value.total
    if kind is list or kind is tuple:
        return [_fetch(v, env, tensors) for v in value]
    return value


def _same(stream: torch.Tensor) -> torch.Tensor:
    return stream


def _reshape(self: torch.Tensor, size: Any) -> torch.Tensor:
    return self.reshape(size)


def _unscale(value: int, count: int, total: int) -> int:
    return value * total // count


def _resolve_nodes(value: Any, places: dict[fx.Node, Any]) -> Any:
    """Nodes -> places, everything else (Scaled, constants) as it is."""
    if isinstance(value, fx.Node):
        return places[value]
    if isinstance(value, (list, tuple)):
        return [_resolve_nodes(v, places) for v in value]
    if isinstance(value, dict):
        return {k: _resolve_nodes(v, places) for k, v in value.items()}
    return value


def _rewrite_literals(value: Any, dtype: torch.dtype | None, device: torch.device) -> Any:
    """Literal devices -> `device`; literal floating dtypes -> `dtype`, if one is given."""
    if isinstance(value, list):
        return [_rewrite_literals(v, dtype, device) for v in value]
    if isinstance(value, dict):
        return {k: _rewrite_literals(v, dtype, device) for k, v in value.items()}
    if isinstance(value, torch.device):
        return device
    if dtype is None or not isinstance(value, torch.dtype):
        return value
    return dtype if value in FLOATS else dtype.to_complex() if value.is_complex else value


def _attribute(module: Any, path: str) -> Any:
    return operator.attrgetter(path)(module)


def _flag(node: fx.Node) -> str:
    return "training" if "training" in bound_arguments(node) else "train"


def _slots_of(value: Any) -> set[int]:
    if isinstance(value, Ref):
        return {value.slot}
    if isinstance(value, Scaled):
        return {value.ref.slot}
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return set().union(*(_slots_of(v) for v in value)) if value else set()
    return set()


def _mark_last_uses(steps: list[Step], output: Any) -> None:
    needed = _slots_of(output)
    for step in reversed(steps):
        used = _slots_of(step.args) | _slots_of(step.kwargs)
        step.free = tuple(used - needed)
        needed |= used
