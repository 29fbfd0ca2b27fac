"""Every registered method passes the suite; a method without an entry here fails."""

from typing import ClassVar

import pytest

from metaprune.errors import ConfigError, NotAvailableError
from metaprune.methods import create_method, method_names, register
from metaprune.methods.base import Task
from metaprune.network import trace
from metaprune.rng import Rng
from metaprune.testing.method_suite import MethodSuite, small_network
from metaprune.values import Budget


class TestUniform(MethodSuite):
    method = "uniform"


class TestUniformFirst(MethodSuite):
    method, options = "uniform", {"channels": "first"}


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


class TestTaylor(MethodSuite):
    method, options = "taylor", {"batches": 2}


class TestTaylorSteps(MethodSuite):
    method, options = "taylor", {"batches": 1, "steps": 3}
    kinds = ("cnn",)


QUICK_NET = {
    "sub_validation": 32,
    "calibration": 32,
    "batch_size": 32,
    "train": {"epochs": 1, "batch_size": 32, "lr": 0.02, "augment": False},
    "search": {"evolution": {"population": 4, "generations": 2, "parents": 2}},
}


class Searched(MethodSuite):
    """Structures of a grid: what is left of a budget is within the tolerance of the search."""

    method = "pruningnet"

    def assert_nothing_more_fits(self, task, plan, bounds):
        cost = task.network.cost(plan)
        assert max(cost.metric(m) / bound for m, bound in bounds.items()) >= 0.95


class TestPruningNet(Searched):
    options: ClassVar = QUICK_NET


class TestPruningNetSandwich(Searched):
    options: ClassVar = {**QUICK_NET, "weights": "shared", "sampling": "sandwich", "distil": True}
    kinds = ("cnn",)


def test_every_method_is_in_the_suite():
    tested = {c.method for c in (*MethodSuite.__subclasses__(), *Searched.__subclasses__()) if hasattr(c, "method")}
    assert set(method_names()) <= tested


def test_unknown_method_names_the_closest():
    with pytest.raises(ConfigError, match="Did you mean 'magnitude'"):
        create_method("magnitud")


def test_a_taken_name_is_refused():
    with pytest.raises(ConfigError, match="registered already"):
        register("uniform", "somewhere:Else")


def test_bn_scale_needs_a_batchnorm():
    import torch

    task = Task(trace(small_network("transformer"), torch.zeros(2, 1, 28, 28)))
    with pytest.raises(NotAvailableError, match="BatchNorm"):
        create_method("bn_scale").propose(task, Budget(macs="50%"), Rng(0))
