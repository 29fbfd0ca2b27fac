"""Three recorded runs -> a flat graph in which sizes that follow the batch are computed from it."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from metaprune.core.batches import batch_size, is_batched, with_batch
from metaprune.core.side_effects import ModelState
from metaprune.core.tensors import named_tensors
from metaprune.graph.batch_dimension import NO_BATCH, close, samples_are_independent, varied
from metaprune.graph.captured import Captured, op_name
from metaprune.graph.interpret import agrees
from metaprune.graph.recorder import CannotRecordError, Recording, Ref, moved_integers, record_run
from metaprune.graph.shapes import BatchedSize, TensorValue
from metaprune.graph.watched_sizes import Branches

_BATCH = 2  # of the first run; the second has one sample more
_LARGEST_RUN = 64  # batches that are run to see whether a branch on the batch makes a difference
_FURTHER = 3  # samples more in a third run, where a size may follow the batch in no straight line


def record(model: nn.Module, state: ModelState, args: tuple, kwargs: dict[str, Any], batch_dim: int) -> Captured:
    """Record a model in eval mode, on two batches of other sizes and values.

    Args:
        state: to which the model is brought back after every run.

    Raises:
        CannotRecordError: recording would be unsound, or the model does not run on another batch; says why.
    """
    captured = _record(model, state, args, kwargs, batch_dim, _BATCH)
    given = batch_size(args, kwargs, batch_dim)
    if given > 1 and not captured.takes(given):  # Python branches between that batch and the small ones
        captured = _record(model, state, args, kwargs, batch_dim, given)
    return captured


def record_training(
    model: nn.Module, state: ModelState, args: tuple, kwargs: dict[str, Any], batch_dim: int
) -> Captured:
    """Record a model in train mode, for its labels: what it draws and writes makes no difference to those.

    Raises:
        CannotRecordError: see `record`.
    """
    runs = _Runs(model, state, args, kwargs, batch_dim, _BATCH, training=True)
    return runs.build(runs.inputs)


def _record(model: nn.Module, state: ModelState, args: tuple, kwargs: dict[str, Any], dim: int, batch: int) -> Captured:
    runs = _Runs(model, state, args, kwargs, dim, batch)
    independent = _independent(runs) if runs.sizes else None
    if independent is False:
        independent = samples_are_independent(model, *runs.inputs, dim)
    captured = runs.build((args, kwargs) if runs.sizes and independent is not True else runs.inputs)
    captured.graph.eliminate_dead_code()
    alike = independent is True and _first_sample_agrees(runs, captured)
    if not alike and not agrees(captured, runs.second.inputs, runs.second.returned):
        raise CannotRecordError("what was recorded computes something else than the model")
    if runs.sizes:
        captured.varies, captured.batch = True, BatchedSize()
        captured.batch_range = _range(runs, captured)
    if independent is False:
        captured.batch = None
        captured.batch_fixed = NO_BATCH.format(dim=dim)
    return captured


class _Runs:
    """Two runs of a model on batches that differ by one sample, a third where needed, and what they tell of sizes."""

    def __init__(
        self,
        model: nn.Module,
        state: ModelState,
        args: tuple,
        kwargs: dict[str, Any],
        dim: int,
        batch: int,
        training: bool = False,
    ):
        self.model, self.dim, self.training = model, dim, training
        self.batch = batch if batch_size(args, kwargs, dim) else 0
        self.own, self.aliases = named_tensors(model)
        self.inputs = with_batch(args, kwargs, batch, dim)
        self.branches = Branches(self.batch + 1)
        self._state = state
        try:
            self.first = self.run(*self.inputs)
            others = varied(*with_batch(*self.inputs, self.batch + 1, dim), dim, kept=self.batch - 1)
            self.second = self.run(*others, self.branches, self.first)
            moved = moved_integers(self.first, self.second)
            self.sizes = {p: BatchedSize(y - x, x - self.batch * (y - x)) for p, (x, y) in moved.items()}
            if self.branches.curved or any(size.offset for size in self.sizes.values()):
                self._check_straight(self.batch + _FURTHER)
        except CannotRecordError:
            raise
        except Exception as error:  # a model may raise anything on inputs that nobody gave
            raise CannotRecordError(f"it does not run on a batch of another size: {type(error).__name__}") from error

    def run(self, args: tuple, kwargs: dict[str, Any], *watching: Any) -> Recording:
        return record_run(self.model, self._state, self.own, args, kwargs, *watching, training=self.training)

    def at(self, batch: int) -> Recording:
        """Run on another batch of the same values."""
        return self.run(*with_batch(*self.inputs, batch, self.dim))

    def build(self, example: tuple[tuple, dict[str, Any]]) -> Captured:
        return _Builder(self.model, self.own, self.aliases, self.first, self.sizes, self.dim).build(example)

    def _check_straight(self, batch: int) -> None:
        moved = moved_integers(self.first, self.at(batch))
        if moved.keys() != self.sizes.keys() or any(self.sizes[p].at(batch) != y for p, (_, y) in moved.items()):
            raise CannotRecordError("a size follows the batch in no straight line")


def _range(runs: _Runs, captured: Captured) -> tuple[int, int | None]:
    """Find between which batch sizes the graph is right: Python may branch on them, which may make no difference."""

    def alike(size: int) -> bool:
        if size > _LARGEST_RUN:
            return False
        try:
            recording = runs.at(size)
            return agrees(captured, recording.inputs, recording.returned)
        except Exception:  # a model may raise anything on inputs that nobody gave
            return False

    smaller = sorted((n for n in runs.branches.others if n < runs.branches.batch), reverse=True)
    larger = sorted(n for n in runs.branches.others if n > runs.branches.batch)
    low = next((n + 1 for n in smaller if not alike(n)), 1)
    return low, next((n - 1 for n in larger if not alike(n)), None)


def _first_sample_agrees(runs: _Runs, captured: Captured) -> bool:
    """Whether the graph gives of one sample what the model gave of it among others: a third of the work of all."""

    def first(leaves: list[Any]) -> list[Any]:
        batch = runs.batch + 1
        return [x.narrow(runs.dim, 0, 1) if is_batched(x, batch, runs.dim) else x for x in leaves]

    try:
        return agrees(captured, first(runs.second.inputs), first(runs.second.returned))
    except Exception:  # not every graph takes a single sample
        return False


def _independent(runs: _Runs) -> bool | None:
    """Whether the sample that both runs share came out alike; see `samples_are_independent`."""
    batch, dim = runs.batch, runs.dim
    pairs = [
        (x, y)
        for x, y in zip(runs.first.returned, runs.second.returned, strict=True)
        if is_batched(x, batch, dim) and is_batched(y, batch + 1, dim) and not x.is_complex()
    ]
    if not pairs:
        return None
    return any(close(x.select(dim, batch - 1), y.select(dim, batch - 1)) for x, y in pairs)


class _Builder:
    def __init__(
        self,
        model: nn.Module,
        own: Mapping[str, Tensor],
        aliases: dict[str, str],
        run: Recording,
        sizes: Mapping[Any, BatchedSize],
        batch_dim: int,
    ):
        self.model, self.own, self.aliases, self.run, self.sizes = model, own, aliases, run, sizes
        self.batch_dim = batch_dim
        self.graph = fx.Graph()
        self.nodes: dict[Ref, fx.Node] = {}
        self.sources: dict[str, str] = {}
        self._size_nodes: dict[BatchedSize, fx.Node] = {}
        self._constants = self._named_constants()

    def build(self, example: tuple[tuple, dict[str, Any]]) -> Captured:
        inputs = self._placeholders()
        places: dict[int, list[Any]] = {}
        for place in self.sizes:
            if isinstance(place[0], int):
                places.setdefault(place[0], []).append(place[1:])
        self._make_sizes(inputs, [self.sizes[i, *p] for i, of_call in places.items() for p in of_call])
        for i in range(len(self.run.calls)):
            self._call(i, places.get(i, []))
        self.graph.output(tuple(self._value(x) for x in self.run.outputs))
        _, in_spec = pytree.tree_flatten(example)
        return Captured(
            graph=self.graph,
            tensors={**self.own, **self._constants},
            sources=self.sources,
            aliases=self.aliases,
            inputs=[n.name for n in inputs],
            out_spec=self.run.out_spec,
            in_spec=in_spec,
            example=example,
            batch_dim=self.batch_dim,
        )

    def _named_constants(self) -> dict[str, Tensor]:
        """Tensors from outside, by the path of the attribute that holds them, or by number."""
        attributes = {
            id(value): f"{path}.{name}".lstrip(".")
            for path, module in self.model.named_modules()
            for name, value in vars(module).items()
            if isinstance(value, Tensor)
        }
        named: dict[str, Tensor] = {}
        for tensor in self.run.constants.values():
            name = attributes.get(id(tensor), f"_constant_{len(named)}")
            name = name if name not in self.own and name not in named else f"_constant_{len(named)}"
            named[name] = tensor.clone() if tensor.is_inference() else tensor.detach()  # autograd takes no other
        return named

    def _placeholders(self) -> list[fx.Node]:
        """Nodes of the model's tensors, of constants, and of the inputs, which are returned."""
        numbers = iter(range(len(self.own)))
        for name, tensor in self.own.items():
            self._tensor(Ref(next(numbers)), name, tensor)
        for ref, (name, tensor) in zip(self.run.constants, self._constants.items(), strict=True):
            self._tensor(ref, name, tensor)
        number, inputs = len(self.own), []
        for i, leaf in enumerate(self.run.inputs):
            node = self.graph.placeholder(f"input_{i}")
            node.meta["val"] = leaf
            if isinstance(leaf, Tensor):
                shape = tuple(self.sizes.get(("input", i, d), n) for d, n in enumerate(leaf.shape))
                node.meta["val"] = TensorValue(shape, leaf.dtype, leaf.device)
                self.nodes[Ref(number)] = node
                number += 1
            inputs.append(node)
        return inputs

    def _tensor(self, ref: Ref, name: str, tensor: Tensor) -> None:
        node = self.graph.placeholder("p_" + name.replace(".", "_"))
        node.meta["val"] = TensorValue.of(tensor)
        self.sources[node.name] = name
        self.nodes[ref] = node

    def _make_sizes(self, inputs: list[fx.Node], needed: list[BatchedSize]) -> None:
        if not needed:
            return
        leaf = next(i for place in self.sizes if place[0] == "input" for i in [place[1]])
        batch = self.graph.call_function(torch.ops.aten.sym_size.int, (inputs[leaf], self.batch_dim))
        batch.meta["val"] = BatchedSize()
        for size in dict.fromkeys(needed):
            node = batch
            if size.scale != 1:
                node = self.graph.call_function(operator.mul, (node, size.scale))
                node.meta["val"] = BatchedSize(size.scale)
            if size.offset:
                node = self.graph.call_function(operator.add, (node, size.offset))
                node.meta["val"] = size
            self._size_nodes[size] = node

    def _call(self, index: int, moved: list[Any]) -> None:
        call = self.run.calls[index]
        args, kwargs = list(call.args), dict(call.kwargs)
        for argument, *path in moved:
            node = self._size_nodes[self.sizes[index, argument, *path]]
            if argument == "args":
                args = _replaced(args, path, node)
            else:
                kwargs[argument] = _replaced(kwargs[argument], path, node)
        arguments = tuple(self._value(args)), self._value(kwargs)
        new = self.graph.create_node("call_function", call.target, *arguments, name=op_name(call.target))
        new.meta["module"] = call.module
        values = []
        for k, result in enumerate(call.results):
            value = None
            if result is not None:
                ref, shape, dtype, device = result
                shape = tuple(self.sizes.get(("shape", index, k, d), n) for d, n in enumerate(shape))
                value = TensorValue(shape, dtype, device)
                if call.several:
                    self.nodes[ref] = self.graph.call_function(operator.getitem, (new, k))
                    self.nodes[ref].meta |= {"module": call.module, "val": value}
                else:
                    self.nodes[ref] = new
            values.append(value)
        new.meta["val"] = tuple(values) if call.several else values[0]

    def _value(self, value: Any) -> Any:
        if type(value) is Ref:
            return self.nodes[value]
        if type(value) is list:
            return [self._value(v) for v in value]
        if type(value) is dict:
            return {n: self._value(v) for n, v in value.items()}
        return value


def _replaced(value: Any, path: list[int], new: Any) -> Any:
    """`value` with `new` at a path of indices."""
    if not path:
        return new
    index, *rest = path
    return [_replaced(v, rest, new) if i == index else v for i, v in enumerate(value)]
