"""`keep_config=True`: widths that the config can say, known before the search; transformers reads the result back."""

import pytest
import torch
from language_networks import example, language_model, transformers

import metaprune as mp
from metaprune.surgery.keep_config import config_rules, numbers_of_dims
from metaprune.testing import assert_untouched, perturb

SIZES = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40)


def bert():
    model = transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=60, **SIZES))
    return model, {"input_ids": torch.randint(3, 60, (2, 10), generator=torch.Generator().manual_seed(0))}


def vit():
    model = transformers.ViTForImageClassification(transformers.ViTConfig(image_size=16, patch_size=8, **SIZES))
    return model, {"pixel_values": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))}


def convnext():
    config = transformers.ConvNextConfig(image_size=32, hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 2, 1])
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return transformers.ConvNextForImageClassification(config), {"pixel_values": images}


def made(name):
    if name in (made_here := {"bert": bert, "vit": vit, "convnext": convnext}):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model, inputs = made_here[name]()
        return perturb(model).eval(), inputs
    return language_model(name), example(name)


@torch.no_grad()
def logits(model, inputs):
    return model.eval()(**inputs).logits


NAMES = ["llama", "bert", "vit", "convnext", "phi3", "falcon", "t5"]
MORE = [pytest.param(name, marks=pytest.mark.thorough) for name in ("gpt2", "qwen2", "gemma", "whisper")]


@pytest.mark.parametrize("name", [*NAMES, *MORE])
def test_transformers_reads_back_what_it_saved_bit_for_bit(name, tmp_path):
    model, inputs = made(name)
    with assert_untouched(model):
        result = mp.prune(
            model, None, inputs, budget="params=85%", method="random", keep_config=True, seed=1, progress=False
        )
    assert result.pruned.form == "module" and result.pruned.config.changes
    assert result.record["cost"]["after"]["params"] < result.record["cost"]["before"]["params"]
    result.model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert torch.equal(logits(again, inputs), logits(result.model, inputs))
    assert sum(p.numel() for p in again.parameters()) == result.record["cost"]["after"]["params"]


def test_rules_tie_what_one_number_sets():
    model, inputs = made("bert")
    network = mp.trace(model, None, inputs)
    numbers = numbers_of_dims(network)
    assert numbers["bert.encoder.layer.1.intermediate.dense.weight", 0] == {"intermediate_size"}
    assert numbers["bert.pooler.dense.weight", 0] == {"hidden_size"}
    rules = config_rules(network)
    tied = {frozenset(network.space[n].role for n in tie) for tie in rules.ties}
    assert tied == {frozenset({"stream", "heads", "hidden"}), frozenset({"hidden"})}
    assert {network.space[n].role for n in rules.whole} == {"head_dims", "value_dims"}


def test_a_number_that_is_not_set_goes_before_what_it_comes_from():
    model, inputs = made("gpt2")
    numbers = numbers_of_dims(mp.trace(model, None, inputs))
    assert model.config.n_inner is None and numbers["transformer.h.0.mlp.c_fc.weight", 1] == {"n_inner"}


def test_it_is_said_before_the_search_where_nothing_can_be_kept():
    model, inputs = made("bloom")  # scales by the root of a head's size, all widths come from one number
    with pytest.raises(mp.NotAvailableError, match=r"keep_config: no cut of this model .* computes something else"):
        mp.prune(model, None, inputs, budget="params=90%", method="random", keep_config=True)
    plain = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    with pytest.raises(mp.ConfigError, match="Sequential has no config"):
        mp.prune(plain, torch.ones(2, 4), budget="params=90%", keep_config=True)
    model, inputs = made("llama")
    with pytest.raises(mp.ConfigError, match="form='graph'"):
        mp.prune(model, None, inputs, budget="params=90%", method="random", keep_config=True, form="graph")
    with pytest.raises(mp.InfeasibleBudgetError, match=r"keep_config leaves \d+ of 14 groups whole"):
        mp.prune(model, None, inputs, budget="params=100", method="random", keep_config=True)
