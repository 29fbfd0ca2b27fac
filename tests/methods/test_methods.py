"""Every registered method passes the suite; a method without an entry here fails."""

from typing import ClassVar

import numpy as np
import pytest

from metaprune.core.errors import ConfigError, NotAvailableError
from metaprune.core.rng import Rng
from metaprune.methods import create_method, method_names, register
from metaprune.protocol.method import PruneTask
from metaprune.testing.method_suite import BranchSuite, MaskedSuite, MethodSuite, small_data, small_network
from metaprune.tracing import trace
from metaprune.values import Budget, Plan


class TestUniform(MethodSuite):
    method = "uniform"

    def assert_nothing_more_fits(self, task, plan, bounds):
        """Assert that the next common ratio would break a bound: left-overs are not handed to single groups."""
        full, widths = task.network.space.widths, plan.widths(task.network.space)
        ratio = (widths + 1) / full
        cost = task.network.cost(widths + (ratio == ratio.min()))
        assert any(cost[m] > b for m, b in bounds.items())


class TestUniformTilted(MethodSuite):
    method, options, kinds = "uniform", {"fill": True, "tilt": 0.5}, ("cnn",)


class TestUniformLastWhole(MethodSuite):
    method, options, kinds = "uniform", {"fill": True, "last_whole": True}, ("cnn",)


class TestUniformFilled(MethodSuite):
    method, options = "uniform", {"fill": True}


class TestUniformFirst(MethodSuite):
    method, options = "uniform", {"channels": "first", "fill": True}


class TestRandom(MethodSuite):
    method = "random"


class TestRandomUniformWidths(MethodSuite):
    method, options = "random", {"widths": "uniform"}


class TestMagnitudeL1(MethodSuite):
    method, options = "magnitude", {"p": 1}


class TestMagnitudeLocal(MethodSuite):
    method, options = "magnitude", {"scope": "local"}


class TestMagnitudeIsomorphic(MethodSuite):
    method, options = "magnitude", {"scope": "isomorphic", "steps": 2}


class TestMagnitude(MethodSuite):
    method = "magnitude"


class TestBNScale(MethodSuite):
    method, kinds = "bn_scale", ("cnn",)


class TestFPGM(MethodSuite):
    method = "fpgm"


class TestLamp(MethodSuite):
    method = "lamp"


class TestSnip(MethodSuite):
    method, kinds = "snip", ("cnn",)


class TestTaylor(MethodSuite):
    method, options = "taylor", {"batches": 2}


class TestTaylorSteps(MethodSuite):
    method, options = "taylor", {"batches": 1, "steps": 3}
    kinds = ("cnn",)


class TestTaylorBatch(MethodSuite):
    method, options = "taylor_batch", {"batches": 2}


ATTENTION = pytest.mark.filterwarnings("ignore:no layer with weights reads")


@ATTENTION
class TestActivation(MethodSuite):
    method, options = "activation", {"samples": 32}


@ATTENTION
class TestActivationL1(MethodSuite):
    method, options = "activation", {"samples": 32, "p": 1, "steps": 3}
    kinds = ("cnn",)


@ATTENTION
class TestExperts(MethodSuite):
    method, options = "experts", {"samples": 32}


@ATTENTION
class TestVariance(MethodSuite):
    method, options = "variance", {"samples": 32, "steps": 2}


@ATTENTION
class TestOBS(MethodSuite):
    method, options = "obs", {"samples": 32}


@ATTENTION
@pytest.mark.thorough
class TestOBSSteps(MethodSuite):
    method, options = "obs", {"samples": 32, "steps": 2, "scope": "isomorphic"}


class TestGates(MethodSuite):
    method, options = "gates", {"steps": 3, "batch_size": 32}


class TestGatesVib(MethodSuite):
    method, options = "gates", {"steps": 2, "batch_size": 32, "gate": "vib", "metric": "macs"}
    kinds = ("cnn",)


class TestGatesBetaBernoulli(MethodSuite):
    method, options = "gates", {"steps": 2, "batch_size": 32, "gate": "beta_bernoulli", "weights": "given"}
    kinds = ("cnn",)


