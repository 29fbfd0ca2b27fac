"""`MethodSuite`: what every method must do. Shipped, so that a package with its own method runs the same tests.

    class TestMyMethod(MethodSuite):  # MaskedSuite for masks of single weights, BranchSuite for whole branches
        method, options = "my_method", {"steps": 2}

collected by pytest, with the method registered under that name.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from metaprune.core.errors import ConfigError, InfeasibleBudgetError, NoEffectWarning, NotAvailableError
from metaprune.core.files import tensors_digest
from metaprune.core.rng import Rng
from metaprune.data import Data, TensorSplit
from metaprune.methods import create_method, method_class
from metaprune.models import create
from metaprune.network import Network
from metaprune.protocol.artifact import Artifact
from metaprune.protocol.method import LearnedMethod, Method, PruneTask
from metaprune.runs.prune import prune
from metaprune.surgery import cut
from metaprune.testing.oracles import assert_untouched, perturb
from metaprune.tracing import trace
from metaprune.values import Budget, Constraints, Plan, Proposal

NETWORKS = {"cnn": "zoo:resnet8", "transformer": "zoo:vit_micro"}
BUDGETS = ({"macs": "50%"}, {"params": "40%"}, {"memory_mb": "70%"}, {"macs": "60%", "params": "30%"})


def small_data(seed: int = 0, n: int = 96) -> Data:
    """Three splits of noise images [n, 1, 28, 28] with ten labels."""
    draw = np.random.default_rng(seed)
    splits: list[TensorSplit] = []
    for _ in range(3):
        images = torch.from_numpy(draw.integers(0, 256, (n, 1, 28, 28), dtype=np.uint8))
        splits.append(TensorSplit(images, torch.from_numpy(draw.integers(0, 10, n)), (0.5,), (0.3,)))
    train, val, test = splits
    return Data("noise", train, val, test, 10, (1, 28, 28), tuple("0123456789"), "noise")


def small_network(kind: str) -> nn.Module:
    with Rng(7).torch_global():
        options: dict[str, Any] = {"image_size": 28} if kind == "transformer" else {}
        model = create(NETWORKS[kind], num_classes=10, in_channels=1, **options)
    return perturb(model, seed=3).eval()


def proposed(method: str, options: dict[str, Any], kind: str, budget: dict[str, str], seed: int) -> dict[str, Any]:
    """Return what a method decides on a small network: the plan, and a hash of the masks of single weights."""
    torch.set_num_threads(1)
    task = PruneTask(trace(small_network(kind), torch.zeros(2, 1, 28, 28)), small_data(), batch_size=32)
    return decided(create_method(method, options).propose(task, Budget.parse(budget), Rng(seed)))


def decided(proposal: Proposal) -> dict[str, Any]:
    return {"plan": proposal.plan.to_dict(), "masks": tensors_digest(proposal.masks)}


def _key(case: tuple[Any, ...]) -> str:
    return json.dumps(case, sort_keys=True)


@functools.cache
def _proposed_elsewhere(keys: tuple[str, ...]) -> dict[str, Any]:
    """What one child process decides in the cases of all suites of a session: its start takes longer than a plan."""
    code = (
        "import json, sys\nfrom metaprune.testing.method_suite import proposed\n"
        "print('PLANS' + json.dumps({key: proposed(*json.loads(key)) for key in json.loads(sys.stdin.read())}))"
    )
    done = subprocess.run([sys.executable, "-c", code], input=json.dumps(keys), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(next(x for x in done.stdout.splitlines() if x.startswith("PLANS")).removeprefix("PLANS"))


class MethodSuite:
    """Subclass with `method`, and `options` that keep it quick."""

    method: ClassVar[str]
    options: ClassVar[dict[str, Any]] = {}
    kinds: ClassVar[tuple[str, ...]] = ("cnn", "transformer")
    metric: ClassVar[str] = "macs"  # that the method can meet a budget of
    shares: ClassVar[tuple[str, ...]] = ("80%", "50%", "30%")  # of it, the middle one wherever one is enough
    fits: ClassVar[bool] = False  # a `LearnedMethod` that is fitted once per network, for all budgets

    def budget(self) -> Budget:
        return Budget.parse({self.metric: self.shares[1]})

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _networks(cls) -> None:
        """Traced once per class; methods must not change them."""
        cls.networks = {k: trace(small_network(k), torch.zeros(2, 1, 28, 28)) for k in cls.kinds}
        cls.data = small_data()
        cls.artifacts = {}

    artifacts: ClassVar[dict[str, Artifact]]
    networks: ClassVar[dict[str, Network]]
    data: ClassVar[Data]

    def make(self) -> Method:
        return create_method(self.method, self.options)

    def fitted(self, kind: str) -> Method:
        """Return the method with what it learned on one of the networks, where it learns."""
        method = self.make()
        if not self.fits or not isinstance(method, LearnedMethod):
            return method
        if kind not in self.artifacts:
            self.artifacts[kind] = method.fit([self.task(kind)], Rng(0))
        return method.restore(self.artifacts[kind])

    def task(self, kind: str = "cnn", **constraints: Any) -> PruneTask:
        return PruneTask(self.networks[kind], self.data, Constraints(**constraints), batch_size=32)

    # ------------------------------------------------------------------------------------------ the protocol

    def test_is_a_method_with_a_card(self) -> None:
        kind = method_class(self.method)
        assert isinstance(self.make(), Method)
        assert kind.name == self.method
        assert isinstance(kind.needs_data, bool)
        assert sys.modules[kind.__module__].__doc__
        assert kind.__doc__

    def test_options_round_trip(self) -> None:
        made = self.make()
        assert create_method(self.method, {**vars(made)}) == made

    def test_unknown_option_names_the_closest(self) -> None:
        with pytest.raises(ConfigError, match="unknown key"):
            create_method(self.method, {"no_such_option": 1})

    # ------------------------------------------------------------------------------------------ budgets

    @pytest.mark.parametrize("budget", BUDGETS, ids=str)
    def test_meets_the_budget_with_little_left_over(self, budget: dict[str, str]) -> None:
        for kind in self.kinds:
            task, parsed = self.task(kind), Budget.parse(budget)
            plan = self.fitted(kind).propose(task, parsed, Rng(0)).plan
            plan.check(task.network.space)
            cost, bounds = task.network.cost(plan), parsed.bounds(task.network.cost())
            assert all(cost[m] <= b for m, b in bounds.items())
            self.assert_nothing_more_fits(task, plan, bounds)

    def assert_nothing_more_fits(self, task: PruneTask, plan: Plan, bounds: dict[str, float]) -> None:
        """Assert that one more channel of any group that was cut would break a bound."""
        widths = plan.widths(task.network.space)
        for g in np.flatnonzero(widths < task.network.space.widths):
            more = widths.copy()
            more[g] += 1
            cost = task.network.cost(more)
            assert any(cost[m] > b for m, b in bounds.items()), task.network.space.groups[g].name

    def test_an_impossible_budget_says_what_is_possible(self) -> None:
        for kind in self.kinds:
            task = self.task(kind)
            with pytest.raises(InfeasibleBudgetError, match="smallest reachable") as caught:
                self.fitted(kind).propose(task, Budget(macs=1), Rng(0))
            assert 1 < caught.value.smallest["macs"] < task.network.cost().macs

    def test_a_full_budget_changes_nothing_and_warns(self) -> None:
        model = small_network(self.kinds[0])
        with pytest.warns(NoEffectWarning, match="nothing is cut"):
            result = prune(
                model,
                torch.zeros(2, 1, 28, 28),
                budget={"macs": "100%"},
                method=self.make(),
                data=self.data,
                progress=False,
            )
        assert result.plan == Plan()
        x = torch.randn(2, 1, 28, 28)
        assert torch.equal(result.model(x), model(x))

    def test_latency_is_refused_clearly(self) -> None:
        with pytest.raises(NotAvailableError, match="latency"):
            self.make().propose(self.task(self.kinds[0]), Budget(latency_ms=1.0), Rng(0))

    # ------------------------------------------------------------------------------------------ constraints

    def test_round_to_and_min_keep(self) -> None:
        task = self.task(self.kinds[0], round_to=4, min_keep=8)
        widths = self.make().propose(task, Budget(macs="60%"), Rng(0)).plan.widths(task.network.space)
        full = task.network.space.widths
        assert ((widths == full) | ((widths % 4 == 0) & (widths >= 8))).all()
        assert (widths < full).any()

    def test_ignore_leaves_groups_whole(self) -> None:
        space = self.networks[self.kinds[0]].space
        task = self.task(self.kinds[0], ignore=(space.groups[1].name,))
        plan = self.make().propose(task, Budget(macs="70%"), Rng(0)).plan
        assert space.groups[1].name not in plan.keep
        assert plan.keep

    def test_ratios_fix_a_width(self) -> None:
        space = self.networks[self.kinds[0]].space
        group = space.groups[0]
        task = self.task(self.kinds[0], ratios={group.name: 0.5})
        plan = self.make().propose(task, Budget(macs="60%"), Rng(0)).plan
        assert len(plan.keep[group.name]) == group.width // 2

    # ------------------------------------------------------------------------------------------ determinism and purity

    def test_same_seed_same_plan_in_another_process(self, request: Any) -> None:
        suites = {i.cls for i in request.session.items if isinstance(i.cls, type) and issubclass(i.cls, MethodSuite)}
        there = _proposed_elsewhere(tuple(sorted(_key(suite.case()) for suite in suites)))
        assert there[_key(self.case())] == json.loads(json.dumps(proposed(*self.case())))

    @classmethod
    def case(cls) -> tuple[Any, ...]:
        """Return what `proposed` is asked for in both processes."""
        return cls.method, cls.options, cls.kinds[0], {cls.metric: cls.shares[1]}, 5

    def test_the_input_model_is_left_as_it_was(self) -> None:
        for kind in self.kinds:
            with assert_untouched(self.networks[kind].model):
                self.make().propose(self.task(kind), self.budget(), Rng(0))

    def test_mode_and_frozen_parameters_make_no_difference(self) -> None:
        decisions = []
        for frozen in (False, True):
            model = small_network(self.kinds[0]).train(frozen).requires_grad_(not frozen)
            task = PruneTask(trace(model, torch.zeros(2, 1, 28, 28)), self.data, batch_size=32)
            decisions.append(decided(self.make().propose(task, self.budget(), Rng(1))))
        assert decisions[0] == decisions[1]

    # ------------------------------------------------------------------------------------------ the result

    def test_the_cut_network_runs_and_keeps_its_output(self) -> None:
        for kind in self.kinds:
            task = self.task(kind)
            proposal = self.fitted(kind).propose(task, self.budget(), Rng(0))
            pruned = cut(task.network, proposal.plan, weights=proposal.weights, masks=proposal.masks)
            assert pruned.error is not None
            assert pruned.error <= 1e-9
            assert pruned.model(torch.randn(5, 1, 28, 28)).shape == (5, 10)
            params = sum(p.numel() for p in pruned.model.parameters())
            assert params == task.network.cost(proposal.plan).params

    def test_tighter_budgets_cost_less(self) -> None:
        task = self.task(self.kinds[0])
        proposals = [
            self.fitted(self.kinds[0]).propose(task, Budget.parse({self.metric: b}), Rng(0)) for b in self.shares
        ]
        costs = [task.network.cost(p.plan, masks=p.masks)[self.metric] for p in proposals]
        assert costs == sorted(costs, reverse=True)

    def test_without_data_a_method_that_needs_it_says_so(self) -> None:
        if not self.make().needs_data:
            pytest.skip("needs no data")
        with pytest.raises(ConfigError, match="data"):
            self.make().propose(PruneTask(self.networks[self.kinds[0]]), self.budget(), Rng(0))


class MaskedSuite(MethodSuite):
    """For methods that hold single weights at zero and drop no channel. `fixed`: whatever the budget, as N:M does."""

    metric = "nonzero"
    fixed: ClassVar[bool] = False

    @pytest.mark.parametrize("budget", [{"nonzero": "60%"}, {"nonzero": "70%", "macs": "100%"}], ids=str)
    def test_meets_the_budget_with_little_left_over(self, budget: dict[str, str]) -> None:
        for kind in self.kinds:
            task, parsed = self.task(kind), Budget.parse(budget)
            proposal = self.fitted(kind).propose(task, parsed, Rng(0))
            assert not proposal.plan.keep
            cost = task.network.cost(proposal.plan, masks=proposal.masks)
            bound = parsed.bounds(task.network.cost())["nonzero"]
            assert cost.nonzero <= bound
            assert self.fixed or bound - cost.nonzero < 1
            assert cost.macs == task.network.cost().macs

    def test_an_impossible_budget_says_what_is_possible(self) -> None:
        for kind in self.kinds:
            task = self.task(kind)
            with pytest.raises(InfeasibleBudgetError, match="smallest reachable") as caught:
                self.make().propose(task, Budget(nonzero=1), Rng(0))
            assert 1 < caught.value.smallest["nonzero"] < task.network.cost().params
            for budget in ("macs=50%", "params=50%", "memory_mb=50%", "macs=50%,nonzero=60%"):
                with pytest.raises(InfeasibleBudgetError, match="Bound nonzero instead"):
                    self.make().propose(task, Budget.parse(budget), Rng(0))

    def test_a_full_budget_changes_nothing_and_warns(self) -> None:
        if not self.fixed:
            super().test_a_full_budget_changes_nothing_and_warns()
            return
        proposal = self.make().propose(self.task(), Budget.parse("macs=100%"), Rng(0))
        assert proposal.masks  # the pattern was asked for

    def test_round_to_and_min_keep(self) -> None:
        task = self.task(self.kinds[0], round_to=4, min_keep=8)
        assert self.make().propose(task, self.budget(), Rng(0)).masks  # full widths are within both

    def test_ignore_leaves_groups_whole(self) -> None:
        names = {n for n in self.make().propose(self.task(), self.budget(), Rng(0)).masks if n.endswith(".weight")}
        module = max(names).rpartition(".")[0]
        budget = Budget.parse({"nonzero": "90%"})
        for pattern in (module, f"{module}.w*"):
            proposal = self.make().propose(self.task(ignore=(pattern,)), budget, Rng(0))
            assert set(proposal.masks) & names == names - {f"{module}.weight"}
            assert f"{module}.weight" in proposal.details["masks"]["whole"]

    def test_ratios_fix_a_width(self) -> None:
        group = self.networks[self.kinds[0]].space.groups[0]
        with pytest.raises(ConfigError, match="fix widths of channels"):
            self.make().propose(self.task(ratios={group.name: 0.5}), self.budget(), Rng(0))


class BranchSuite(MethodSuite):
    """For methods that drop branches whole, and leave all widths."""

    def assert_nothing_more_fits(self, task: PruneTask, plan: Plan, bounds: dict[str, float]) -> None:
        """Assert that widths stay, and that one more branch would break a bound."""
        space = task.network.space
        dropped = [groups for groups in space.branch_groups if all(space[g].name in plan.keep for g in groups)]
        assert dropped and not any(plan.keep.values())
        for groups in dropped:
            keep = {name: () for name in plan.keep if space.index[name] not in groups}
            assert any(task.network.cost(Plan(keep))[m] > b for m, b in bounds.items())

    def test_round_to_and_min_keep(self) -> None:
        task = self.task(self.kinds[0], round_to=4, min_keep=8)  # of widths, which stay
        assert self.make().propose(task, self.budget(), Rng(0)).plan.keep

    def test_ignore_leaves_groups_whole(self) -> None:
        space = self.networks[self.kinds[0]].space
        for held, *others in (space.branches, space.branches[::-1]):
            here, only = f"{held.name}:branch", tuple(f"{b.name}:branch" for b in others)
            for task in (self.task(self.kinds[0], ignore=(here,)), self.task(self.kinds[0], only=only)):
                plan = self.make().propose(task, Budget(macs="70%"), Rng(0)).plan
                assert plan.keep
                assert not set(held.groups) & plan.keep.keys()

    def test_ratios_fix_a_width(self) -> None:
        group = self.networks[self.kinds[0]].space.groups[0]
        with pytest.raises(ConfigError, match="fix widths of channels"):
            self.make().propose(self.task(self.kinds[0], ratios={group.name: 0.5}), self.budget(), Rng(0))
