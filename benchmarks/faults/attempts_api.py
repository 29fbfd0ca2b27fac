"""The Python interface with absurd values, methods' options, and this week's parameters with each other."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import fractions
import inspect
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attempt import Attempt
from material import X, classes_data, fault_of, samples, small_network
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import metaprune as mp
from metaprune.protocol.registry import METHODS, method_spec
from metaprune.testing import assert_untouched


class Unshowable:
    """Raises when it is shown."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    __str__ = __repr__


class Text(str):
    pass


ITSELF: dict[str, Any] = {}
ITSELF["x"] = ITSELF
ABSURD: dict[str, Any] = {
    "2**40": 2**40,
    "2**63": 2**63,
    "-2**40": -(2**40),
    "1e308": 1e308,
    "-0.0": -0.0,
    "1e-300": 1e-300,
    "-inf": -math.inf,
    "3+4j": 3 + 4j,
    "b'x'": b"x",
    "half a pair": "\ud800",
    "null byte": "a\0b",
    "long": "x" * 10**5,
    "lines": "a\nb",
    "set": {1, 2},
    "generator": (i for i in ()),
    "holds itself": ITSELF,
    "module": nn.Linear(1, 1),
    "np.float32(nan)": np.float32("nan"),
    "np.int64(3)": np.int64(3),
    "np.str_": np.str_("x"),
    "tensor(3)": torch.tensor(3),
    "tensor(nan)": torch.tensor(math.nan),
    "meta": torch.zeros(2, device="meta"),
    "Path": Path("/dev/null"),
    "date": datetime.date(1979, 5, 27),
    "range(0)": range(0),
    "...": ...,
    "Decimal": decimal.Decimal("0.5"),
    "Fraction": fractions.Fraction(1, 2),
    "unshowable": Unshowable(),
    "lambda": lambda *a, **k: None,
    "class": Unshowable,
    "deep": [[[[[[[]]]]]]],
    "{'macs': -1}": {"macs": -1},
    "(1, 'x')": (1, "x"),
    "str subclass": Text("x"),
    "{}": {},
    "False": False,
    "None": None,
    "'100%'": "100%",
    "['*']": ["*"],
    "{'*': 2.0}": {"*": 2.0},
    "{'*': nan}": {"*": math.nan},
    "[['a']]": [["a"]],
}


def _calls(tmp: Path) -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """A valid call of what the interface consists of; every parameter is replaced in turn."""
    model, data = small_network(), classes_data()
    net = mp.trace(model, X)
    result = mp.prune(model, X, budget="macs=60%", progress=False)
    result.save(tmp / "saved")
    np.savez(tmp / "d.npz", images=np.zeros((40, 8, 8), np.uint8), labels=np.arange(40) % 2)
    quick: dict[str, Any] = dict(model=model, example_inputs=X, budget="macs=60%", progress=False, verify=False)
    return {
        "prune": (mp.prune, quick),
        "prune auto with data": (mp.prune, {**quick, "data": data, "batch_size": 8}),
        "prune in rounds": (mp.prune, {**quick, "rounds": 2, "method": "magnitude"}),
        "trace": (mp.trace, dict(model=model, example_inputs=X)),
        "cut": (mp.cut, dict(network=net, plan=result.plan)),
        "calibrate": (mp.calibrate, dict(network=net, data=data, samples=8)),
        "load": (mp.load, dict(folder=tmp / "saved")),
        "load_data": (mp.load_data, dict(spec=f"npz:{tmp / 'd.npz'}")),
        "as_data": (mp.as_data, dict(source=(samples(), samples()), num_classes=3)),
        "replay": (mp.replay, dict(record=result.record, model=model, example_inputs=X, progress=False)),
        "Result.save": (result.save, dict(folder=tmp / "again")),
        "Budget": (lambda macs: mp.Budget(macs=macs).bounds(net.cost()), dict(macs="50%")),
        "Budget.parse": (mp.Budget.parse, dict(value="macs=50%")),
        "Plan": (lambda channels: mp.Plan({"0": channels}).check(net.space), dict(channels=[0, 1])),
        "Plan.from_dict": (mp.Plan.from_dict, dict(data=result.plan.to_dict())),
        "Constraints": (mp.Constraints, {}),
        "TrainConfig": (mp.TrainConfig, {}),
        "RecoverConfig": (mp.RecoverConfig, {}),
        "Segmentation": (mp.Segmentation, dict(classes=3)),
        "Network.at": (lambda widths: net.at(widths).cost(), dict(widths=result.plan)),
        "Network.cost": (net.cost, dict(widths=result.plan)),
        "Rng": (mp.Rng, dict(seed=0)),
    }


