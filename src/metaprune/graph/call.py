"""What a rule sees (`Call`) and what it leaves behind (`Fact`) for one node of the graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import fx

from metaprune.graph.captured import Captured, module_of, op_name
from metaprune.graph.labels import Atoms, Label
from metaprune.graph.shapes import TensorValue
from metaprune.values import Space

Labels = list[Label]  # one label per dimension of a tensor

_COPIES = ("lift_fresh_copy", "lift_fresh", "detach", "detach_", "alias", "clone", "contiguous", "to", "_to_copy")


@dataclass(slots=True)
class Dim:
    """One factor of a cost: `size` (int or `BatchedSize`) indices, of which those survive that `label` says."""

    label: Label
    size: Any


@dataclass(slots=True)
class Patch:
    """How one argument of a node changes with the survivors.

    `value` computes it; without `value` the old number is scaled by kept / total of `label` (also when it is a
    symbolic expression that holds the batch size).
    """

    argument: str
    position: int | None = None
    label: Label = None
    value: Callable[[Survivors], Any] | None = None


@dataclass(frozen=True, slots=True)
class Consumed:
    """Dimension `dim` (from the end if negative) of an argument, or of entry `position` of a list of tensors."""

    argument: str
    dim: int
    position: int | None = None

    def operand(self, node: fx.Node) -> fx.Node:
        """Return what `node` consumes there."""
        value = bound_arguments(node)[self.argument]
        return value if self.position is None else value[self.position]


@dataclass(slots=True)
class Gather:
    """The node takes rows `source` of dimension `dim` of `tensor`; survivors are taken by their new rank."""

    tensor: fx.Node
    dim: int
    label: np.ndarray  # of the input dimension
    source: np.ndarray  # [n_out] row of the input that each row of the output is


@dataclass(frozen=True, slots=True)
class Positions:
    """The values of an integer tensor are positions along a dimension with this label, as `topk` gives them.

    taken: how many positions each choice takes (k).
    """

    label: np.ndarray
    taken: int


@dataclass(frozen=True, slots=True)
class LookUp:
    """The node reads dimension `dim` of `tensor` at positions that were chosen, `taken` of them per choice."""

    tensor: fx.Node
    dim: int
    taken: int


@dataclass(slots=True)
class Fact:
    """All that labelling learnt about one node; the executor, the costs and the proof read only this."""

    labels: list[Labels | None] = field(default_factory=list)  # per output; None for what is not a tensor
    patches: list[Patch] = field(default_factory=list)
    macs: list[list[Dim]] = field(default_factory=list)  # sum of products
    consumed: list[Consumed] = field(default_factory=list)  # dimensions that a product sums over, one operand each
    gather: Gather | None = None
    positions: dict[int, Positions] = field(default_factory=dict)  # by output
    choice: Positions | None = None  # the node chooses along this dimension, so that as many have to stay
    look_up: LookUp | None = None
    rewrite: Callable[[Survivors], tuple[Any, tuple, dict]] | None = None  # another operator does it after the cut
    masked: Callable[[dict[str, Any], Survivors], torch.Tensor] | None = None  # reference semantics if not plain
    rescale_output: Label = None  # sym_size of a tracked dimension reports the size before cutting
    covered: bool = True
    notes: list[str] = field(default_factory=list)


class Survivors:
    """Which indices survive, given which atoms do (`alive`: boolean, one entry per atom)."""

    def __init__(self, atoms: Atoms, alive: np.ndarray):
        self._atoms = atoms
        self._alive = np.append(alive, True)  # the padding -1 reads the last entry
        self._rows: dict[int, np.ndarray] = {}

    def rows(self, label: np.ndarray) -> np.ndarray:
        """Boolean [n]: the rows all of whose atoms are alive."""
        key = id(label)
        if key not in self._rows:
            final = self._atoms.final(label)
            self._rows[key] = np.ones(len(label), dtype=bool) if final is None else self.rows_of(final)
        return self._rows[key]

    def rows_of(self, final: np.ndarray) -> np.ndarray:
        """Compute `rows` of a label that is in its final form."""
        return np.asarray(self._alive[final].all(axis=1))

    def widths(self, space: Space) -> np.ndarray:
        """Surviving channels of every group, int64 [groups]."""
        return np.array([self.rows_of(group.atoms[:, None]).sum() for group in space], dtype=np.int64)

    def count(self, label: np.ndarray) -> int:
        return int(self.rows(label).sum())

    def index(self, label: np.ndarray) -> np.ndarray:
        return np.flatnonzero(self.rows(label))

    def cut(self, label: Label) -> bool:
        """Tell whether any index of the label is dropped."""
        return label is not None and not bool(self.rows(label).all())

    def before(self, label: np.ndarray, position: int) -> int:
        """Count the rows below `position` that survive."""
        return int(self.rows(label)[:position].sum())


class Call:
    """One node as a rule sees it: arguments by schema name, labels, shapes, and the algebra to write equations in."""

    def __init__(self, node: fx.Node, atoms: Atoms, captured: Captured, facts: dict[str, Fact]):
        self.node = node
        self.name = op_name(node.target)
        self.fact = Fact()
        self._atoms = atoms
        self._captured = captured
        self._facts = facts
        self._followed: set[fx.Node] = set()
        self.arguments = bound_arguments(node)

    def __getitem__(self, argument: str) -> Any:
        return self.arguments.get(argument)

    # ---------------------------------------------------------------------------------------- what is known

    @property
    def reason(self) -> str:
        where = module_of(self.node)
        return f"{self.name} in {where}" if where else self.name

    def labels(self, value: fx.Node) -> Labels:
        labels = self._facts[value.name].labels[0]
        assert labels is not None
        return list(labels)

    def concrete(self, value: TensorValue) -> tuple[int, ...]:
        """Compute the shape of a traced tensor, with the batch symbol replaced by the example's batch."""
        return self._captured.concrete(value)

    def shape(self, value: fx.Node) -> tuple[int, ...]:
        return self._captured.concrete(value.meta["val"])

    def symbolic(self, value: fx.Node) -> tuple[Any, ...]:
        """Shape with the batch symbol left in."""
        return tuple(value.meta["val"].shape)

    def is_tensor(self, value: Any) -> bool:
        return isinstance(value, fx.Node) and isinstance(value.meta.get("val"), TensorValue)

    def tensors(self) -> list[fx.Node]:
        return [n for n in self.node.all_input_nodes if self.is_tensor(n)]

    @property
    def out(self) -> Any:
        return self.node.meta.get("val")

    @property
    def out_shape(self) -> tuple[int, ...]:
        return self._captured.concrete(self.out)

    @property
    def out_symbolic(self) -> tuple[Any, ...]:
        return tuple(self.out.shape)

    def numbers(self, values: Any) -> Any:
        """Arguments that may hold nodes of sizes, as concrete ints."""
        if isinstance(values, fx.Node):
            return self._captured.concrete(values.meta["val"])
        if isinstance(values, (list, tuple)):
            return [self.numbers(v) for v in values]
        return values

    def constant(self, node: fx.Node) -> np.ndarray | None:
        """Values of a tensor that is part of the model and no parameter, or of a copy of one, or None."""
        while node.op == "call_function" and op_name(node.target) in _COPIES:
            node = cast("fx.Node", node.args[0])
        tensor = self._captured.tensors.get(self._captured.sources.get(node.name, ""))
        if tensor is None or isinstance(tensor, torch.nn.Parameter) or tensor.is_floating_point():
            return None
        return tensor.detach().cpu().numpy()

    def positions(self, value: fx.Node) -> Positions | None:
        """What the values of a tensor are positions along; the dimension is locked where a rule does not ask."""
        self._followed.add(value)
        return self._facts[value.name].positions.get(0)

    def unfollowed(self) -> list[Positions]:
        """List what the values of operands are positions along, where no rule asked, or asked for one of two uses."""
        uses: list[fx.Node] = []
        fx.map_arg((self.node.args, self.node.kwargs), uses.append)
        operands = (t for t in self.tensors() if t not in self._followed or uses.count(t) > 1)
        return [p for t in operands if (p := self._facts[t.name].positions.get(0)) is not None]

    # ---------------------------------------------------------------------------------------- what a rule says

    def equate(self, a: Label, b: Label) -> None:
        self._atoms.equate(a, b, self.reason)

    def lock(self, label: Label, why: str = "") -> None:
        self._atoms.lock(label, f"{self.reason} ({why})" if why else self.reason)

    def norm(self, label: Label) -> Label:
        return self._atoms.norm(label)

    def fresh(self, n: int) -> np.ndarray:
        return self._atoms.fresh(n)

    def split(self, label: Label, sizes: list[int]) -> Labels:
        return self._atoms.split(label, sizes, self.reason)

    def scale(self, argument: str, label: Label, position: int | None = None) -> None:
        """Declare that the number in `argument` counts the indices of `label`."""
        if label is not None:
            self.fact.patches.append(Patch(argument, position, label))

    def set(self, argument: str, value: Callable[[Survivors], Any], position: int | None = None) -> None:
        self.fact.patches.append(Patch(argument, position, value=value))

    def macs(self, *dims: Dim) -> None:
        self.fact.macs.append(list(dims))

    def consume(self, argument: str, dim: int, position: int | None = None) -> None:
        """Declare that a product sums over this dimension; what has the same label in the result is another index."""
        self.fact.consumed.append(Consumed(argument, dim, position))

    def look_up(self, tensor: fx.Node, dim: int, index: fx.Node) -> bool:
        """Tie dimension `dim` of `tensor` to what the values of `index` are positions along; False where that is none.

        Rows and positions are renumbered alike, so that the cut network looks up the same row by itself.
        """
        positions = self.positions(index)
        if positions is None:
            return False
        if self.shape(tensor)[dim] != len(positions.label):
            self.lock(positions.label, "positions along it are used along another dimension")
            return False
        self.equate(self.labels(tensor)[dim], positions.label)
        self.fact.look_up = LookUp(tensor, dim, positions.taken)
        return True

    def note(self, text: str) -> None:
        self.fact.notes.append(f"{self.reason}: {text}")

    def lock_all(self) -> list[Labels | None]:
        """Lock every label, the sound answer for an unknown operator; it counts as uncovered if it locked anything."""
        for value in self.tensors():
            for label in self.labels(value):
                self.fact.covered &= self.norm(label) is None
                self.lock(label, "operator without a rule")
        return self.free_outputs()

    def opaque(self) -> Labels:
        """Apply `lock_all` to an operator with one output."""
        return self.lock_all()[0] or []

    def free_outputs(self) -> list[Labels | None]:
        values = self.out if isinstance(self.out, (list, tuple)) else [self.out]
        return [[None] * v.dim() if isinstance(v, TensorValue) else None for v in values]


