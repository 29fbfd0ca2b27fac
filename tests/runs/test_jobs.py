"""Every kind of task through `prune` and through a recipe, whole: criteria, cut, proof, recovery, figures."""

import copy
import math
from pathlib import Path

import pytest
import torch
from job_networks import JOBS, Rows, labeller, picture_data, tiny_llama, token_data
from torch.utils.data import TensorDataset

import metaprune as mp
from metaprune.core.errors import DataError, MetapruneError, NoEffectWarning
from metaprune.core.imports import import_python_target
from metaprune.data import as_data
from metaprune.objective import create_objective
from metaprune.objective.batch import call_arguments
from metaprune.runs.config import read_recipe
from metaprune.runs.run import run
from metaprune.train.loop import train

EXAMPLES = Path(__file__).parents[2] / "examples" / "jobs"
TRAIN = mp.TrainConfig(epochs=1, batch_size=8, lr=0.01)


def prune(name, method, recover, **options):
    torch.manual_seed(0)
    job = JOBS[name]
    model, data = job.model().eval(), job.data()
    before = copy.deepcopy(model.state_dict())
    rows = [data[0][i] for i in range(2)]
    batch = torch.utils.data.default_collate(rows)
    args, kwargs = call_arguments(
        {k: v for k, v in batch.items() if k != "labels"} if name == "next_token" else batch[0]
    )
    recovery = recover if recover == "bn" else mp.RecoverConfig(kind=recover, train=TRAIN)
    arguments = {"budget": {"params": "60%"}, "batch_size": 8, "progress": False, **options}
    result = mp.prune(
        model, args, kwargs, data=data, objective=job.objective, method=method, recover=recovery, **arguments
    )
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items()), "the user's model changed"
    return result


@pytest.mark.parametrize("method, recover", [("taylor", "finetune"), ("magnitude", "distil")])
@pytest.mark.parametrize("name", JOBS)
def test_every_task_through_prune(name, method, recover):
    result = prune(name, method, recover)
    quality, metric = result.record["quality"], result.record["objective"]["primary"]["name"]
    assert result.record["cost"]["after"]["params"] <= 0.6 * result.record["cost"]["before"]["params"]
    assert result.record["proof"]["error"] < 1e-9
    for part in ("dense", "cut", "recovered"):
        assert math.isfinite(quality[part][metric]) and math.isfinite(quality[part]["loss"])
    assert quality["recovered"]["loss"] != quality["cut"]["loss"], "recovery trained nothing"


@pytest.mark.parametrize("name, moved", [("multi_label", False), ("segmentation", True)])
def test_batchnorm_of_other_tasks(name, moved):
    """Behind a first convolution the statistics of what stays are those of the dense network."""
    quality = prune(name, "magnitude", "bn").record["quality"]
    assert (quality["recovered"]["loss"] != quality["cut"]["loss"]) is moved


def test_batchnorm_recovery_without_batchnorm_says_so():
    with pytest.warns(NoEffectWarning, match="no BatchNorm"):
        prune("regression", "magnitude", "bn")


def test_taylor_tells_channels_apart_where_the_loss_has_no_gradient():
    """The original network is at the minimum of the error to its own outputs."""
    torch.manual_seed(0)
    model = JOBS["match_outputs"].model().eval()
    with torch.no_grad():
        for reader in (model.heat, model.boxes):
            reader.weight[:, 5] = 0  # the channel is large, and nothing reads it
        model.body[2].weight[5] *= 100
    x = torch.randn(2, 3, 8, 8)
    arguments = {"budget": "params=95%", "data": picture_data(), "objective": "match_outputs", "only": ["body.2"]}
    kept = mp.prune(model, x, method="taylor", progress=False, **arguments).plan.keep["body.2"]
    assert 5 not in kept


def test_walking_over_a_bound_split_leaves_gradients_on():
    model = JOBS["match_outputs"].model()
    data = as_data(picture_data(), objective="match_outputs").bound_to(model)
    for _, target in data.train.batches(8):
        assert torch.is_grad_enabled() and not any(t.requires_grad for t in [target["heat"], *target["boxes"]])


