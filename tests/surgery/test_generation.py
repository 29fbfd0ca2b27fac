"""Generation after a cut: with a cache as without, at other lengths and batches, padded; twelve families."""

import pytest
import torch
from language_networks import ENCODER_DECODERS, FAMILIES, example, language_model, sound, tokens

import metaprune as mp
from metaprune.testing import assert_untouched

NEW = 5


def cut_at_random(family, **options):
    model = language_model(family)
    with assert_untouched(model):
        result = mp.prune(
            model, None, example(family), budget="params=60%", method="random", seed=3, progress=False, **options
        )
    return result


def generated(model, use_cache=True, **inputs):
    fixed = dict(max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, max_length=None, min_length=None)
    return model.generate(**inputs, **fixed, use_cache=use_cache)[:, -NEW:]


@torch.no_grad()
def greedy(model, ids):
    """Tokens of whole forward passes without a cache."""
    for _ in range(NEW):
        scores = model(ids, use_cache=False).logits[:, -1]
        scores[:, model.config.eos_token_id] = -torch.inf
        ids = torch.cat([ids, scores.argmax(1, keepdim=True)], 1)
    return ids[:, -NEW:]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_cut_model_generates_with_its_cache_what_it_computes_without(family):
    result = cut_at_random(family)
    model, space = result.model, result.pruned.network.space
    assert result.pruned.form == "module" and 0 < result.pruned.error <= 1e-9
    widths = {len(result.plan.keep[g.name]) for g in space if g.role == "hidden" and g.name in result.plan.keep}
    assert len(widths) > 1  # layers of different widths
    for batch, length in ((1, 3), (3, 13)):
        ids = {"input_features": sound(batch, 7)} if family == "whisper" else {"input_ids": tokens(batch, length, 7)}
        cached = generated(model, **ids)
        assert torch.equal(cached, generated(model, use_cache=False, **ids))
        if family not in ENCODER_DECODERS:
            assert torch.equal(cached, greedy(model, ids["input_ids"]))
    assert len(cached.unique()) > 1


PADDED = ("llama", "falcon", "bloom", "bart")  # rotary, many queries, ALiBi, an encoder


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "family", [f if f in PADDED else pytest.param(f, marks=pytest.mark.thorough) for f in FAMILIES if f != "whisper"]
)
def test_padding_changes_nothing_after_a_cut(family):
    """Each row of a padded batch gets the tokens that it gets alone; so do kernels that repeat heads themselves."""
    model = cut_at_random(family).model
    rows = [tokens(1, n, n) for n in (4, 9, 7)]
    alone = torch.cat([generated(model, input_ids=row) for row in rows])
    left, longest = family not in ENCODER_DECODERS, max(row.shape[1] for row in rows)
    ids, mask = (torch.zeros(3, longest, dtype=torch.long) for _ in range(2))
    for i, row in enumerate(rows):
        at = slice(longest - row.shape[1], None) if left else slice(row.shape[1])
        ids[i, at], mask[i, at] = row[0], 1
    for use_cache in (True, False):
        assert torch.equal(generated(model, use_cache, input_ids=ids, attention_mask=mask), alone)
    if model._supports_sdpa:
        model.set_attn_implementation("eager")
        assert torch.equal(generated(model, input_ids=ids, attention_mask=mask), alone)


def test_numbers_of_layers_are_no_widths():
    """Head dimensions, key heads and the numbers of layers are equal here: 4 and 4, 2 and 2."""
    network = mp.trace(language_model("llama"), None, example("llama"))
    plan = mp.Plan({g.name: (0,) for g in network.space if g.role in ("kv_heads", "query_heads")})
    model = mp.cut(network, plan, form="module").model
    attentions = [layer.self_attn for layer in model.model.layers]
    assert [(a.layer_idx, a.head_dim, a.num_key_value_groups) for a in attentions] == [(i, 4, 1) for i in range(3)]


@pytest.mark.parametrize("family", ["llama", *(pytest.param(f, marks=pytest.mark.thorough) for f in ("gpt2", "t5"))])
@pytest.mark.parametrize("asked", [{}, {"use_cache": True}, {"use_cache": False}])
def test_a_cache_may_be_asked_for_or_not_when_tracing_and_when_calling(family, asked, tmp_path):
    inputs = example(family)
    pruned = cut_at_random(family).pruned
    network = mp.trace(language_model(family), None, {**inputs, **asked})
    module = mp.cut(network, pruned.plan, form="module").model
    graph = mp.cut(network, pruned.plan, form="graph")
    mp.Result(graph.model, graph.plan, {}, graph).save(tmp_path / "graph")
    with torch.no_grad():
        expected = module(**inputs, use_cache=False).logits
        for call in ({}, {"use_cache": True}, {"use_cache": False}):
            for model in (module, graph.model, mp.load(tmp_path / "graph", form="graph")):
                torch.testing.assert_close(model(**inputs, **call).logits, expected)
    assert module(**inputs).past_key_values is not None
