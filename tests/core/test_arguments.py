"""Wrong arguments of every public function: it works as documented, or one line says cause and next step.

`CALLS` holds a call of every public name that can be called; each of its parameters is replaced by each of `WRONG`.
"""

import inspect
import math
import warnings

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn

import metaprune as mp
from metaprune.core.errors import MetapruneError
from metaprune.cost.metrics import COST_METRICS
from metaprune.models import create
from metaprune.protocol.registry import METHODS

WRONG = {
    "None": None, "3": 3, "-1": -1, "0": 0, "10**30": 10**30, "-10**30": -(10**30), "0.5": 0.5, "nan": math.nan,
    "inf": math.inf, "x": "x", "empty": "", "[]": [], "{}": {}, "(3,)": (3,), "[None]": [None],
    "{'x': None}": {"x": None}, "{3: 3}": {3: 3},
    "object": object(), "True": True, "int": int, "array": np.zeros(2), "tensor": torch.zeros(2),
}  # fmt: skip
ERRORS_AND_WARNINGS = {
    n for n in mp._HOME if isinstance(getattr(mp, n), type) and issubclass(getattr(mp, n), Exception)
}
PROTOCOLS = {"Split", "Method", "LearnedMethod", "BaseMethod", "Objective"}  # for users to fill in
MADE_BY_OTHERS = {"Calibration", "Pruned", "Result", "Network", "PrunedVocabulary"}  # their methods are called below


def model():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


X = torch.randn(2, 4)
RECORD = {"schema": 1}


class Samples(torch.utils.data.Dataset):
    classes = ("a", "b", "c")

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return torch.randn(4), index % 3


