"""Attention taken apart: heads, query/key dimensions and value dimensions, by hand; and what users say with them."""

import pytest
import torch
from torch import nn

import metaprune as mp
from metaprune.graph.capture import capture
from metaprune.graph.unpack import unpack_projections
from metaprune.testing import assert_cut_equals_mask, toy
from metaprune.tracing import trace

pytestmark = pytest.mark.filterwarnings("ignore")
E, H, D = 8, 2, 4


class Packed(nn.Module):
    """Self-attention of one packed projection, read in one of the ways that libraries read it."""

    def __init__(self, how: str):
        super().__init__()
        self.qkv, self.proj, self.head, self.how = nn.Linear(E, 3 * H * D), nn.Linear(H * D, E), nn.Linear(E, 3), how

    def forward(self, x):
        batch, tokens, _ = x.shape
        packed = self.qkv(x)
        if self.how == "unbind":
            q, k, v = packed.reshape(batch, tokens, 3, H, D).permute(2, 0, 3, 1, 4).unbind(0)
        elif self.how == "select":
            packed = packed.view(batch, tokens, 3, H, D)
            q, k, v = (packed[:, :, i].transpose(1, 2) for i in range(3))
        elif self.how == "unflatten":  # as torch.nn.functional.multi_head_attention_forward
            packed = packed.unflatten(-1, (3, H * D)).unsqueeze(0).transpose(0, -2).squeeze(-2).contiguous()
            q, k, v = (packed[i].view(batch, tokens, H, D).transpose(1, 2) for i in range(3))
        else:  # also read as a whole
            packed = packed.view(batch, tokens, 3, H, D)
            q, k, v = (packed[:, :, i].transpose(1, 2) + packed.mean() for i in range(3))
        if self.how == "select":
            weights = (q @ k.transpose(-2, -1) * D**-0.5).softmax(-1)
            y = weights @ v
        else:
            y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.head((x + self.proj(y.transpose(1, 2).reshape(batch, tokens, -1))).mean(1))


def traced(how: str):
    torch.manual_seed(0)
    return trace(nn.Sequential(nn.Linear(5, E), Packed(how)).eval(), torch.randn(2, 6, 5))


def rows(network, group: str, parameter: str, dim: int) -> list[list[int]]:
    member = next(m for m in network.space[group].members if (m.parameter, m.dim) == (parameter, dim))
    return [sorted(r.tolist()) for r in member.rows]


@pytest.mark.parametrize("how", ["unbind", "select", "unflatten"])
def test_heads_and_dimensions_by_hand(how):
    network = traced(how)
    assert {g.name: (g.width, g.role) for g in network.space} == {
        "0": (E, "stream"),
        "1.qkv:heads": (H, "heads"),
        "1.qkv:head_dims": (D, "head_dims"),
        "1.qkv:value_dims": (D, "value_dims"),
    }
    packed = ("1.qkv.weight", 0)
    of_head = lambda h: [part * H * D + h * D + i for part in range(3) for i in range(D)]  # noqa: E731
    assert rows(network, "1.qkv:heads", *packed) == [of_head(0), of_head(1)]
    assert rows(network, "1.qkv:head_dims", *packed) == [[i, D + i, 2 * D + i, 3 * D + i] for i in range(D)]
    assert rows(network, "1.qkv:value_dims", *packed) == [[4 * D + i, 5 * D + i] for i in range(D)]
    assert rows(network, "1.qkv:value_dims", "1.proj.weight", 1) == [[i, D + i] for i in range(D)]


@pytest.mark.parametrize("how", ["unbind", "select", "unflatten", "whole"])
def test_cut_equals_mask(how):
    assert_cut_equals_mask(nn.Sequential(nn.Linear(5, E), Packed(how)).eval(), torch.randn(2, 6, 5), seeds=(0, 1, 2))


def test_a_pack_that_is_read_as_a_whole_stays():
    for how, packs in (("unbind", 1), ("select", 1), ("unflatten", 1), ("whole", 0)):
        assert unpack_projections(capture(Packed(how).eval(), (torch.randn(2, 6, E),), {})) == packs


def test_grouped_queries():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=6,
        use_cache=False,
    )
    network = trace(transformers.LlamaForCausalLM(config).eval(), None, {"input_ids": torch.randint(0, 50, (2, 7))})
    roles = {g.role: g.width for g in network.space}
    # rotary embedding ties dimension i of a head with dimension i + 3
    assert roles == {
        "stream": 32,
        "kv_heads": 2,
        "query_heads": 4,
        "head_dims": 3,
        "value_dims": 6,
        "hidden": 24,
    }


def test_roles_in_a_cnn():
    network = trace(toy("residual").model, toy("residual").args)
    assert {g.role for g in network.space} == {"stream", "hidden"}


@pytest.mark.parametrize("role", ["heads", "head_dims", "value_dims", "stream", "hidden"])
def test_a_budget_spent_on_one_role(role):
    result = mp.prune(vit(), torch.randn(2, 3, 32, 32), budget="macs=97%", only=[f"*:{role}"])
    roles = {result.pruned.network.space[name].role for name in result.plan.keep}
    assert roles == {role}


def vit():
    from metaprune.models import create

    torch.manual_seed(0)
    return create("zoo:vit_tiny", image_size=32, num_classes=4).eval()


def test_explain_names_the_roles():
    text = mp.trace(vit(), torch.randn(2, 3, 32, 32)).explain()
    assert all(f":{role}" in text for role in ("heads", "head_dims", "value_dims"))


def test_a_role_that_the_network_lacks_is_an_error():
    with pytest.raises(mp.MetapruneError, match="matches no group"):
        mp.prune(toy("residual").model, toy("residual").args, budget="macs=90%", only=["*:heads"])
