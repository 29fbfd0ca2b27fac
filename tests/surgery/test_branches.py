"""Width 0: a residual branch goes whole. What it leaves, what it costs, both forms, archives, and what is refused."""

import copy
import json
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_networks import build
from torch import nn

import metaprune as mp
from metaprune.core.errors import DataError, PlanError
from metaprune.export import exporters
from metaprune.export.archive import NETWORK, save
from metaprune.surgery import cut
from metaprune.surgery.dropped import Constant, Idle
from metaprune.surgery.verify import relative_error
from metaprune.testing import assert_untouched, toy
from metaprune.testing.networks import Lambda
from metaprune.tracing import trace

pytestmark = pytest.mark.filterwarnings("ignore:.*batch")


def example(name):
    if name in ("resnet20", "vit_micro", "bert_classifier"):
        return build(name)
    made = toy(name)
    return made.model, made.args, made.kwargs


def without(network, *numbers):
    return mp.Plan({g: () for i in numbers for g in network.branches[i].groups})


FOUND = {
    "residual": ["b"],
    "packed_qkv": ["block.proj", "fc2"],
    "tied": ["back"],
    "multihead": ["1.self_attn", "1.linear2"],
    "resnet20": [f"layer{i}.{j}.conv2" for i in (1, 2, 3) for j in (0, 1, 2)],
    "vit_micro": [f"blocks.{i}.{kind}" for i in range(4) for kind in ("attn", "mlp")],
    "bert_classifier": [f"bert.encoder.layer.{i}.{kind}output.dense" for i in range(2) for kind in ("attention.", "")],
}


@pytest.mark.parametrize("name", FOUND)
def test_every_branch_is_found_proved_and_costs_what_the_cut_network_costs(name):
    model, args, kwargs = example(name)
    network = trace(model, args, kwargs)
    assert [b.name for b in network.branches] == FOUND[name]
    dropped = [*range(len(FOUND[name]))][:3]
    for plan in (without(network, 0), without(network, *dropped)):
        with assert_untouched(model):
            pruned, graph = cut(network, plan), cut(network, plan, form="graph")
        assert pruned.error is not None and pruned.error <= 1e-9
        by_widths = network.cost(plan.widths(network.space))
        assert by_widths == network.cost(plan)
        for made in (pruned, graph):
            recount = trace(made.model, args, kwargs).cost()
            assert (recount.macs, recount.params) == (by_widths.macs, by_widths.params)
            assert recount.weight_bytes == by_widths.weight_bytes
            assert recount.peak_bytes <= by_widths.peak_bytes
        names = {n for n, _ in graph.model.named_parameters()}
        assert names == {n for n, _ in pruned.model.named_parameters()}
        assert names == {n for n, _ in model.named_parameters()} - _lost(network, plan) | _left(network, plan)


def _lost(network, plan):
    return set().union(*(b.tensors for b in network.branches if set(b.groups) <= plan.keep.keys()))


def _left(network, plan):
    return {b.constant_name for b in network.branches if set(b.groups) <= plan.keep.keys() and b.constant}


NETWORKS = {name: trace(*build(name)[:2]) for name in ("resnet20", "vit_micro")}


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(sorted(NETWORKS)), st.integers(0, 2**32 - 1))
def test_any_branches_go_with_any_widths_of_the_rest(name, seed):
    network, draw = NETWORKS[name], np.random.default_rng(seed)
    chosen = np.flatnonzero(draw.random(len(network.branches)) < 0.4)
    keep = {}
    for group in network.space:
        if draw.random() < 0.5:
            count = draw.integers(1, group.width + 1)
            keep[group.name] = tuple(sorted(draw.choice(group.width, count, replace=False).tolist()))
    plan = mp.Plan({**keep, **without(network, *chosen).keep})
    pruned = cut(network, plan, form="graph")
    assert pruned.error is None or pruned.error <= 1e-9
    cost = network.cost(plan)
    assert network.cost(plan.widths(network.space)) == cost
    args = network.captured.example[0]
    recount = trace(pruned.model, args).cost()
    assert (recount.macs, recount.params, recount.weight_bytes) == (cost.macs, cost.params, cost.weight_bytes)
    with torch.no_grad():
        assert relative_error(network.run(*args, plan=plan), pruned.model(*args)) < 1e-5


