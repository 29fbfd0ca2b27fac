"""Uneven layers as transformers spells them, `per_layer_config`: written, and read back bit for bit."""

import json

import pytest
import torch
from language_networks import example, language_model, transformers
from test_generation import generated

import metaprune as mp
import metaprune.hf
from metaprune.testing import assert_untouched

WHOLE = ["*:head_dims", "*:value_dims", "*:stream"]


def uneven(family):
    model = language_model(family)
    without_head_dim = {"qwen2": ["*:kv_heads", "*:query_heads"], "gpt2": ["*:heads"]}  # in the config
    ignore = [*WHOLE, *without_head_dim.get(family, [])]
    with assert_untouched(model):
        return mp.prune(
            model, None, example(family), budget="params=80%", method="random", seed=3, progress=False, ignore=ignore
        )


@torch.no_grad()
def logits(model, family):
    return model(**example(family)).logits


MORE = [pytest.param(name, marks=pytest.mark.thorough) for name in ("qwen2", "qwen3", "gemma", "mistral")]


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2", *MORE])
def test_uneven_layers_are_read_back_bit_for_bit(family, tmp_path):
    result = uneven(family)
    assert result.pruned.config.changes is None and "uneven layers" in result.pruned.config.why
    config = result.model.config.to_dict()
    metaprune.hf.save_pretrained(result.pruned, tmp_path / "hf")
    assert result.model.config.to_dict() == config
    layers = json.loads((tmp_path / "hf/config.json").read_text())["per_layer_config"]
    assert len({json.dumps(own) for own in layers.values()}) > 1
    result.save(tmp_path / "own")
    again = metaprune.hf.from_pretrained(tmp_path / "hf")
    assert type(again) is type(result.model) and sum(p.numel() for p in again.parameters()) == sum(
        p.numel() for p in result.model.parameters()
    )
    for read in (again, mp.load(tmp_path / "own"), mp.load(tmp_path / "hf")):
        assert torch.equal(logits(read, family), logits(result.model, family))
        ids = example(family)["input_ids"][:, :4]
        assert torch.equal(generated(read, input_ids=ids), generated(result.model, input_ids=ids))
    again.save_pretrained(tmp_path / "twice")
    assert torch.equal(logits(mp.load(tmp_path / "twice"), family), logits(result.model, family))


def test_a_folder_of_even_layers_is_one_of_transformers(tmp_path):
    model = language_model("llama")
    result = mp.prune(
        model, None, example("llama"), budget="params=90%", method="random", keep_config=True, progress=False
    )
    metaprune.hf.save_pretrained(result.pruned, tmp_path)
    assert "per_layer_config" not in json.loads((tmp_path / "config.json").read_text())
    for again in (type(model).from_pretrained(tmp_path), metaprune.hf.from_pretrained(tmp_path)):
        assert torch.equal(logits(again, "llama"), logits(result.model, "llama"))


def without(network, *names):
    """A plan that drops branches."""
    return {g: () for b in network.branches if b.name in names for g in b.groups}


@pytest.mark.parametrize("family", ["llama", "phi3", *MORE])
@pytest.mark.parametrize("narrow", [False, True])
def test_whole_layers_leave_the_folder_and_the_config_counts_the_others(family, narrow, tmp_path):
    model = language_model(family)
    model.config.eos_token_id = [1, 2, 3]  # as long as there are layers
    network = mp.trace(model, None, example(family))
    keep = without(network, "model.layers.1.self_attn", "model.layers.1.mlp")
    if narrow:
        (hidden,) = [g.name for g in network.space if g.role == "hidden" and g.name.startswith("model.layers.2.")]
        keep[hidden] = tuple(range(20))
    pruned = mp.cut(network, mp.Plan(keep), form="module")
    with assert_untouched(pruned.model):
        metaprune.hf.save_pretrained(pruned, tmp_path)
    held = json.loads((tmp_path / "config.json").read_text())
    assert held["num_hidden_layers"] == 2 and ("per_layer_config" in held) == narrow
    assert held["eos_token_id"] == [1, 2, 3]
    readers = [mp.load, metaprune.hf.from_pretrained, *([] if narrow else [type(model).from_pretrained])]
    for read in readers:
        again = read(tmp_path)
        assert len(again.model.layers) == 2 and torch.equal(logits(again, family), logits(pruned.model, family))
        ids = example(family)["input_ids"][:, :4]
        assert torch.equal(generated(again, input_ids=ids), generated(pruned.model, input_ids=ids))


@pytest.mark.parametrize(
    ("family", "names", "text"),
    [
        ("llama", ["model.layers.1.mlp"], "drop attention and MLP of a layer together"),
        ("gpt2", ["transformer.h.1.attn", "transformer.h.1.mlp"], "is left of a branch that was dropped"),
    ],
)
def test_half_a_layer_or_one_that_leaves_a_bias_is_refused(family, names, text, tmp_path):
    network = mp.trace(language_model(family), None, example(family))
    assert set(names) <= {b.name for b in network.branches}
    pruned = mp.cut(network, mp.Plan(without(network, *names)), form="module")
    with pytest.raises(mp.NotAvailableError, match=text):
        metaprune.hf.save_pretrained(pruned, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_what_no_layer_can_say_is_refused_and_nothing_is_written(tmp_path):
    model = language_model("llama")
    only = ["*:head_dims", "*:value_dims"]
    result = mp.prune(model, None, example("llama"), budget="params=92%", method="random", only=only, progress=False)
    with pytest.raises(mp.NotAvailableError, match=r"leave head dimensions and the stream whole"):
        metaprune.hf.save_pretrained(result.pruned, tmp_path / "hf")
    result = mp.prune(model, None, example("llama"), budget="params=80%", method="random", only=["*:stream"])
    with pytest.raises(mp.NotAvailableError, match=r"changed, which is in no layer"):
        metaprune.hf.save_pretrained(result.pruned, tmp_path / "hf")
    graph = mp.cut(result.pruned.network, result.plan, form="graph")
    with pytest.raises(mp.NotAvailableError, match="module form"):
        metaprune.hf.save_pretrained(graph, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (None, r"holds no config\.json"),
        ("[]", "is no config"),
        ({"architectures": ["os"], "model_type": "llama"}, "names the class 'os'"),
        ({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "run": "os"}, "holds 'run'"),
        ({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "per_layer_config": {"0": {"a": "os"}}}, "'a'"),
        (
            {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "per_layer_config": [3]},
            "no numbers by layer",
        ),
    ],
)
def test_a_folder_of_a_stranger_is_read_as_sizes_and_nothing_else(config, text, tmp_path):
    if config is not None:
        (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    with pytest.raises(mp.DataError, match=text):
        metaprune.hf.from_pretrained(tmp_path)
    if config is not None:
        with pytest.raises(mp.DataError, match=text):
            mp.load(tmp_path)


def test_a_folder_keeps_the_names_of_classes(tmp_path):
    config = transformers.BertConfig(
        vocab_size=60, hidden_size=24, num_hidden_layers=1, num_attention_heads=4, intermediate_size=40,
        id2label={0: "cat", 1: "dog", 2: "horse"},
    )  # fmt: skip
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path)
    again = mp.load(tmp_path)
    assert again.config.id2label == config.id2label and again.classifier.out_features == 3
