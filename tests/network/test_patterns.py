"""Patterns: what protects names the readers of channels as well, all else names the layers that make them."""

import pytest
import torch
from torchvision.models import resnet18
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from metaprune.core.errors import PlanError
from metaprune.tracing import trace
from metaprune.values import Constraints


@pytest.fixture(scope="module")
def resnet():
    return trace(resnet18(num_classes=10).eval(), torch.zeros(2, 3, 64, 64)).space


@pytest.fixture(scope="module")
def llama():
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = LlamaForCausalLM(config).eval()
    return trace(model, None, {"input_ids": torch.zeros(2, 8, dtype=torch.long)}).space


@pytest.fixture(scope="module")
def bert():
    config = BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=50)
    model = BertModel(config).eval()
    return trace(model, None, {"input_ids": torch.zeros(2, 8, dtype=torch.long)}, free_outputs=True).space


def named(space, pattern, kind):
    return {space[i].name for i in space.match([pattern], kind)}


@pytest.mark.parametrize("kind", ["only", "ratio", "tie", "min_keep"])
def test_a_stage_of_a_resnet_is_its_own_widths_and_not_the_stream_it_reads(resnet, kind):
    own = {"layer2.0.conv1", "layer2.0.conv2", "layer2.1.conv1"}
    assert named(resnet, "layer2*", kind) == named(resnet, "layer2", kind) == own


def test_a_stream_that_others_add_to_is_named_by_its_name_or_role_alone(resnet):
    assert named(resnet, "layer1*", "only") == {"layer1.0.conv1", "layer1.1.conv1"}
    assert named(resnet, "conv1", "only") == named(resnet, "=conv1", "only") == {"conv1"}
    assert "conv1" in named(resnet, "*:stream", "only")


@pytest.mark.parametrize("kind", ["ignore", "whole"])
def test_what_protects_names_readers_too(resnet, kind):
    assert named(resnet, "layer2*", kind) == {"conv1", "layer2.0.conv1", "layer2.0.conv2", "layer2.1.conv1"}


def test_parts_of_transformers_are_what_they_have_inside(llama, bert):
    assert named(llama, "*mlp*", "only") == named(llama, "*up_proj*", "only") == {"model.layers.0.mlp.gate_proj"}
    assert all(":" in name for name in named(llama, "*self_attn*", "only"))
    assert named(bert, "*intermediate*", "only") == {f"encoder.layer.{i}.intermediate.dense" for i in (0, 1)}


@pytest.mark.parametrize("pattern", ["fc", "layer2.1.conv2"])
def test_a_layer_that_makes_no_group_by_itself_is_refused_with_the_name_to_give(resnet, pattern):
    with pytest.raises(PlanError, match=r"names no layer that makes a group by itself.*layer[24]\.0\.conv2.*name that"):
        resnet.match([pattern], "only")


def test_what_a_pattern_of_single_weights_names_in_the_record(resnet):
    """`only=["fc"]` of a method that masks weights: the layer makes no group, and is there."""
    assert resnet.named_by(Constraints(only=("fc",))) == {"only fc": []}
    assert resnet.match(["fc"], "only", readers=True)
    with pytest.raises(PlanError, match="matches no group"):
        resnet.named_by(Constraints(only=("fd",)))