@pytest.fixture(scope="module")
def calls(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calls")
    net, data = mp.trace(model(), X), mp.as_data((Samples(), Samples()))
    result = mp.prune(model(), X, budget="macs=60%", progress=False)
    plan, task = mp.Plan({"0": (0, 1)}), mp.PruneTask(net)
    result.save(folder / "saved")
    np.savez(folder / "d.npz", images=np.zeros((40, 8, 8), np.uint8), labels=np.arange(40) % 2)
    recipe = mp.RunConfig(
        model=result_config("ModelConfig", spec="zoo:mlp", options={"in_channels": 1, "image_size": 4}),
        budget=mp.Budget(macs="60%"), latency=result_config("LatencyConfig", repeats=0),
    )  # fmt: skip
    metric = mp.CostMetric(name="macs2", noun="x", of=lambda at: at.macs)
    return {
        "prune": (mp.prune, dict(model=model(), example_inputs=X, budget="macs=60%", progress=False)),
        "prune with data": (
            mp.prune,
            dict(model=model(), example_inputs=X, budget="macs=60%", data=data, progress=False, batch_size=4,
                 method="taylor"),
        ),
        "trace": (mp.trace, dict(model=model(), example_inputs=X)),
        "cut": (mp.cut, dict(network=net, plan=plan)),
        "add_biases": (mp.add_biases, dict(model=nn.Linear(4, 3, bias=False))),
        "load": (mp.load, dict(folder=folder / "saved")),
        "load_data": (mp.load_data, dict(spec=f"npz:{folder / 'd.npz'}")),
        "calibrate": (mp.calibrate, dict(network=net, data=data, samples=8)),
        "sensitivity": (
            mp.sensitivity, dict(model=model(), example_inputs=X, data=data, criterion="magnitude", batch_size=4)
        ),
        "as_data": (mp.as_data, dict(source=(Samples(), Samples()))),
        "run": (mp.run, dict(config=recipe, folder=folder / "run", progress=False)),
        "compare": (
            mp.compare,
            dict(config=recipe, folder=folder / "compared", methods=["uniform"], budgets=["60%"], seeds=1,
                 progress=False),
        ),
        "headroom": (
            mp.headroom, dict(config=recipe, folder=folder / "headroom", budgets=["60%"], seeds=2, progress=False)
        ),
        "fit": (mp.fit, dict(config=recipe, folder=folder / "fit", progress=False)),
        "replay": (mp.replay, dict(record=result.record, model=model(), example_inputs=X, progress=False)),
        "register": (mp.register, dict(name="magnitude", target="metaprune.methods.criteria:MAGNITUDE")),
        "register_cost_metric": (mp.register_cost_metric, dict(metric=metric)),
        "Rng": (mp.Rng, dict(seed=0)),
        "CostMetric": (mp.CostMetric, dict(name="x", noun="x", of=len)),
        "Metric": (mp.Metric, dict(name="x", label="X")),
        "MethodSpec": (mp.MethodSpec, dict(name="x", method="a:b")),
        "Data": (mp.Data, {f: getattr(data, f) for f in inspect.signature(mp.Data).parameters}),
        "PruneTask": (mp.PruneTask, dict(network=net)),
        "PruneTask.allocator": (task.allocator, dict(budget=mp.Budget(macs="60%"))),
        "RecoverConfig": (mp.RecoverConfig, {}),
        "TrainConfig": (mp.TrainConfig, {}),
        "RunConfig": (mp.RunConfig, dict(model=recipe.model, budget=recipe.budget)),
        "Classification": (mp.Classification, {}),
        "MultiLabel": (mp.MultiLabel, {}),
        "Regression": (mp.Regression, {}),
        "NextToken": (mp.NextToken, {}),
        "TokenClassification": (mp.TokenClassification, {}),
        "OwnLoss": (mp.OwnLoss, {}),
        "MatchOutputs": (mp.MatchOutputs, {}),
        "Segmentation": (mp.Segmentation, dict(classes=3)),
        "Budget": (mp.Budget, {}),
        "Budget macs": (lambda macs: mp.Budget(macs=macs), dict(macs="50%")),
        "Budget.parse": (mp.Budget.parse, dict(value="macs=50%")),
        "Constraints": (mp.Constraints, {}),
        "Cost": (mp.Cost, dict(figures={"macs": 3})),
        "Plan": (mp.Plan, {}),
        "Plan.check": (lambda keep: mp.Plan(keep).check(net.space), dict(keep={"0": [0, 1]})),
        "Plan of channels": (lambda channels: mp.Plan({"0": channels}).check(net.space), dict(channels=[0, 1])),
        "Plan of channel": (lambda channel: mp.Plan({"0": [channel]}).check(net.space), dict(channel=0)),
        "Plan.masks": (plan.masks, dict(space=net.space)),
        "Plan.of": (mp.Plan.of, dict(space=net.space, masks=[np.ones(8, bool)])),
        "Plan.from_dict": (mp.Plan.from_dict, dict(data=plan.to_dict())),
        "Proposal": (mp.Proposal, dict(plan=plan)),
        "LatencyTable": (mp.LatencyTable, dict(digest="", sizes=sizes(), segments=[], grids={})),
        "LatencyTable.predict_ms": (mp.LatencyTable("", sizes(), [], {}).predict_ms, dict(widths=np.array([[8]]))),
        "LatencyTable.segments_ms": (mp.LatencyTable("", sizes(), [], {}).segments_ms, dict(widths=np.array([[8]]))),
        "LatencyTable.check": (mp.LatencyTable("", sizes(), [], {}).check, dict(network=net)),
        "Data.judged_by": (data.judged_by, dict(objective=mp.Classification())),
        "Data.bound_to": (data.bound_to, dict(model=model())),
        "Budget.bounds": (mp.Budget(macs="60%").bounds, dict(full=net.cost())),
        "Network.cost_model": (net.cost_model, {}),
        "Network.at().cost": (net.at(plan).cost, {}),
        "rule of": (lambda function: mp.rule(function)(print), dict(function="conformance_op_2")),
        "register anew": (lambda target: mp.register("conformance", target), dict(target="a:b")),
        "LatencyTable.load": (mp.LatencyTable.load, dict(path=folder / "none.json")),
        "rule": (lambda name: mp.rule(name), dict(name="conformance_op")),
        "Network.at": (net.at, dict(widths=plan)),
        "Network.cost": (net.cost, dict(widths=plan)),
        "Network.survivors": (net.survivors, dict(plan=plan)),
        "Network.run": (lambda plan: net.run(X, plan=plan), dict(plan=plan)),
        "Network.with_tensors": (net.with_tensors, dict(tensors=net.tensors)),
        "Network.with_latency": (net.with_latency, dict(predict_ms=None)),
        "Network.at().run": (net.at(plan).run, {}),
        "Result.save": (result.save, dict(folder=folder / "again")),
        "Result.report": (result.report, dict(path=folder / "report.html")),
        "Result.measure": (result.measure, dict(data=data)),
        "prune_vocabulary": (mp.prune_vocabulary, {**language(), "tokens": [0]}),
        "create": (create, dict(spec="zoo:resnet8")),
        "create width": (lambda width: create("zoo:resnet8", width=width), dict(width=8)),
    }  # fmt: skip


def language():
    words = Tokenizer(WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    config = transformers.LlamaConfig(
        vocab_size=3, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?")
    return {"model": transformers.LlamaForCausalLM(config), "tokenizer": tokenizer}


def sizes():
    from metaprune.latency.segments import Sizes

    return Sizes(np.array([8]), [(((0,), 1),)])


def result_config(name, **fields):
    import metaprune.runs.config as module

    return getattr(module, name)(**fields)


@pytest.fixture(autouse=True)
def registries_as_before(monkeypatch):
    for registry in (METHODS, COST_METRICS):
        monkeypatch.setattr(registry, "_targets", dict(registry._targets))


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


NAMES = sorted(set(mp._HOME) - ERRORS_AND_WARNINGS - PROTOCOLS - MADE_BY_OTHERS)


def outcome(call, arguments):
    """works, refused, or what went wrong."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call(**arguments)
    except MetapruneError as error:
        text = str(error)
        return "refused" if len(text) > 20 and "<object object" not in text else f"says too little: {text}"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:100]}"
    return "works"


def outcomes(call, valid):
    assert outcome(call, valid) in ("works", "refused"), outcome(call, valid)
    rows = {}
    for parameter in inspect.signature(call).parameters.values():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        for title, value in WRONG.items():
            rows[f"{parameter.name}={title}"] = outcome(call, {**valid, parameter.name: value})
    return rows


def test_every_public_name_is_called(calls):
    assert not [name for name in NAMES if not any(call.partition(" ")[0].partition(".")[0] == name for call in calls)]


@pytest.mark.parametrize("channels", [[0, 2], range(3), np.array([0, 2]), torch.tensor([0, 2]), (np.int64(0),)])
def test_channels_may_be_any_list_of_integers(channels):
    keep = mp.Plan({"0": channels}).keep["0"]
    assert keep == tuple(int(i) for i in channels)
    assert all(type(i) is int for i in keep)


@pytest.mark.parametrize("channels", [[0.5], [True], "01", np.array([True]), torch.tensor([0.0]), {0: 1}, [[0]], None])
def test_a_plan_changes_no_values_silently(channels):
    for make in (lambda: mp.Plan({"0": channels}), lambda: mp.Plan.from_dict({"keep": {"0": channels}})):
        with pytest.raises(mp.PlanError, match="list of channel numbers"):
            make()


def test_sizes_of_models_and_batches_are_above_zero():
    for width in (0, -1, math.nan, math.inf):
        with pytest.raises(mp.ConfigError, match="width"):
            create("zoo:resnet8", width=width)
    with pytest.raises(mp.ConfigError, match="batch_size"):
        mp.prune(model(), X, budget="macs=60%", batch_size=0)


def test_checkpoint_dir_is_a_text_or_a_path(tmp_path):
    data = mp.as_data((torch.utils.data.DataLoader(Samples(), 4), torch.utils.data.DataLoader(Samples(), 4)))
    tiny = mp.RecoverConfig(kind="finetune", train=mp.TrainConfig(epochs=1, batch_size=4))
    mp.prune(model(), X, budget="macs=60%", data=data, recover=tiny, checkpoint_dir=str(tmp_path / "c"), progress=False)
    assert (tmp_path / "c").is_dir()


def test_wrong_arguments_are_refused_in_our_own_words(calls):
    tried, bad = 0, []
    for name, (call, valid) in calls.items():
        for what, came in outcomes(call, valid).items():
            tried += 1
            if came not in ("works", "refused"):
                bad.append(f"{name}({what}): {came}")
    assert not bad, f"{len(bad)} of {tried}:\n" + "\n".join(bad)
    assert tried > 2000
