"""Runs of many cut networks on one batch: each begins where it first differs from the full network's run."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from metaprune.core.rng import Rng
from metaprune.elastic.program import (
    CallStep,
    Execution,
    Program,
    ProgramAtWidths,
    Step,
    Tensors,
    Weight,
    enter_autocast,
)


def same_draws() -> AbstractContextManager[None]:
    """Where a forward draws random numbers, all plans are compared on the same, and the user's generator stays."""
    return Rng(0).child("forward").torch_global()


class SharedPrefix:
    """The full network's run, stopped where a cut network first differs from it, so that this one goes on from there.

    Only what is alive at that step is held. Plans in the order of the graph let the run move on; one that differs
    earlier starts it again. A run does not stop where the graph has regions of autocast.

    is_stateful: the graph writes into the model's tensors, so that no run stops either.
    """

    def __init__(
        self,
        program: Program,
        full: ProgramAtWidths,
        tensors: Tensors,
        args: tuple,
        kwargs: dict[str, Any],
        *,
        is_stateful: bool,
    ):
        self._program, self._full, self._inputs = program, full, (tensors, args, kwargs)
        self.stops = not is_stateful and all(step.target is not enter_autocast for step in full.steps)
        self._restart()

    def _restart(self) -> None:
        self._run = Execution(self._program, self._full, *self._inputs)
        self._next = 0
        self._draws: list[Tensor] = []

    def run(self, at: ProgramAtWidths, tensors: Tensors, changed: Collection[str], call: CallStep) -> Any:
        """Return what the network gives at these widths.

        Args:
            changed: names of the tensors that are not the full network's.
            call: how the steps from the first difference on are executed.
        """
        if not self.stops:
            with same_draws():
                return self._program.run(at, tensors, *self._inputs[1:], call)
        first = first_difference(self._full, at, changed)
        if first < self._next:
            self._restart()
        with same_draws():
            _set_draws(self._draws)
            for step in self._full.steps[self._next : first]:
                self._run.run(step)
            self._next, self._draws = first, _draws()
            execution = self._run.continued(at, tensors)
            for step in at.steps[first:]:
                execution.run(step, call)
        return execution.output()


def first_difference(full: ProgramAtWidths, at: ProgramAtWidths, changed: Collection[str]) -> int:
    """Count the steps from the start on that are the same in both, and read no tensor that is `changed`."""
    for index, (a, b) in enumerate(zip(full.steps, at.steps, strict=False)):
        if a.target is not b.target or not _same((a.args, a.kwargs), (b.args, b.kwargs)) or _reads(b, changed):
            return index
    return min(len(full.steps), len(at.steps))


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor) or type(a) is not type(b):
        return a is b
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return a == b


def _reads(step: Step, changed: Collection[str]) -> bool:
    leaves = pytree.tree_leaves((step.args, step.kwargs))
    return any(isinstance(leaf, Weight) and leaf.name in changed for leaf in leaves)


def _draws() -> list[Tensor]:
    """States of torch's generators, the CPU's first."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]


def _set_draws(states: list[Tensor]) -> None:
    for state in states[:1]:
        torch.set_rng_state(state)
    for device, state in enumerate(states[1:]):
        torch.cuda.set_rng_state(state, device)