BRIEF = {"epochs": 1, "batch_size": 32, "lr": 0.02, "augment": False}


class TestSFP(MethodSuite):
    method, options, kinds = "sfp", {"train": BRIEF}, ("cnn",)


class TestGroupLasso(MethodSuite):
    method, options = "group_lasso", {"train": BRIEF}


class TestNetAdapt(MethodSuite):
    method, options = "netadapt", {"steps": 2, "short": {**BRIEF, "epochs": 0.5}, "samples": 32}
    kinds = ("cnn",)

    def assert_nothing_more_fits(self, task, plan, bounds):
        """Assert that one more channel of the group that was cut last, whichever that is, would break a bound."""
        widths = plan.widths(task.network.space)
        wider = [widths + (np.arange(len(widths)) == g) for g in np.flatnonzero(widths < task.network.space.widths)]
        assert any(task.network.cost(w)[m] > b for w in wider for m, b in bounds.items())


class TestAMC(MethodSuite):
    method, options = "amc", {"trials": 4, "samples": 32, "calibration": 32}


QUICK_NET = {
    "sub_validation": 32,
    "calibration": 32,
    "batch_size": 32,
    "train": {"epochs": 1, "batch_size": 32, "lr": 0.02, "augment": False},
    "search": {"evolution": {"population": 4, "generations": 2, "parents": 2}},
}


class Searched(MethodSuite):
    """Structures of a grid: what is left of a budget is within the tolerance of the search."""

    method, fits = "pruningnet", True

    def assert_nothing_more_fits(self, task, plan, bounds):
        cost = task.network.cost(plan)
        assert max(cost[m] / bound for m, bound in bounds.items()) >= 0.95


class TestPruningNet(Searched):
    options: ClassVar = QUICK_NET


class TestPruningNetGenerated(Searched):
    options: ClassVar = {**QUICK_NET, "weights": "generated"}


@pytest.mark.thorough
class TestPruningNetSandwich(Searched):
    options: ClassVar = {**QUICK_NET, "sampling": "sandwich", "distil": True}
    kinds = ("cnn",)


QUICK_STAMP = {
    "meta": {"episodes": 2, "inner_steps": 2, "batch_size": 24, "ways": [2, 4], "augment": False},
    "adapt_steps": 2,
    "sets": 2,
    "set_dim": 8,
    "heads": 2,
    "hidden": 8,
}


@pytest.mark.filterwarnings("ignore:the mask generator gives every data set")
class TestStamp(MethodSuite):
    fits = True
    method, options = "stamp", QUICK_STAMP


class TestStampStatistics(MethodSuite):
    method, options, kinds = "stamp", {"adapt_steps": 0}, ("cnn",)


@pytest.mark.filterwarnings("ignore:the mask generator gives every data set")
@pytest.mark.thorough
class TestStampPrior(MethodSuite):
    method, fits = "stamp", True
    options: ClassVar = {
        **QUICK_STAMP,
        "prior": "beta_bernoulli",
        "kl_weight": 1e-3,
        "encoder": "classes",
        "metric": "memory_mb",
    }
    kinds = ("cnn",)


@pytest.mark.filterwarnings("ignore:the mask generator gives every data set")
class TestStampFilter(MaskedSuite):
    method, fits = "stamp", True
    options: ClassVar = {**QUICK_STAMP, "variant": "filter"}
    kinds = ("cnn",)


QUICK_METAGRAPH = {
    "objective": "rewrite",
    "metanet": {"hidden": 8, "layers": 1},
    "data_models": {"count": 2, "train": {"epochs": 1, "batch_size": 32, "augment": False}},
    "meta": {"steps": 1, "batches": 1, "batch_size": 32, "shares": [0.5], "judged": 32},
}


class TestMetaGraphRule(MethodSuite):
    method = "metagraph"


@pytest.mark.thorough
class TestMetaGraphRuleSensitivity(MethodSuite):
    method, options, kinds = "metagraph", {"allocate": "sensitivity"}, ("cnn",)


