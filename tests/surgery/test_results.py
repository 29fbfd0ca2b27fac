"""A cut network is an ordinary network: it trains, exports, compiles, changes dtype and batch, and can be cut again."""

import copy
import functools
import io

import pytest
import torch
from sample_networks import build
from torch import nn
from torch.utils import _pytree as pytree

import metaprune as mp
from metaprune.surgery import cut
from metaprune.surgery.verify import relative_error
from metaprune.testing import TOYS, assert_cut_equals_mask, assert_untouched, output_error, perturb, random_plan, toy
from metaprune.testing.networks import Lambda
from metaprune.tracing import trace
from metaprune.values import Plan

GRAPH_ONLY_TOYS = {"split", "shuffle", "written_out_attention", "pad_shortcut", "multihead"}  # as test_networks pins
CASES = [(n, f) for n in TOYS for f in ("module", "graph") if f == "graph" or n not in GRAPH_ONLY_TOYS]
CASES += [("resnet20", "module"), ("vit_micro", "graph"), ("tv_vit", "graph"), ("bert_classifier", "module")]
pytestmark = pytest.mark.filterwarnings("ignore")


def example(name):
    if name in TOYS:
        made = toy(name)
        return made.model, made.args, made.kwargs
    return build(name)


def resized(inputs, batch):
    """Every tensor of nested inputs repeated or cut to `batch` rows."""
    return pytree.tree_map(lambda x: torch.cat([x] * batch)[:batch] if isinstance(x, torch.Tensor) else x, inputs)


def first(outputs):
    return next(x for x in pytree.tree_leaves(outputs) if isinstance(x, torch.Tensor))


@functools.cache
def made(name, form):
    model, args, kwargs = example(name)
    network = trace(model, args, kwargs)
    return cut(network, random_plan(network.space, 0.5, 0), form=form), args, kwargs


@pytest.fixture(params=CASES, ids="-".join)
def pruned(request):
    """(cut model in eval mode, args, kwargs, Pruned)."""
    result, args, kwargs = made(*request.param)
    return copy.deepcopy(result.model).eval(), args, kwargs, result


def test_trains(pruned):
    model, args, kwargs, _ = pruned
    model.train()
    args, kwargs = resized((args, kwargs), 4)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    means = {n: b.clone() for n, b in model.named_buffers() if n.endswith("running_mean")}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    weights = torch.randn(first(model(*args, **kwargs)).shape, generator=torch.Generator().manual_seed(0))
    (first(model(*args, **kwargs)) * weights).square().sum().backward()
    moved = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 1e-3}
    unused = {n for n, p in model.named_parameters() if p.grad is None}
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert not unused or all("never" in n or "pooler" in n for n in unused)
    optimizer.step()
    assert moved and all(not torch.equal(p, before[n]) for n, p in model.named_parameters() if n in moved)
    assert all(not torch.equal(b, means[n]) for n, b in model.named_buffers() if n in means)


def test_batch_norm_and_dropout_follow_the_mode(pruned):
    model, _, _, result = pruned
    original = result.network.model
    kinds = (torch.nn.modules.batchnorm._BatchNorm, torch.nn.modules.dropout._DropoutNd)
    held = [m for m in original.modules() if isinstance(m, kinds) and getattr(m, "p", 1) > 0]
    model.train()
    found = [m for m in model.modules() if isinstance(m, kinds) and getattr(m, "p", 1) > 0]
    if result.form == "module":
        assert len(found) == len(held)
    else:  # dropout inside fused attention is no operator of the traced graph
        attention = [m for m in original.modules() if "attention" in type(m).__name__.lower()]
        assert len(held) - len(attention) <= len(found) <= len(held)
    assert all(m.training for m in found)


def test_can_be_cut_twice_more(pruned):
    model, args, kwargs, _ = pruned
    for seed in (1, 2):
        (result_again,) = assert_cut_equals_mask(model, args, example_kwargs=kwargs, keep=0.7, seeds=(seed,))
        model = result_again.model


