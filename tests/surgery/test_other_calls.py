"""A module form does whatever its original does: default call, cache, train mode; few attributes are rewritten."""

import warnings

import pytest
import torch
from torch import nn

import metaprune as mp
from metaprune.core.errors import InputsError
from metaprune.surgery.keep_module import module_rules
from metaprune.testing import assert_cut_equals_mask

IDS = torch.randint(0, 60, (2, 10), generator=torch.Generator().manual_seed(0))
SIZES = dict(vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=8)


def decoder(kind, **more):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SIZES, num_key_value_heads=4, head_dim=4, **more)
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Llama", "Qwen3", "Mixtral"])
def test_decoders_are_right_in_their_default_call(kind):
    model = decoder(kind, **({"num_local_experts": 4, "num_experts_per_tok": 2} if kind == "Mixtral" else {}))
    result = mp.prune(model, IDS, budget="params=60%", method="random", progress=False)
    assert result.pruned.form == "module" and result.pruned.error <= 1e-9
    assert [layer.self_attn.layer_idx for layer in result.model.model.layers] == [0, 1, 2, 3]
    assert "layer_idx" not in {n for values in result.pruned.attributes.values() for n in values}
    with torch.no_grad():
        default, uncached = result.model(IDS).logits, result.model(IDS, use_cache=False).logits
        greedy = [result.model.generate(IDS, max_new_tokens=4, do_sample=False, use_cache=c) for c in (True, False)]
    assert torch.allclose(default, uncached, atol=1e-5)
    assert torch.equal(*greedy)
    assert model.config.use_cache and result.model.config.use_cache


def test_experts_are_priced_and_pruned():
    network = mp.trace(decoder("Mixtral", num_local_experts=4, num_experts_per_tok=2), IDS)
    assert not network.uncovered
    hidden, inner, tokens = 32, 48, IDS.shape[1]
    experts = tokens * 2 * 3 * hidden * inner  # two experts a token, three matrices each
    projections = tokens * hidden * hidden * 3  # query, output; key and value are half as wide
    attention = 2 * 8 * tokens * tokens * 4
    router, head = tokens * hidden * 4, tokens * hidden * 60
    rotary = tokens * 2  # angles: positions times two frequencies
    expected = 4 * (experts + projections + attention + router) + head
    assert network.cost().macs - expected in (0, rotary)
    assert all(
        any(m.parameter == f"model.layers.0.mlp.experts.{n}" for g in network.space for m in g.members)
        for n in ("gate_up_proj", "down_proj")
    )


class Coincident(nn.Module):
    """`index` equals the width that is cut, and means something else."""

    def __init__(self, index):
        super().__init__()
        self.index, self.heads = index, 4
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x, scale=True):
        b, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, -1))
        return y * self.index if scale else y


@pytest.mark.parametrize("kwargs", [{"scale": False}, {}])
def test_a_number_that_merely_equals_a_width_stays(kwargs):
    torch.manual_seed(0)
    model, x = Coincident(4).eval(), torch.randn(2, 5, 8)
    network = mp.trace(model, x, kwargs)
    heads = next(g for g in network.space if g.role == "heads")
    pruned = mp.cut(network, mp.Plan({heads.name: (0, 2)}))
    assert pruned.form == "module" and (pruned.model.heads, pruned.model.index) == (2, 4)


class Auxiliary(nn.Module):
    """A head that only trains (GoogLeNet, deep supervision)."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Linear(16, 4)
        self.auxiliary = nn.Sequential(nn.Linear(16, 12), nn.BatchNorm1d(12), nn.Dropout(0.2), nn.Linear(12, 4))

    def forward(self, x):
        y = torch.relu(self.a(x))
        z = self.head(torch.relu(self.b(y)).mean((2, 3)))
        return (z, self.auxiliary(y.mean((2, 3)))) if self.training else z


@pytest.mark.parametrize("form", ["module", "graph"])
def test_parts_that_only_train_are_pruned_along(form):
    model, x = Auxiliary(), torch.randn(2, 3, 8, 8)
    assert "prunable, group auxiliary.0 (12) (used in train mode only)" in mp.trace(model, x).explain()
    result = mp.prune(model, x, budget="macs=50%", method="random", form=form, progress=False)
    assert result.model.get_parameter("auxiliary.0.weight").shape[1] == result.model.get_parameter("a.weight").shape[0]
    if form == "module":
        assert [y.shape for y in result.model.train()(x)] == [(2, 4), (2, 4)]


def test_a_class_that_breaks_in_train_mode_is_not_handed_over():
    class Stale(Auxiliary):
        def forward(self, x):
            y = torch.relu(self.a(x))
            z = self.head(torch.relu(self.b(y)).mean((2, 3)))
            return z + y.reshape(len(y), 16, -1).mean() if self.training else z + 0 * self.auxiliary(y.mean((2, 3)))

    result = mp.prune(Stale(), torch.randn(2, 3, 8, 8), budget="macs=50%", method="random", progress=False)
    assert result.pruned.form == "graph" and "train mode" in result.pruned.why


def test_norms_without_weights_follow():
    model = nn.Sequential(
        *(nn.Conv2d(3, 16, 3), nn.InstanceNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 1)),
        *(nn.BatchNorm2d(16, affine=False, track_running_stats=False), nn.GroupNorm(4, 16, affine=False)),
        *(nn.Flatten(2), nn.Linear(36, 16), nn.LayerNorm(16, elementwise_affine=False), nn.Linear(16, 4)),
    ).eval()
    x = torch.randn(2, 3, 8, 8)
    (pruned, *_) = assert_cut_equals_mask(model, x)
    small = pruned.model
    assert pruned.form == "module"
    assert small[1].num_features == small[0].out_channels and small[4].num_features == small[3].out_channels
    assert small[5].num_channels == small[3].out_channels and small[8].normalized_shape == (small[7].out_features,)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small(x)


def test_rules_of_a_class_come_from_trial_cuts():
    rules = module_rules(mp.trace(decoder("Llama"), IDS))
    assert rules.ties and rules.round_to == 1


# ------------------------------------------------------------------------------------------ a graph form's inputs


@pytest.mark.parametrize(
    ("args", "kwargs", "text"),
    [
        ((torch.randn(2, 3, 9, 8),), {}, r"traced with \[any, 3, 8, 8\] and is called with \[2, 3, 9, 8\]"),
        ((torch.randn(2, 3, 8),), {}, r"called with \[2, 3, 8\]"),
        ((torch.randn(2, 3, 8, 8), 1), {}, "no 2 arguments"),
        ((torch.randn(2, 3, 8, 8),), {"scale": 2}, "no argument 'scale'"),
        ((), {}, "needs 'input'"),
    ],
)
def test_a_graph_form_says_what_it_was_traced_with(args, kwargs, text, tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()
    result = mp.prune(model, torch.randn(2, 3, 8, 8), budget="macs=60%", form="graph", progress=False)
    result.save(tmp_path / "net")
    for graph in (result.model, mp.load(tmp_path / "net")):
        assert graph(torch.randn(5, 3, 8, 8)).shape == (5, 4)
        with pytest.raises(InputsError, match=text):
            graph(*args, **kwargs)


def test_a_constant_of_the_trace_is_checked():
    model, x = Coincident(4).eval(), torch.randn(2, 5, 8)
    graph = mp.prune(model, x, {"scale": False}, budget="params=80%", form="graph", progress=False).model
    assert graph(x, scale=False).shape == x.shape
    with pytest.raises(InputsError, match=r"traced with .*False and is called with .*True"):
        graph(x, scale=True)
