"""What of a language model goes, by each row's choice, and what several budgets share measured once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

import metaprune as mp
from metaprune.methods.criteria.curves import MeasuredWidths
from metaprune.protocol.method import PruneTask
from metaprune.protocol.registry import create_method

BATCH = 8
NEURONS = mp.Constraints(only=("*mlp*:hidden",))
BRANCHES = mp.Constraints(whole=("*",), min_keep=0)
NEURONS_AND_BRANCHES = mp.Constraints(whole=("*self_attn*",), min_keep=0)  # attention goes whole or not at all
UNIFORM = {"allocate": "uniform"}


class Choices:
    """The choices for one network and one draw of calibration text; what several budgets share is measured once."""

    def __init__(self, network: mp.Network, data: mp.Data, ids: Tensor, seed: int):
        self.network, self.data, self.ids, self.rng = network, data, ids, mp.Rng(seed)
        self.task = PruneTask(network, data, NEURONS, batch_size=BATCH)

    def plan(self, label: str, budget: mp.Budget) -> mp.Plan:
        """Choose what stays by one of `PLANS`."""
        return PLANS[label](self, budget)

    def by_method(self, budget: mp.Budget, name: str, options: dict[str, Any]) -> mp.Plan:
        return create_method(name, options).propose(self.task, budget, self.rng).plan

    def by_activation(self, budget: mp.Budget) -> mp.Plan:
        """The same share of the neurons in every layer, by the activation criterion."""
        return self.task.allocator(budget).by_ratio(self.scores, fill=False)

    def by_sensitivity(self, budget: mp.Budget, constraints: mp.Constraints) -> mp.Plan:
        """Widths, and whole branches where the constraints let them go, of least measured loss."""
        task = replace(self.task, constraints=constraints)
        return self.measured.plan(task.allocator(budget), self.scores)

    def by_layers(self, budget: mp.Budget) -> mp.Plan:
        """Whole layers in the order of `by_cosine`, as many as the budget takes."""
        bound = budget.bounds(self.network.cost())["params"]
        plan = mp.Plan()
        for branches in self.by_cosine:
            if self.network.cost(plan).params <= bound:
                break
            groups = (g for b in self.network.branches if b.name in branches for g in b.groups)
            plan = mp.Plan({**plan.keep, **dict.fromkeys(groups, ())})
        return plan

    @cached_property
    def scores(self) -> list[Any]:
        method = create_method("activation", {"samples": len(self.ids)})
        return method.scores(self.task, mp.Plan(), self.rng.child("step", 0))

    @cached_property
    def measured(self) -> MeasuredWidths:
        return MeasuredWidths(self.task, "activation", self.rng.child("curves"))

    @cached_property
    @torch.no_grad()
    def by_cosine(self) -> list[tuple[str, ...]]:
        """Whole layers by the block influence of ShortGPT (arXiv 2403.03853): 1 - cosine of their input and output."""
        output = self.network.model(input_ids=self.ids, output_hidden_states=True)
        streams = output.hidden_states[:-1]  # the last one is normalised, so the last layer is not asked
        influence = [float(1 - cosine_similarity(a, b, dim=-1).mean()) for a, b in pairwise(streams)]
        order = sorted(range(len(influence)), key=influence.__getitem__)
        return [(f"model.layers.{i}.self_attn", f"model.layers.{i}.mlp") for i in order]


PLANS: dict[str, Callable[[Choices, mp.Budget], mp.Plan]] = {
    "random": partial(Choices.by_method, name="random", options={"widths": "uniform"}),
    "magnitude (L2)": partial(Choices.by_method, name="magnitude", options=UNIFORM),
    "activation": Choices.by_activation,
    "width: sensitivity": partial(Choices.by_sensitivity, constraints=NEURONS),
    "depth: sensitivity": partial(Choices.by_sensitivity, constraints=BRANCHES),
    "width and depth: sensitivity": partial(Choices.by_sensitivity, constraints=NEURONS_AND_BRANCHES),
    "ShortGPT's choice: layers by cosine": Choices.by_layers,
}
