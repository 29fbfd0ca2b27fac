"""The one protocol that every method meets, and what it is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol, Self, runtime_checkable

from metaprune.core.arguments import check_arguments, check_fields
from metaprune.core.errors import ConfigError
from metaprune.core.rng import Rng
from metaprune.network import Network
from metaprune.protocol.artifact import Artifact
from metaprune.protocol.options import MethodOptions
from metaprune.search.allocate import Allocator
from metaprune.values import Budget, Constraints, Proposal

if TYPE_CHECKING:
    from metaprune.data import Data
    from metaprune.recover.config import RecoverKind


@dataclass(frozen=True)
class PruneTask:
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

    def __post_init__(self) -> None:
        check_fields(self)

    def allocator(self, budget: Budget, frozen: set[int] | None = None) -> Allocator:
        """Raises InfeasibleBudgetError if no structure meets the budget."""
        check_arguments(PruneTask.allocator, locals())
        return Allocator(self.network.space, self.network.cost_model(), budget, self.constraints, frozen)

    def require_data(self, method: str) -> Data:
        """Return the data.

        Raises:
            ConfigError: there are none; names the method.
        """
        if self.data is None:
            raise ConfigError(
                f"method {method!r} looks at training data: pass data=..., or use magnitude, which needs none"
            )
        return self.data


def require_within(
    task: PruneTask, budget: Budget, proposal: Proposal, refusal: Callable[[str, dict[str, float]], Exception]
) -> None:
    """Check the exact cost of a proposal against the budget.

    refusal: (bounds that are exceeded, as "macs 1,200 > 1,000"; the cost by bounded metric) -> the error to raise.
    """
    network = task.network
    bounds, cost = budget.bounds(network.cost()), network.cost(proposal.plan, masks=proposal.masks)
    reached = {m: float(cost[m]) for m in bounds}
    over = [f"{m} {reached[m]:,.6g} > {bound:,.6g}" for m, bound in bounds.items() if reached[m] > bound]
    if over:
        raise refusal("; ".join(over), reached)


@runtime_checkable
class Method(Protocol):
    """Says what stays. Constructed with its options; the same task, budget and rng give the same proposal."""

    name: ClassVar[str]
    needs_data: ClassVar[bool]

    def propose(self, task: PruneTask, budget: Budget, rng: Rng) -> Proposal:
        """Return a plan that meets `budget` exactly or raise InfeasibleBudgetError."""
        ...


@runtime_checkable
class LearnedMethod(Method, Protocol):
    """A method that is meta-trained before it proposes. One that was not trains itself on the task it is given."""

    def fit(self, tasks: Sequence[PruneTask], rng: Rng) -> Artifact:
        """Meta-train; resumable where the tasks have a folder."""
        ...

    def restore(self, artifact: Artifact) -> Self:
        """Return the same method, with what was learned."""
        ...


class BaseMethod(MethodOptions):
    """Base class of the methods that metaprune ships: the optional members, with their defaults.

    A method that does not derive from it works, too: `completed` adds what it lacks.
    """

    def require_feasible(self, task: PruneTask, budget: Budget) -> None:
        """Say what can be said of a budget and the constraints before anything is trained.

        The default asks whether channels can be dropped until the budget is met; a method whose results are no
        channels asks for its own.

        Raises:
            InfeasibleBudgetError, NotAvailableError, PlanError: as `Method.propose`.
        """
        task.allocator(budget)

    def recovery(self, kind: RecoverKind) -> RecoverKind:
        """Return the recovery that follows the method, where `kind` is asked for. `auto` is none by default.

        Raises:
            ConfigError: a recovery that would throw away what the method hands over.
        """
        return "none" if kind == "auto" else kind


class _Completed(BaseMethod):
    """The optional members of a method that does not derive from `BaseMethod`: its own, else the defaults."""

    def __init__(self, method: Method):
        optional = (*vars(BaseMethod), *vars(MethodOptions))
        vars(self).update({n: getattr(method, n) for n in optional if n[0] != "_" and hasattr(method, n)})


def completed(method: Method) -> BaseMethod:
    """Complete `method` with every optional member: the one place that knows that a method may lack some."""
    return method if isinstance(method, BaseMethod) else _Completed(method)


def require_feasible(method: Method, task: PruneTask, budget: Budget) -> None:
    """Ask `method` what it can say of a budget before anything is trained, see `BaseMethod.require_feasible`."""
    completed(method).require_feasible(task, budget)


def recovery_after(method: Method, kind: RecoverKind) -> RecoverKind:
    """Return the recovery that follows `method`, see `BaseMethod.recovery`."""
    return completed(method).recovery(kind)