def calls(tmp: Path) -> Iterator[Attempt]:
    """Every parameter of every call, with every absurd value."""
    for name, (function, valid) in _calls(tmp).items():
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                continue
            if name.startswith("prune ") and parameter.name not in _OF_DATA:
                continue
            for title, value in ABSURD.items():
                arguments = {**valid, parameter.name: value}
                yield Attempt(f"{name}({parameter.name}={title})", _called(function, arguments))


_OF_DATA = (
    "budget",
    "method",
    "method_options",
    "data",
    "objective",
    "recover",
    "compensate",
    "rounds",
    "batch_size",
    "seed",
    "checkpoint_dir",
    "only",
    "ratios",
)


def _called(function: Callable[..., Any], arguments: dict[str, Any]) -> Callable[[], str | None]:
    def call() -> str | None:
        model = arguments.get("model")
        if not isinstance(model, nn.Module):
            function(**arguments)
            return None
        with assert_untouched(model):
            came = function(**arguments)
        return fault_of(came) if isinstance(came, mp.Result) else None

    return call


VALUES: tuple[Any, ...] = (
    0,
    -1,
    1,
    2**40,
    10**400,
    0.0,
    -0.5,
    1e300,
    math.nan,
    math.inf,
    "",
    "x",
    None,
    True,
    [],
    ["*"],
    [math.nan],
    [0.5, 2],
    {},
    {"x": 1},
    {"epochs": -1},
    {"epochs": 1, "lr": "x"},
    "a\nb",
    "\ud800",
)
RUN_THEM = (
    "uniform",
    "random",
    "magnitude",
    "bn_scale",
    "fpgm",
    "snip",
    "taylor",
    "taylor_batch",
    "activation",
    "variance",
    "obs",
    "weight_masks",
)


def options(_: Path) -> Iterator[Attempt]:
    """Every option of every method with every absurd value: those that are quick are run, the others are resolved."""
    model, data = small_network(), classes_data()
    for name in METHODS.names():
        for option in dataclasses.fields(method_spec(name).config_class()):
            for value in VALUES:
                given = {option.name: value}

                def call(name: str = name, given: dict[str, Any] = given) -> str | None:
                    if name not in RUN_THEM:
                        from metaprune.protocol.registry import create_method, resolved_options

                        create_method(name, resolved_options(name, given))
                        return None
                    budget = "nonzero=50%" if name == "weight_masks" else "macs=60%"
                    with assert_untouched(model):
                        result = mp.prune(
                            model,
                            X,
                            budget=budget,
                            method=name,
                            method_options=given,
                            data=data,
                            verify=False,
                            progress=False,
                            batch_size=8,
                        )
                    return fault_of(result)

                yield Attempt(f"{name}({option.name}={str(value)[:20]!r})", call)


def _parts(inputs: torch.Tensor, labels: torch.Tensor | None = None) -> mp.Data:
    return classes_data(samples(inputs, labels), samples())


def _data_kinds() -> dict[str, Callable[[], mp.Data]]:
    """Samples that statistics cannot be taken from, or only with care."""
    draw = torch.randn(24, 4, generator=torch.Generator().manual_seed(2))
    bad = draw.clone()
    bad[5, 2] = math.nan
    far = draw.clone()
    far[5, 2] = math.inf
    ids = TensorDataset(draw, torch.zeros(24, dtype=torch.long))
    return {
        "zeros": lambda: _parts(torch.zeros(24, 4)),
        "one sample, 24 times": lambda: _parts(draw[:1].expand(24, 4).clone()),
        "NaN in one sample": lambda: _parts(bad),
        "infinity in one sample": lambda: _parts(far),
        "1e30": lambda: _parts(1e30 * draw),
        "1e-30": lambda: _parts(1e-30 * draw),
        "two samples": lambda: _parts(draw[:2]),
        "one class": lambda: classes_data(ids, samples()),
        "a loader of batches of one": lambda: mp.as_data((DataLoader(samples(), 1), DataLoader(samples(), 1))),
        "float64": lambda: _parts(draw.double()),
        "integers": lambda: _parts(torch.ones(24, 4, dtype=torch.long)),
    }


def together(_: Path) -> Iterator[Attempt]:
    """rounds, compensate, auto, activation, variance, obs, sensitivity, closed-form and screening."""
    for attempts in (_on_odd_data, _in_rounds, _refused, _pruningnets):
        yield from attempts()


def pruned(must: Any, name: str, refusal: tuple[str, ...] = (), **arguments: Any) -> Attempt:
    """Prune the small network within a budget of MACs, and count them."""
    model = small_network()

    def call() -> str | None:
        given = {"budget": "macs=60%", "progress": False, **arguments}
        data = given.pop("data", None)
        with assert_untouched(model):
            result = mp.prune(model, X, data=data() if callable(data) else data, **given)
        share = float(str(given["budget"]).partition("=")[2].rstrip("%")) / 100
        full = mp.trace(model, X).cost().macs
        return fault_of(result, lambda cost: cost["macs"] <= share * full)

    return Attempt(name, call, must, refusal)