class Block(nn.Module):
    """A residual block by hand: 4 channels, 6 inside."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.inner = nn.Conv2d(4, 6, 3, padding=1)
        self.outer = nn.Conv2d(6, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = self.stem(x)
        return self.head((x + self.norm(self.outer(self.inner(x).relu()))).mean((2, 3)))


def test_what_is_left_is_the_norm_of_the_bias():
    block = Block()
    with torch.no_grad():
        block.norm.running_mean.uniform_(-1, 1)
        block.norm.running_var.uniform_(0.5, 2)
        block.norm.weight.uniform_(0.5, 2)
        block.norm.bias.uniform_(-1, 1)
    block.eval()
    network = trace(block, torch.randn(2, 3, 5, 5))
    (branch,) = network.branches
    assert (branch.name, branch.groups, branch.constant) == ("outer", ("inner",), True)
    expected = (block.outer.bias - block.norm.running_mean) / (block.norm.running_var + block.norm.eps).sqrt()
    expected = expected * block.norm.weight + block.norm.bias
    for form in ("module", "graph"):
        model = cut(network, mp.Plan({"inner": ()}), form=form).model
        constant = model.get_parameter("outer.constant")
        assert constant.shape == (4, 1, 1) and torch.allclose(constant.flatten(), expected, atol=1e-6)
        assert constant.requires_grad
        x = torch.randn(3, 3, 5, 5)
        moved = block.head((block.stem(x) + expected.reshape(-1, 1, 1)).mean((2, 3)))
        assert torch.allclose(model(x), moved, atol=1e-5)
    assert network.cost({"inner": 0}).params == (3 * 4 + 4) + 4 + (4 * 2 + 2)
    assert network.cost({"inner": 0}).macs == 3 * 4 * 25 + 4 * 2
    assert type(cut(network, mp.Plan({"inner": ()})).model.norm) is Idle


def test_gradients_reach_what_is_left():
    network = trace(Block().eval(), torch.randn(2, 3, 5, 5))
    network.run(torch.randn(2, 3, 5, 5), plan=mp.Plan({"inner": ()})).sum().backward()
    model = network.model
    assert model.outer.bias.grad.abs().sum() > 0 and model.norm.bias.grad.abs().sum() > 0
    assert model.inner.weight.grad is None


def two_layers(forward, **modules):
    modules = {"inner": nn.Linear(4, 6), "outer": nn.Linear(6, 4), "head": nn.Linear(4, 2), **modules}
    modules["start"] = nn.Parameter(torch.randn(3, 4))
    return trace(Lambda(forward, **modules).eval(), torch.randn(3, 4)).branches


REFUSED = {
    "what is left depends on the input": lambda m, x: m.head(x + m.outer(m.inner(x)) * x),
    "the branch is read elsewhere": lambda m, x: m.head(x + (y := m.outer(m.inner(x)))) + m.head(y),
    "the inside is read elsewhere": lambda m, x: m.head(x + m.outer(y := m.inner(x))) + y.mean(),
    "the other operand reads no input": lambda m, x: m.head(m.start + m.outer(m.inner(x))),
    "nothing is added": lambda m, x: m.head(m.outer(m.inner(x))),
    "another share is added": lambda m, x: m.head(torch.add(x, m.outer(m.inner(x)), alpha=2)),
    "what is left differs by position": lambda m, x: m.head(x + m.outer(m.inner(x)).cumsum(0)),
    "the stream is smaller": lambda m, x: m.head(x.mean(0, keepdim=True) + m.outer(m.inner(x))),
}


def test_a_plain_branch_is_found_where_its_neighbours_are_refused():
    assert len(two_layers(lambda m, x: m.head(x + m.outer(m.inner(x))))) == 1


@pytest.mark.parametrize("why", REFUSED)
def test_what_is_no_branch(why):
    assert not two_layers(REFUSED[why])


def test_branches_inside_a_branch_and_beside_one():
    def forward(m, x):
        inside = m.inner(x)
        inside = inside + m.back(m.deep(inside).relu())
        return m.head(x + m.outer(inside) + m.other(m.wide(x).relu()))

    layers = {"deep": nn.Linear(6, 5), "back": nn.Linear(5, 6), "wide": nn.Linear(4, 7), "other": nn.Linear(7, 4)}
    modules = {"inner": nn.Linear(4, 6), "outer": nn.Linear(6, 4), "head": nn.Linear(4, 2), **layers}
    network = trace(Lambda(forward, **modules).eval(), torch.randn(3, 4))
    assert {b.name: set(b.groups) for b in network.branches} == {
        "back": {"deep"},
        "outer": {"inner", "deep"},
        "other": {"wide"},
    }
    for chosen in ((0,), (1,), (0, 2), (1, 2), (0, 1, 2)):
        plan = without(network, *chosen)
        recount = trace(cut(network, plan).model, torch.randn(3, 4)).cost()
        assert (recount.macs, recount.params) == (network.cost(plan).macs, network.cost(plan).params)


def test_an_empty_group_names_what_else_goes():
    network = NETWORKS["vit_micro"]
    stream = next(g.name for g in network.space if g.role == "stream")
    with pytest.raises(PlanError, match="lies in no branch"):
        network.at(mp.Plan({stream: ()}))
    attention = network.branches[0]
    first, *others = attention.groups
    with pytest.raises(PlanError, match=f"'{attention.name}' whole: let its other groups keep nothing, too: ") as told:
        network.at(mp.Plan({first: ()}))
    assert all(other in str(told.value) for other in others)
    with pytest.raises(PlanError, match="whole"):
        network.cost({first: 0})


@pytest.mark.parametrize("name", ["resnet20", "vit_micro"])
@pytest.mark.parametrize("form", ["module", "graph"])
def test_archives_hold_what_is_left(name, form, tmp_path):
    model, args = build(name)[:2]
    network = trace(model, args)
    pruned = cut(network, without(network, 0, 1), form=form)
    save(pruned, tmp_path / "small")
    expected = pruned.model(*args)
    for again in (
        mp.load(tmp_path / "small", factory=lambda: copy.deepcopy(model)),
        mp.load(tmp_path / "small", form="graph"),
    ):
        assert torch.allclose(again(*args), expected, atol=1e-6)
    if form == "module":
        path = tmp_path / "small" / NETWORK
        described = json.loads(path.read_text())
        path.write_text(json.dumps({**described, "dropped": {"no.such": [0, 0, 0]}}))
        with pytest.raises(DataError, match="drops the module"):
            mp.load(tmp_path / "small", factory=lambda: copy.deepcopy(model))


FORMATS = ["pt2", *(["onnx"] if all(find_spec(p) for p in exporters.ONNX_PACKAGES) else [])]


@pytest.mark.parametrize("form", ["module", "graph"])
def test_the_result_exports(form, tmp_path):
    model, args = build("vit_micro")[:2]
    network = trace(model, args)
    pruned = cut(network, without(network, 0, 3), form=form)
    for format in FORMATS:
        report = exporters.export_model(pruned.model, args, {}, tmp_path / "small", format=format)
        assert report.error < 1e-4 and report.dynamic_batch


def test_the_result_is_cut_again():
    model, args = build("resnet20")[:2]
    network = trace(model, args)
    pruned = cut(network, without(network, 0, 4))
    again = trace(pruned.model, args)
    assert len(again.branches) == len(network.branches) - 2
    assert cut(again, without(again, 0)).error is not None


def test_a_decoder_without_some_attention_and_mlp_generates():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = dict(vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=3)
    config = transformers.LlamaConfig(**sizes, num_attention_heads=8, num_key_value_heads=4)
    model, ids = transformers.LlamaForCausalLM(config).eval(), torch.randint(0, 60, (2, 7))
    network = trace(model, ids)
    assert [b.constant for b in network.branches] == [False] * 6
    pruned = cut(network, without(network, 0, 3))  # attention of the first layer, MLP of the second
    assert pruned.form == "module" and pruned.error is not None
    layers = pruned.model.model.layers
    assert isinstance(layers[0].self_attn, Constant) and isinstance(layers[1].mlp, Constant)
    assert [layers[i].self_attn.layer_idx for i in (1, 2)] == [0, 1]  # a cache asks number 0 how long it is
    cached, whole = (pruned.model.generate(ids, max_new_tokens=4, do_sample=False, use_cache=c) for c in (True, False))
    assert torch.equal(cached, whole)
    assert "save_pretrained would write a folder that does not load" in pruned.config.why
