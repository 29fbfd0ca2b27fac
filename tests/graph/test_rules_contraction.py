"""Convolutions, products, attention, embeddings: the labels they make, and the numbers that follow the cut."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metaprune.surgery import cut
from metaprune.testing import assert_cut_equals_mask, counted_macs, perturb, random_plan
from metaprune.testing.networks import Lambda
from metaprune.tracing import trace
from metaprune.values import Plan

pytestmark = pytest.mark.filterwarnings("ignore")


def groups(model, *args, **kwargs):
    """Proves two cuts; {sorted (parameter, dim) of the members: width}."""
    (first, _) = assert_cut_equals_mask(perturb(model).eval(), args, seeds=(0, 1), example_kwargs=kwargs)
    assert first.network.space.over_merged == 0
    return {frozenset((m.parameter, m.dim) for m in g.members): g.width for g in first.network.space}


def test_grouped_convolution_is_rows_and_offsets():
    """groups=4, 12 -> 24: channel (g, i) in, (g, o) out; whole groups R, input offsets K, output offsets O."""
    model = nn.Sequential(nn.Conv2d(3, 12, 1), nn.Conv2d(12, 24, 1, groups=4, bias=False), nn.Conv2d(24, 3, 1))
    found = groups(model, torch.randn(2, 3, 4, 4))
    assert sorted(found.values()) == [3, 4, 6]
    by_width = {width: members for members, width in found.items()}
    assert by_width[4] == {("0.weight", 0), ("0.bias", 0), ("1.weight", 0), ("2.weight", 1)}
    assert by_width[3] == {("0.weight", 0), ("0.bias", 0), ("1.weight", 1)}
    assert by_width[6] == {("1.weight", 0), ("2.weight", 1)}


def test_dropping_one_group_of_a_grouped_convolution():
    model = nn.Sequential(nn.Conv2d(3, 12, 1), nn.Conv2d(12, 24, 1, groups=4, bias=False), nn.Conv2d(24, 3, 1)).eval()
    network = trace(model, torch.randn(2, 3, 4, 4))
    rows = next(g for g in network.space if g.width == 4)
    pruned = cut(network, Plan({rows.name: (0, 2, 3)})).model
    assert pruned[1].groups == 3 and pruned[1].weight.shape == (18, 3, 1, 1) and pruned[0].weight.shape[0] == 9
    assert torch.equal(pruned[1].weight, model[1].weight[[*range(6), *range(12, 24)]])


def test_depthwise_convolution_passes_its_channels():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 3, 1))
    (members,) = groups(model, torch.randn(2, 3, 5, 5))
    assert {("0.weight", 0), ("1.weight", 0), ("1.bias", 0), ("2.weight", 1)} <= members


def test_depthwise_with_a_multiplier():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 12, 3, groups=4), nn.Conv2d(12, 3, 1))
    assert sorted(groups(model, torch.randn(2, 3, 5, 5)).values()) == [3, 4]


def test_a_kernel_for_every_sample():
    """CondConv and its kind: samples become groups, so that their number is no width."""

    def forward(m, x):
        x = m.stem(x)
        n, c, h, w = x.shape
        kernels = (m.route(x.mean((2, 3))) @ m.kernels.flatten(1)).reshape(-1, c, 3, 3)
        return m.fc(F.conv2d(x.reshape(1, n * c, h, w), kernels, groups=n).reshape(n, -1, h - 2, w - 2).mean((2, 3)))

    layers = {"stem": nn.Conv2d(3, 8, 1), "route": nn.Linear(8, 5), "fc": nn.Linear(12, 4)}
    model = Lambda(forward, kernels=nn.Parameter(torch.randn(5, 12, 8, 3, 3)), **layers)
    found = groups(model, torch.randn(2, 3, 6, 6))
    assert found[frozenset({("route.weight", 0), ("route.bias", 0), ("kernels", 0)})] == 5
    assert found[frozenset({("stem.weight", 0), ("stem.bias", 0), ("route.weight", 1), ("kernels", 2)})] == 8
    network = trace(model, torch.randn(2, 3, 6, 6))
    plan = random_plan(network.space, 0.5, 0)
    for batch in (1, 3):
        counted = counted_macs(cut(network, plan, form="graph").model, torch.randn(batch, 3, 6, 6))
        assert network.cost(plan, batch=batch).macs == counted


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose3d])
def test_convolutions_of_other_ranks(kind):
    rank = 1 if "1d" in kind.__name__ else 3
    model = nn.Sequential(kind(3, 8, 2), nn.ReLU(), kind(8, 6, 2, groups=2), kind(6, 4, 1))
    assert sorted(groups(model, torch.randn(2, 3, *[4] * rank)).values()) == [2, 3, 4]


def test_transposed_grouped_convolution():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 12, 2, stride=2, groups=2), nn.Conv2d(12, 3, 1))
    assert sorted(groups(model, torch.randn(2, 3, 4, 4)).values()) == [2, 4, 6]


@pytest.mark.parametrize("padding", ["same", 1])
@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect"])
def test_padding_modes(padding, mode):
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=padding, padding_mode=mode), nn.Conv2d(8, 3, 1))
    assert list(groups(model, torch.randn(2, 3, 6, 6)).values()) == [8]


EINSUM = {  # equation over (layer a's 8, layer c's 8 or 4) -> widths
    "bi,oi->bo": ([8], 8),
    "bi,bi->bi": ([8], 8),
    "bi,bj->bij": ([4, 8], 4),
}


@pytest.mark.parametrize("equation", EINSUM)
def test_einsum(equation):
    widths, second = EINSUM[equation]
    if equation == "bi,oi->bo":
        model = Lambda(
            lambda m, x: torch.einsum(equation, m.a(x), m.w), a=nn.Linear(6, 8), w=nn.Parameter(torch.randn(3, 8))
        )
    else:
        outer = 32 if second == 4 else 8
        mods = {"a": nn.Linear(6, 8), "c": nn.Linear(6, second), "b": nn.Linear(outer, 3)}
        model = Lambda(lambda m, x: m.b(torch.einsum(equation, m.a(x), m.c(x)).flatten(1)), **mods)
    assert sorted(groups(model, torch.randn(2, 6)).values()) == widths


def test_einsum_sums_a_letter_of_one_operand_first():
    model = Lambda(
        lambda m, x: torch.einsum("bti,oi->bo", m.a(x), m.w), a=nn.Linear(6, 8), w=nn.Parameter(torch.randn(3, 8))
    )
    assert list(groups(model, torch.randn(2, 4, 6)).values()) == [8]


def test_matmul_of_two_activations():
    model = Lambda(
        lambda m, x: m.b(m.a(x) @ m.c(x).transpose(1, 2)), a=nn.Linear(6, 8), c=nn.Linear(6, 8), b=nn.Linear(5, 3)
    )
    (members,) = groups(model, torch.randn(2, 5, 6))
    assert {("a.weight", 0), ("c.weight", 0)} <= members


def attention(heads, kv_heads, width, **options):
    def forward(m, x):
        b, n, _ = x.shape
        q = m.q(x).view(b, n, heads, width).transpose(1, 2)
        k, v = (p(x).view(b, n, kv_heads, width).transpose(1, 2) for p in (m.k, m.v))
        return m.out(F.scaled_dot_product_attention(q, k, v, **options).transpose(1, 2).reshape(b, n, -1))

    mods = {"q": nn.Linear(6, heads * width), "k": nn.Linear(6, kv_heads * width), "v": nn.Linear(6, kv_heads * width)}
    return Lambda(forward, **mods, out=nn.Linear(heads * width, 3))


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"scale": 0.3}])
def test_attention(options):
    """Heads are common; head dimensions of q with k, of v with the output."""
    found = groups(attention(3, 3, 4, **options), torch.randn(2, 5, 6))
    by_members = {frozenset(p.split(".")[0] for p, _ in members): width for members, width in found.items()}
    assert by_members == {frozenset("qkv") | {"out"}: 3, frozenset("qk"): 4, frozenset({"v", "out"}): 4}


def test_grouped_query_attention():
    """6 query heads read 2 key/value heads: the pairs (kv head, repeat) go as rows or as columns."""
    found = groups(attention(6, 2, 4, enable_gqa=True), torch.randn(2, 5, 6))
    assert sorted(found.values()) == [2, 3, 4, 4]


def test_attention_mask_of_heads():
    model = attention(3, 3, 4)
    bias = nn.Parameter(torch.randn(3, 5, 5))

    def forward(m, x):
        q, k, v = (p(x).unflatten(2, (3, 4)).transpose(1, 2) for p in (m.q, m.k, m.v))
        return m.out(F.scaled_dot_product_attention(q, k, v, attn_mask=m.bias).transpose(1, 2).flatten(2))

    model.function, model.bias = forward, bias
    found = groups(model, torch.randn(2, 5, 6))
    assert ("bias", 0) in next(members for members, width in found.items() if width == 3)


def test_attention_scale_is_pinned():
    """Half of the head dimension is gone: the scale stays that of the original width, in the graph form too."""
    network = trace(attention(2, 2, 8).eval(), torch.randn(2, 5, 6))
    (node,) = [n for n in network.captured.graph.nodes if "scaled_dot" in str(n.target)]
    (patch,) = [p for p in network.labelled.facts[node.name].patches if p.argument == "scale"]
    assert patch.value(network.survivors(Plan())) == 8**-0.5


def test_embedding_rows_stay_and_columns_are_channels():
    found = groups(nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 3)), torch.randint(0, 9, (2, 5)))
    assert found == {frozenset({("0.weight", 1), ("1.weight", 1)}): 8}


def test_packed_projection_by_chunk_leaves_its_parts_separate():
    def forward(m, x):
        q, k, v = m.qkv(x).chunk(3, -1)
        return m.out((q @ k.transpose(1, 2)).softmax(-1) @ v)

    found = groups(Lambda(forward, qkv=nn.Linear(6, 24), out=nn.Linear(8, 3)), torch.randn(2, 5, 6))
    assert sorted(found.values()) == [8, 8]


def test_multiplying_with_a_number_ties_nothing():
    mods = {
        "a": nn.Linear(6, 8),
        "b": nn.Linear(8, 3),
        "scale": nn.Parameter(torch.ones(())),
        "one": nn.Parameter(torch.ones(1)),
    }
    assert list(groups(Lambda(lambda m, x: m.b(m.a(x) * m.scale * m.one), **mods), torch.randn(2, 6)).values()) == [8]


def test_type_of_another_tensor_ties_nothing():
    mods = {"a": nn.Linear(6, 8), "c": nn.Linear(6, 8), "b": nn.Linear(8, 3)}
    model = Lambda(lambda m, x: m.b(m.a(x).type_as(m.c(x))) + m.c(x).sum(1, keepdim=True), **mods)
    assert sorted(groups(model, torch.randn(2, 6)).values()) == [8, 8]