def bound_arguments(node: fx.Node) -> dict[str, Any]:
    """Arguments by the names of the operator's schema, defaults filled in; positions as names elsewhere."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return {str(i): a for i, a in enumerate(node.args)} | dict(node.kwargs)
    bound = {}
    for i, argument in enumerate(node.target._schema.arguments):
        if i < len(node.args):
            bound[argument.name] = node.args[i]
        elif argument.name in node.kwargs:
            bound[argument.name] = node.kwargs[argument.name]
        else:
            bound[argument.name] = argument.default_value
    return bound


def alias_kind(target: Any) -> str:
    """Tell `view`, `inplace` or `new` by the operator's schema."""
    if not isinstance(target, torch._ops.OpOverload):
        return "view"  # getitem and integer arithmetic make no tensor
    infos = [r.alias_info for r in target._schema.returns if r.alias_info is not None]
    if not infos:
        return "new"
    return "inplace" if any(i.is_write for i in infos) else "view"


def written_in_place(node: fx.Node) -> bool:
    """Tell whether an in-place operator writes into this value, or into a view of it."""
    for user in node.users:
        kind = alias_kind(user.target) if user.op == "call_function" else "new"
        if user.args and user.args[0] is node and (kind == "inplace" or (kind == "view" and written_in_place(user))):
            return True
    return False


def with_argument(node_target: Any, args: tuple, kwargs: dict, name: str, value: Any) -> tuple[tuple, dict]:
    """Return `args, kwargs` with one argument of the schema replaced."""
    for i, argument in enumerate(node_target._schema.arguments):
        if argument.name == name and i < len(args):
            return (*args[:i], value, *args[i + 1 :]), kwargs
    return args, {**kwargs, name: value}
