"""A pruned transformers model is saved and read back by transformers itself where its config can say the widths."""

import copy
import re
from fnmatch import fnmatchcase

import pytest
import torch

import metaprune as mp
from metaprune.core.errors import ConfigError
from metaprune.core.imports import import_optional
from metaprune.export.archive import save
from metaprune.network import Network
from metaprune.surgery import Pruned, cut
from metaprune.surgery.hf_config import set_config
from metaprune.testing import assert_untouched, perturb
from metaprune.tracing import trace
from metaprune.values import Plan

transformers = import_optional("transformers", "hf")

COMMON = {"vocab_size": 40, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def tokens():
    return {"input_ids": torch.randint(3, 40, (2, 7), generator=torch.Generator().manual_seed(0))}


def pixels(size):
    return {"pixel_values": torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))}


def bert():
    config = transformers.BertConfig(
        **COMMON,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=40,
        max_position_embeddings=20,
        num_labels=3,
    )
    return transformers.BertForSequenceClassification(config), tokens()


def distilbert():
    config = transformers.DistilBertConfig(
        **COMMON, dim=24, n_layers=2, n_heads=4, hidden_dim=40, max_position_embeddings=20
    )
    return transformers.DistilBertForSequenceClassification(config), tokens()


def vit():
    config = transformers.ViTConfig(
        image_size=16, patch_size=8, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40
    )
    return transformers.ViTForImageClassification(config), pixels(16)


def gpt2():
    config = transformers.GPT2Config(**COMMON, n_positions=20, n_embd=24, n_layer=2, n_head=4, use_cache=False)
    return transformers.GPT2LMHeadModel(config), tokens()


def llama(family="Llama", **options):
    options = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 40, **options}
    config = getattr(transformers, f"{family}Config")(
        **COMMON, hidden_size=24, num_hidden_layers=2, max_position_embeddings=20, use_cache=False, **options
    )
    return getattr(transformers, f"{family}ForCausalLM")(config), tokens()


def convnext():
    config = transformers.ConvNextConfig(image_size=32, hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 2, 1])
    return transformers.ConvNextForImageClassification(config), pixels(32)


def traced(build) -> tuple[Network, dict]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, kwargs = build()
    return trace(perturb(model).eval(), None, kwargs), kwargs


def keeping(network: Network, ratios: dict[str, float]) -> Plan:
    """Keep a share of every group with a member `parameter:dim:rows per channel` that the glob names."""
    keep = {}
    for group in network.space:
        places = [f"{m.parameter}:{m.dim}:{m.rows.shape[1]}" for m in group.members]
        for pattern, share in ratios.items():
            if any(fnmatchcase(place, pattern) for place in places):
                keep[group.name] = tuple(range(group.width - int(group.width * share), group.width))
    assert keep, f"no group has a member {list(ratios)}"
    return Plan(keep)


def pruned_with(build, ratios) -> tuple[Pruned, dict]:
    network, kwargs = traced(build)
    with assert_untouched(network.model):
        before = copy.deepcopy(network.model.config.to_dict())
        pruned = cut(network, keeping(network, ratios))
        assert network.model.config.to_dict() == before
    assert pruned.form == "module", pruned.why
    return pruned, kwargs


@torch.no_grad()
def logits(model, kwargs):
    return model.eval()(**kwargs).logits


FITS = {
    "bert mlp": (bert, {"*intermediate.dense.weight:0:1": 0.75}, {"intermediate_size": 30}),
    "distilbert mlp": (distilbert, {"*ffn.lin1.weight:0:1": 0.75}, {"hidden_dim": 30}),
    "vit mlp": (vit, {"*mlp.fc1.weight:0:1": 0.75}, {"intermediate_size": 30}),
    "gpt2 mlp, not set before": (gpt2, {"*mlp.c_fc.weight:1:1": 0.75}, {"n_inner": 72}),
    "llama mlp": (llama, {"*gate_proj.weight:0:1": 0.75}, {"intermediate_size": 30}),
    "llama stream": (llama, {"*embed_tokens.weight:1:1": 0.5}, {"hidden_size": 12}),
    "llama kv heads with their queries": (
        lambda: llama(head_dim=8),
        {"*k_proj.weight:0:8": 0.5},
        {"num_attention_heads": 2, "num_key_value_heads": 1},
    ),
    "qwen3 both kinds of heads": (
        lambda: llama("Qwen3", head_dim=8),
        {"*o_proj.weight:1:16": 0.5},
        {"num_attention_heads": 1, "num_key_value_heads": 1},
    ),
    "convnext": (
        convnext,
        {"*dwconv.weight:0:1": 0.5, "*pwconv1.weight:0:1": 0.5},
        {f"hidden_sizes.{i}": n for i, n in enumerate((4, 6, 8, 10))},
    ),
    # the width alone would give heads of half the size
    "bert heads and stream": (
        bert,
        {"*self.key.weight:0:6": 0.5, "*intermediate.dense.weight:1:1": 0.5, "*pooler.dense.weight:0:1": 0.5},
        {"hidden_size": 12, "num_attention_heads": 2},
    ),
}