def test_matching_outputs_keeps_batchnorm_statistics():
    """With statistics of the batch not even the original gives its own outputs."""
    torch.manual_seed(0)
    model = labeller()
    for _ in range(20):
        model(torch.randn(8, 1, 8, 8))  # statistics of other data than is matched on
    data = as_data((TensorDataset(torch.randn(16, 1, 8, 8) * 3 + 1),) * 2, objective="match_outputs").bound_to(model)
    before, config = copy.deepcopy(model.state_dict()), mp.TrainConfig(epochs=2, batch_size=8, weight_decay=0.0)
    history = train(model, data, config, rng=mp.Rng(0), device="cpu", progress=False)
    assert history.rows[-1].train["loss"] < 1e-9 and model.training
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name])


def test_recipe_of_user_functions(tmp_path):
    recipe = tmp_path / "detector.toml"
    recipe.write_text("""
        [model]
        spec = "python:job_networks:TinyDetector"
        [data]
        spec = "python:job_networks:picture_data"
        [objective]
        kind = "match_outputs"
        [budget]
        macs = "60%"
        [method]
        name = "taylor"
        [recover]
        kind = "finetune"
        train = { epochs = 1, batch_size = 8, lr = 0.01 }
        [latency]
        repeats = 0
    """)
    record = run(read_recipe(recipe), tmp_path / "run", progress=False)
    assert record["quality"]["dense"]["output_error"] == 0 < record["quality"]["cut"]["output_error"]
    assert (tmp_path / "run" / "report.html").is_file()


def test_recipe_of_token_batches(tmp_path):
    recipe = tmp_path / "language.toml"
    recipe.write_text("""
        batch_size = 8
        [model]
        spec = "python:job_networks:tiny_llama"
        [data]
        spec = "python:job_networks:token_data"
        [objective]
        kind = "next_token"
        [train]
        epochs = 1
        batch_size = 8
        lr = 0.01
        [budget]
        params = "80%"
        [method]
        name = "taylor"
        [recover]
        kind = "distil"
        train = { epochs = 1, batch_size = 8, lr = 0.01 }
        [latency]
        repeats = 0
    """)
    quality = run(read_recipe(recipe), tmp_path / "run", progress=False)["quality"]
    assert 1 < quality["recovered"]["perplexity"] < 200


def test_inputs_that_were_not_traced():
    """The mask of padded rows decides what a model computes, so it is never dropped in silence."""
    data = token_data()
    ids = torch.stack([data[0][i]["input_ids"] for i in range(2)])
    arguments = {"data": data, "objective": "next_token", "budget": "params=80%", "progress": False}
    with pytest.raises(DataError, match=r"traced with input_ids=int64 \[2, 12\].*same names") as error:
        mp.prune(tiny_llama().eval(), None, {"input_ids": ids}, method="taylor", **arguments)
    assert "attention_mask=int64 [2, 12]" in str(error.value)
    with pytest.raises(DataError, match="attention_mask"):  # found before recovery, in the form that is trained
        mp.prune(tiny_llama().eval(), None, {"input_ids": ids}, form="graph", recover="finetune", **arguments)
    network = mp.trace(tiny_llama().eval(), None, {"input_ids": ids})
    with pytest.raises(MetapruneError, match=r"traced with input_ids=int64 \[2, 12\], but was called with .*mask"):
        network.run(input_ids=ids, attention_mask=torch.ones_like(ids))


def test_sequences_of_another_length_than_traced():
    data = tuple(Rows(input_ids=p.columns["input_ids"]) for p in token_data())
    arguments = {"data": data, "objective": "next_token", "budget": "params=80%", "progress": False}
    with pytest.raises(DataError, match="padded to one length"):
        mp.prune(tiny_llama().eval(), None, {"input_ids": torch.ones(2, 7).long()}, method="taylor", **arguments)


@pytest.mark.parametrize("recipe", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.stem)
def test_example_recipes_name_what_there_is(recipe, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    config = read_recipe(recipe)
    for spec in (config.model.spec, config.data.spec):
        scheme, _, target = spec.partition(":")
        assert scheme in ("builtin", "zoo") or callable(import_python_target(target))
    assert create_objective({"kind": config.objective.kind, **config.objective.options}).name == config.objective.kind