@pytest.mark.filterwarnings("ignore:no state of the metanetwork did better")
class TestMetaGraph(MethodSuite):
    fits = True
    method, options = "metagraph", QUICK_METAGRAPH


@pytest.mark.filterwarnings("ignore:no state of the metanetwork did better")
@pytest.mark.thorough
class TestMetaGraphTuned(MethodSuite):
    method, fits = "metagraph", True
    options: ClassVar = {
        **QUICK_METAGRAPH,
        "initial": 0.9,
        "criterion": "taylor",
        "criterion_options": {"batches": 1},
        "finetune": {"epochs": 1, "batch_size": 32, "augment": False},
    }
    kinds = ("cnn",)


class TestWeights(MaskedSuite):
    method = "weight_masks"


class TestWeightsLayer(MaskedSuite):
    method, options = "weight_masks", {"scope": "layer"}
    kinds = ("cnn",)


class TestWeightsNM(MaskedSuite):
    method, options = "weight_masks", {"pattern": "2:4"}
    shares, fixed = ("80%", "60%", "55%"), True


@pytest.mark.filterwarnings("ignore:no state of the metanetwork did better")
class TestMetaGraphUnstructured(MaskedSuite):
    fits = True
    method, options = "metagraph", {**QUICK_METAGRAPH, "pattern": "unstructured"}
    kinds = ("cnn",)


@pytest.mark.filterwarnings("ignore:no state of the metanetwork did better")
@pytest.mark.thorough
class TestMetaGraphNM(MaskedSuite):
    fits = True
    method, options = "metagraph", {**QUICK_METAGRAPH, "pattern": "1:4", "strength": 0.5}
    kinds, fixed = ("cnn",), True


class TestDepthByLoss(BranchSuite):
    method, options = "depth", {"samples": 16}


class TestDepthByCosine(BranchSuite):
    method, options = "depth", {"criterion": "cosine", "samples": 16}


class TestDepthAtOnce(BranchSuite):
    method, options, kinds = "depth", {"iterative": False, "samples": 16}, ("transformer",)


def test_every_method_is_in_the_suite():
    suites = (MethodSuite, Searched, MaskedSuite, BranchSuite)
    tested = {c.method for suite in suites for c in suite.__subclasses__() if hasattr(c, "method")}
    assert set(method_names()) <= tested


def test_unknown_method_names_the_closest():
    with pytest.raises(ConfigError, match="Did you mean 'magnitude'"):
        create_method("magnitud")


def test_a_taken_name_is_refused():
    with pytest.raises(ConfigError, match="registered already"):
        register("uniform", "somewhere:Else")


def test_bn_scale_needs_a_batchnorm():
    import torch

    task = PruneTask(trace(small_network("transformer"), torch.zeros(2, 1, 28, 28)))
    with pytest.raises(NotAvailableError, match="BatchNorm"):
        create_method("bn_scale").propose(task, Budget(macs="50%"), Rng(0))


def test_fpgm_is_the_sum_of_distances_and_snip_the_sum_of_sensitivities():
    """Against the definitions, written out, on two layers."""
    import torch
    from torch.nn import functional

    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 5), torch.nn.ReLU(), torch.nn.Linear(5, 10))
    data = small_data(n=16)
    task = PruneTask(trace(model, torch.zeros(2, 1, 28, 28)), data, batch_size=16)
    weight = model[1].weight.detach().double()
    expected = torch.stack([(weight - w).norm(dim=1).sum() for w in weight])
    found = create_method("fpgm", {"normalise": "none"}).scores(task, Plan(), Rng(0))[0]
    assert torch.allclose(torch.from_numpy(found), expected)
    (x, labels), *_ = data.train.batches(16)
    functional.cross_entropy(model(x), labels).backward()
    parts = [(p * p.grad).abs() for p in model.parameters()]
    expected = (parts[0].sum(dim=1) + parts[1] + parts[2].sum(dim=0)) / 3
    found = create_method("snip", {"normalise": "none"}).scores(task, Plan(), Rng(0))[0]
    assert torch.allclose(torch.from_numpy(found).float(), expected, rtol=1e-4)
