"""The one protocol that every method meets, and what it is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol, Self, runtime_checkable

from metaprune.core.errors import ConfigError
from metaprune.core.rng import Rng
from metaprune.network import Network
from metaprune.protocol.artifact import Artifact
from metaprune.search.allocate import Allocator
from metaprune.values import Budget, Constraints, Proposal

if TYPE_CHECKING:
    from metaprune.data import Data
    from metaprune.recover.config import RecoverKind


@dataclass(frozen=True)
class Task:
    """What is to be pruned. Read-only: a method changes neither the network nor the data.

    data: None where the caller gave none; methods with `needs_data` are refused then.
    batch_size: samples per forward pass where a method looks at data.
    folder: where long work is kept, so that a killed run continues; None keeps nothing.
    progress: whether bars may be shown.
    """

    network: Network
    data: Data | None = None
    constraints: Constraints = field(default_factory=Constraints)
    batch_size: int = 128
    folder: Path | None = None
    progress: bool = False

    def allocator(self, budget: Budget, frozen: set[int] | None = None) -> Allocator:
        """Raises InfeasibleBudgetError if no structure meets the budget."""
        return Allocator(self.network.space, self.network.cost_model(), budget, self.constraints, frozen)

    def require_data(self, method: str) -> Data:
        if self.data is None:
            raise ConfigError(
                f"method {method!r} looks at training data: pass data=..., or use magnitude, which needs none"
            )
        return self.data


def require_feasible(method: Method, task: Task, budget: Budget) -> None:
    """What can be said of a budget and the constraints before anything is trained.

    A method whose results are no channels brings its own `require_feasible(task, budget)`.

    Raises:
        InfeasibleBudgetError, NotAvailableError, PlanError: as `Method.propose`.
    """
    own = getattr(method, "require_feasible", None)
    if own is None:
        task.allocator(budget)
    else:
        own(task, budget)


def recovery_after(method: Method, kind: RecoverKind) -> RecoverKind:
    """The recovery that follows `method`: `auto` is none, unless the method has a `recovery(kind)` of its own.

    Raises:
        ConfigError: a recovery that would throw away what the method hands over.
    """
    own = getattr(method, "recovery", None)
    if own is not None:
        return own(kind)
    return "none" if kind == "auto" else kind


@runtime_checkable
class Method(Protocol):
    """Says what stays. Constructed with its options; the same task, budget and rng give the same proposal."""

    name: ClassVar[str]
    needs_data: ClassVar[bool]

    def propose(self, task: Task, budget: Budget, rng: Rng) -> Proposal:
        """Return a plan that meets `budget` exactly or raise InfeasibleBudgetError."""
        ...


@runtime_checkable
class Learned(Method, Protocol):
    """A method that is meta-trained before it proposes. One that was not trains itself on the task it is given."""

    def fit(self, tasks: Sequence[Task], rng: Rng) -> Artifact:
        """Meta-train; resumable where the tasks have a folder."""
        ...

    def restore(self, artifact: Artifact) -> Self:
        """The same method, with what was learned."""
        ...
