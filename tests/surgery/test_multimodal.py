"""The language part of a multimodal model: cut on its own and put back, or as a part of the whole model."""

import copy

import pytest
import torch
from language_networks import transformers
from test_generation import generated

import metaprune as mp
from metaprune.testing import assert_untouched

IMAGE, IMAGE_TOKENS, WIDTH = 59, 4, 32


@pytest.fixture
def llava():
    """A tiny LLaVA, and inputs of two images with text."""
    text = dict(vocab_size=60, hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    sight = dict(hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4)
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(num_key_value_heads=2, pad_token_id=0, **text),
        vision_config=transformers.CLIPVisionConfig(image_size=16, patch_size=8, **sight),
        image_token_id=IMAGE,
        vision_feature_layer=-1,
    )
    torch.manual_seed(0)
    ids = torch.cat([torch.full((2, IMAGE_TOKENS), IMAGE), torch.randint(3, 58, (2, 6))], 1)
    inputs = {"input_ids": ids, "pixel_values": torch.randn(2, 3, 16, 16)}
    return transformers.LlavaForConditionalGeneration(config).eval(), inputs


@torch.no_grad()
def embedded(model, inputs):
    """What the language part is given: tokens, with what the vision part makes of the images in their places."""
    seen = {}
    hook = model.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.update(kwargs), with_kwargs=True
    )
    model(**inputs)
    hook.remove()
    return seen["inputs_embeds"]


@pytest.mark.parametrize("given", ["input_ids", "inputs_embeds"])
@torch.no_grad()
def test_the_language_part_is_cut_alone_and_put_back(llava, given):
    model, inputs = llava
    example = {"input_ids": inputs["input_ids"]} if given == "input_ids" else {given: torch.randn(2, 10, WIDTH)}
    with assert_untouched(model):
        result = mp.prune(
            model.model.language_model,
            None,
            example,
            budget="params=70%",
            method="magnitude",
            keep_module=True,
            progress=False,
        )
    assert result.pruned.form == "module" and result.record["cost"]["after"]["params"] < 0.7 * 17440 + 1
    whole = copy.deepcopy(model)
    whole.model.language_model = result.model
    states = result.model(inputs_embeds=embedded(model, inputs)).last_hidden_state
    assert torch.equal(whole(**inputs).logits, model.lm_head(states))
    assert torch.equal(generated(whole, **inputs), generated(whole, **inputs, use_cache=False))


@pytest.mark.filterwarnings("ignore:operators without a rule.*masked_scatter")
@pytest.mark.filterwarnings("ignore::metaprune.FixedBatchWarning")
def test_the_whole_model_traces_and_both_parts_are_cut(llava):
    model, inputs = llava
    network = mp.trace(model, None, inputs)
    parts = {g.name.split(".")[1] for g in network.space if g.width > 1}
    assert {"vision_tower", "language_model"} <= parts
    rng = torch.Generator().manual_seed(1)
    keep = {
        g.name: tuple(range(int(torch.randint(1, g.width + 1, (), generator=rng))))
        for g in network.space
        if g.role == "hidden"
    }
    pruned = mp.cut(network, mp.Plan(keep), form="module")
    assert pruned.error is not None and pruned.error < 1e-9
    assert generated(pruned.model, **inputs).shape[0] == 2