def _on_odd_data() -> Iterator[Attempt]:
    for kind, data in _data_kinds().items():
        for compensate in ("bias", "least-squares"):
            yield pruned(
                "either", f"compensate {compensate} on {kind}", method="magnitude", compensate=compensate, data=data
            )
        for name in ("activation", "variance", "obs"):
            yield pruned("either", f"{name} on {kind}", method=name, data=data)
        yield pruned("either", f"auto on {kind}", data=data)
        yield pruned(
            "either",
            f"obs by sensitivity on {kind}",
            method="obs",
            data=data,
            method_options={"allocate": "sensitivity"},
        )


def _in_rounds() -> Iterator[Attempt]:
    for rounds in (2, 3, 7, 50):
        for name in ("magnitude", "uniform", "random", "activation", "obs"):
            yield pruned("work", f"{rounds} rounds of {name}", rounds=rounds, method=name, data=classes_data)
    for rounds in (0, -1, 2**40, 2**63, 1.5, True, "2", None, math.nan):
        yield pruned("refuse", f"rounds={rounds}", rounds=rounds, method="magnitude")
    more: dict[str, dict[str, Any]] = {
        "ratios": {"ratios": {"0": 0.5}},
        "ties": {"ties": [["0", "3"]]},
        "keep_module": {"keep_module": True},
        "only": {"only": ["0"]},
        "round_to": {"round_to": 4},
        "min_keep": {"min_keep": 6},
        "bn": {"recover": "bn"},
        "compensate": {"compensate": "least-squares"},
        "graph": {"form": "graph"},
        "unproved": {"verify": False},
        "compensate, bias": {"compensate": "bias"},
        "free outputs": {"free_outputs": True},
    }
    for name, arguments in more.items():
        yield pruned(
            "either",
            f"3 rounds with {name}",
            rounds=3,
            method="magnitude",
            data=classes_data,
            **{"budget": "macs=80%", **arguments},
        )
        yield pruned("either", f"auto with {name}", data=classes_data, **{"budget": "macs=80%", **arguments})
    for budget in ("macs=100%", "macs=99.9%", "macs=12%", "macs=1%"):
        for rounds in (1, 3):
            yield pruned("either", f"auto, {budget}, {rounds} rounds", data=classes_data, budget=budget, rounds=rounds)


def _refused() -> Iterator[Attempt]:
    yield pruned(
        "refuse", "rounds of single weights", ("rounds",), rounds=2, method="weight_masks", budget="nonzero=50%"
    )
    for compensate in ("bias", "least-squares"):
        yield pruned(
            "refuse", f"compensate={compensate} without data", ("data",), compensate=compensate, method="magnitude"
        )
    for name in ("activation", "variance", "obs"):
        yield pruned("refuse", f"{name} without data", ("data",), method=name)
    yield pruned(
        "refuse", "sensitivity without data", ("data",), method="magnitude", method_options={"allocate": "sensitivity"}
    )
    yield pruned("refuse", "options of auto", ("method",), method_options={"samples": 8}, data=classes_data)
    for value in (3, 0, -1, 2**63, "8", 8.0, None, True):
        yield pruned(
            "refuse",
            f"samples={value}",
            ("samples",),
            method="obs",
            method_options={"samples": value},
            data=classes_data,
        )


def _pruningnets() -> Iterator[Attempt]:
    quick = {
        "weights": "closed-form",
        "search": {"searcher": "random", "evolution": {"population": 4, "generations": 2, "parents": 2}},
    }
    for change in (
        {},
        {"screening": 0},
        {"screening": 2**40},
        {"screening": 1},
        {"calibration": 2},
        {"inherit": False},
    ):
        yield pruned(
            "either",
            f"closed-form {change}",
            method="pruningnet",
            method_options={**quick, **change},
            data=classes_data,
        )
    for change in (
        {"screening": -1},
        {"screening": 0.5},
        {"weights": "closed"},
        {"train": {"epochs": 3}},
        {"hidden": 3},
        {"sampling": "sandwich"},
        {"distil": True},
        {"screening": math.nan},
        {"grid": []},
        {"grid": [0.0]},
        {"grid": [math.nan]},
        {"grid": [2.0]},
    ):
        yield pruned(
            "refuse",
            f"closed-form {change}",
            method="pruningnet",
            method_options={**quick, **change},
            data=classes_data,
        )
    for kind, data in _data_kinds().items():
        yield pruned("either", f"closed-form on {kind}", method="pruningnet", method_options=quick, data=data)