@pytest.mark.parametrize("name", FITS)
def test_what_the_config_can_say_is_saved_by_transformers(name, tmp_path):
    build, ratios, changes = FITS[name]
    pruned, kwargs = pruned_with(build, ratios)
    assert pruned.config.changes == changes and "save_pretrained works" in pruned.config.why
    pruned.model.save_pretrained(tmp_path / "hf")
    again = type(pruned.model).from_pretrained(tmp_path / "hf")
    assert torch.equal(logits(again, kwargs), logits(pruned.model, kwargs))
    assert sum(p.numel() for p in again.parameters()) == pruned.network.cost(pruned.plan).params


def test_the_config_is_one_object_in_all_modules():
    pruned, _ = pruned_with(bert, {"*intermediate.dense.weight:0:1": 0.75})
    assert {m.config.intermediate_size for m in pruned.model.modules() if hasattr(m, "config")} == {30}


REFUSED = {
    "uneven layers": (
        bert,
        {"*.0.intermediate.dense.weight:0:1": 0.75, "*.1.intermediate.dense.weight:0:1": 0.5},
        r"uneven layers: bert\.encoder\.layer\.0\.intermediate.* 40 -> 30, .*layer\.1.* 40 -> 20",
    ),
    "the pooler is wider": (
        bert,
        {"*self.key.weight:0:6": 0.5, "*intermediate.dense.weight:1:1": 0.5},
        r"pooler\.dense\.weight",
    ),
    "one layer alone": (vit, {"*.0.mlp.fc1.weight:0:1": 0.75}, "uneven layers"),
    "heads without the width": (bert, {"*self.key.weight:0:6": 0.5}, r"query\.weight \(12, 24\)"),
    "a head dimension that rotates": (
        lambda: llama(head_dim=8),
        {"*k_proj.weight:0:4": 0.5, "*v_proj.weight:0:2": 0.5},
        "does not run|computes something else",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_config_cannot_say_is_said_and_saved_by_metaprune(name, tmp_path):
    build, ratios, reason = REFUSED[name]
    original, _ = build()
    pruned, kwargs = pruned_with(build, ratios)
    assert pruned.config.changes is None
    assert pruned.config.why.startswith("its config cannot express these widths")
    assert re.search(reason, pruned.config.why), pruned.config.why
    assert pruned.model.config.to_dict() == original.config.to_dict()
    save(pruned, tmp_path / "mp")
    again = mp.load(tmp_path / "mp", factory=lambda: build()[0])
    assert torch.equal(logits(again, kwargs), logits(pruned.model, kwargs))
    pruned.model.save_pretrained(tmp_path / "hf")  # against the advice: must fail loudly, not load noise
    with pytest.raises(RuntimeError, match="mismatched"):
        type(pruned.model).from_pretrained(tmp_path / "hf")


@pytest.mark.parametrize("name", ["bert mlp", "llama kv heads with their queries", "convnext"])
def test_metaprunes_format_keeps_the_config(name, tmp_path):
    """Loaded through the spec of the original (`hf:DIR`), and saved by transformers after that."""
    build, ratios, _ = FITS[name]
    pruned, kwargs = pruned_with(build, ratios)
    pruned.network.model.save_pretrained(tmp_path / "original")
    save(pruned, tmp_path / "mp", spec=f"hf:{tmp_path / 'original'}")
    again = mp.load(tmp_path / "mp")
    assert torch.equal(logits(again, kwargs), logits(pruned.model, kwargs))
    source = {"architectures": None, "dtype": None, "_name_or_path": None}
    assert again.config.to_dict() | source == pruned.model.config.to_dict() | source
    again.save_pretrained(tmp_path / "hf")
    assert torch.equal(logits(type(again).from_pretrained(tmp_path / "hf"), kwargs), logits(pruned.model, kwargs))


def test_models_without_a_config_have_nothing_to_say():
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2)).eval()
    assert cut(trace(model, torch.randn(2, 4)), Plan({"0": (0, 1)})).config.why == ""


def test_an_archive_cannot_write_anything_but_numbers_into_a_config():
    model, _ = bert()
    for key, value in (("hidden_act", 3), ("hidden_size", "os"), ("intermediate_size", True)):
        with pytest.raises(ConfigError, match="no number"):
            set_config(model, {key: value})