def test_keeps_the_spaces_widths(pruned):
    """What the cut network costs and offers is what the plan said."""
    model, args, kwargs, result = pruned
    again = trace(model, args, kwargs)
    before = result.network
    expected = before.cost(result.plan)
    assert (again.cost().macs, again.cost().params) == (expected.macs, expected.params)
    alive = sum(result.plan.widths(before.space))
    assert again.space.widths.sum() >= alive - len(before.space)  # a group of one channel may join another


def test_exports(pruned):
    model, args, kwargs, _ = pruned
    exported = torch.export.export(model, args, kwargs).module()
    with torch.no_grad():
        assert relative_error(exported(*args, **kwargs), model(*args, **kwargs)) < 1e-5


@pytest.mark.parametrize("batch", [1, 5])
def test_other_batch_sizes(pruned, batch):
    model, args, kwargs, _ = pruned
    more_args, more_kwargs = resized((args, kwargs), batch)
    with torch.no_grad():
        few, many = first(model(*args, **kwargs)), first(model(*more_args, **more_kwargs))
    expected = torch.cat([few] * batch)[:batch] if few.shape[0] == 2 else few
    assert relative_error(many, expected) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(pruned, dtype):
    model, args, kwargs, _ = pruned
    cast = lambda x: x.to(dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x  # noqa: E731
    args2, kwargs2 = pytree.tree_map(cast, (args, kwargs))
    with torch.no_grad():
        expected = first(model(*args, **kwargs))
        actual = first(copy.deepcopy(model).to(dtype)(*args2, **kwargs2))
    assert actual.dtype == dtype
    assert relative_error(actual, expected) < (0.2 if dtype == torch.bfloat16 else 1e-5)


def test_meta_device(pruned):
    model, args, kwargs, result = pruned
    if "Bert" in type(result.network.model).__name__:
        pytest.skip("the model's own forward reads mask values")
    there = lambda x: x.to("meta") if isinstance(x, torch.Tensor) else x  # noqa: E731
    args2, kwargs2 = pytree.tree_map(there, (args, kwargs))
    with torch.no_grad():
        expected, actual = first(model(*args, **kwargs)), first(copy.deepcopy(model).to("meta")(*args2, **kwargs2))
    assert actual.is_meta and actual.shape == expected.shape


def test_saves_and_copies(pruned):
    model, args, kwargs, result = pruned
    twin = copy.deepcopy(model)
    perturb(twin, seed=5)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    twin.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert output_error(twin, model, args, kwargs) == 0
    original = dict(result.network.model.named_parameters(remove_duplicate=False))
    assert set(dict(model.named_parameters())) <= set(original)
    assert {id(p) for p in model.parameters()}.isdisjoint(id(p) for p in original.values())


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("name", ["packed_qkv", "split", "keyword_inputs"])
@pytest.mark.parametrize("form", ["auto", "graph"])
def test_compiles(name, form, backend):
    model, args, kwargs = example(name)
    network = trace(model, args, kwargs)
    result = cut(network, random_plan(network.space, 0.5, 0), form=form).model
    torch.compiler.reset()
    compiled = torch.compile(result, backend=backend)
    with torch.no_grad():
        assert relative_error(compiled(*args, **kwargs), result(*args, **kwargs)) < 1e-5
    first(compiled(*args, **kwargs)).sum().backward()


@pytest.mark.parametrize("name", ["residual", "packed_qkv", "tied", "gated"])
def test_space_depends_on_the_architecture_only(name):
    """Not on frozen parameters, on the mode, on weights, on grad mode, on compilation, or on the batch size."""
    model, args, kwargs = example(name)
    digest = trace(model, args, kwargs).space.digest()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    assert trace(model, args, kwargs).space.digest() == digest
    assert trace(model.train(), args, kwargs).space.digest() == digest
    with torch.no_grad():
        assert trace(perturb(model, seed=9), args, kwargs).space.digest() == digest
    assert trace(torch.compile(model, backend="eager"), args, kwargs).space.digest() == digest
    for batch in (1, 4):
        more_args, more_kwargs = resized((args, kwargs), batch)
        assert trace(model, more_args, more_kwargs).space.digest() == digest


@pytest.mark.parametrize("form", ["auto", "graph"])
def test_frozen_parameters_and_mode_are_kept(form):
    model, args, _ = example("residual")
    model.train()
    model.stem[0].weight.requires_grad_(False)
    network = trace(model, args)
    result = cut(network, random_plan(network.space, 0.5, 0), form=form).model
    assert result.training
    assert [n for n, p in result.named_parameters() if not p.requires_grad] == ["stem.0.weight"]


@pytest.mark.parametrize("form", ["auto", "graph"])
def test_ties_stay_ties(form):
    model, args, _ = example("tied")
    network = trace(model, args)
    result = cut(network, random_plan(network.space, 0.5, 0), form=form).model
    assert sum(p.numel() for p in result.parameters()) == network.cost(random_plan(network.space, 0.5, 0)).params
    if form == "auto":
        assert result.head.weight is result.embed.weight
    result.train()
    result(*args).square().sum().backward()
    assert all(p.grad is not None for p in result.parameters())


def test_gradients_flow_into_full_parameters():
    """The elastic executor differentiates through its slices: dropped rows get a gradient of exactly zero."""
    model, args, _ = example("residual")
    network = trace(model, args)
    plan = random_plan(network.space, 0.5, 0)
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    network.run(*args, plan=plan, training=True).square().sum().backward()
    for group, mask in zip(network.space, plan.masks(network.space), strict=True):
        for member in group.members:
            parameter = dict(model.named_parameters()).get(member.parameter)
            if parameter is not None:
                rows = parameter.grad.transpose(0, member.dim).reshape(parameter.shape[member.dim], -1)
                rows = rows.abs().sum(1)[member.rows[:, 0]]
                assert not rows[~torch.from_numpy(mask)].any() and rows[torch.from_numpy(mask)].any()
    assert all(torch.equal(b, buffers[n]) for n, b in model.named_buffers())


@pytest.mark.parametrize("plan_share", [None, 0.5])
def test_running_never_changes_the_model(plan_share):
    model, args, _ = example("residual")
    network = trace(model, args)
    plan = None if plan_share is None else random_plan(network.space, plan_share, 0)
    with assert_untouched(model), torch.no_grad():
        network.run(*args, plan=plan, training=True)
        network.run(*args, plan=plan)


def test_replaced_weights_are_sliced():
    """cut(weights=...) equals copying the weights into the model first."""
    model, args, _ = example("concat")
    network = trace(model, args)
    plan = random_plan(network.space, 0.5, 0)
    other = perturb(copy.deepcopy(model), seed=3, scale=0.5)
    given = cut(network, plan, weights=dict(other.named_parameters()) | dict(other.named_buffers()))
    expected = cut(trace(other, args), plan)
    assert output_error(given.model, expected.model, args, {}) == 0


class Projection(nn.Module):
    """Knows its sizes by two attributes of one value, the output's first, as transformers' Conv1D does."""

    def __init__(self, outputs, inputs):
        super().__init__()
        self.outputs, self.inputs = outputs, inputs
        self.weight = nn.Parameter(torch.randn(inputs, outputs))

    def forward(self, x):
        return (x.reshape(-1, self.inputs) @ self.weight).view(*x.shape[:-1], self.outputs)


def test_two_attributes_of_one_value_in_another_order_than_they_are_used():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), Projection(8, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    network = trace(model, torch.randn(2, 3, 4))
    plan = Plan({"0": range(3), "2": range(5)})
    pruned = cut(network, plan, form="module")
    assert (pruned.model[2].inputs, pruned.model[2].outputs) == (3, 5)


def test_a_submodule_may_be_named_code(tmp_path):
    """A torch.fx.GraphModule has an attribute of that name."""
    model = Lambda(lambda m, x: m.out(m.code(x).relu()), code=nn.Linear(6, 16), out=nn.Linear(16, 3)).eval()
    x = torch.randn(2, 6)
    result = mp.prune(model, x, budget="params=50%", form="graph", progress=False)
    result.save(tmp_path / "run")
    again = mp.load(tmp_path / "run", form="graph")
    assert list(again.state_dict()) == list(model.state_dict())
    assert torch.equal(copy.deepcopy(again)(x), result.model(x))
