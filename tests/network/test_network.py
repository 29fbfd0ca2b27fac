"""`trace` and `Network`: what cannot be traced, what has no rule, what a plan may say."""

from collections import OrderedDict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from metaprune.core.errors import (
    ConfigError,
    MetapruneError,
    NotAvailableError,
    PlanError,
    UncoveredOpWarning,
    UntraceableError,
    VerificationError,
)
from metaprune.surgery import cut
from metaprune.testing import assert_cut_equals_mask, assert_untouched, random_plan, toy
from metaprune.testing.networks import Lambda
from metaprune.tracing import trace
from metaprune.values import Plan


class Branching(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x
        return -x


def two_layers(function, width=8):
    model = Lambda(lambda m, x: m.b(function(m.a(x))), a=nn.Linear(6, width), b=nn.Linear(width, 3))
    return model.eval(), (torch.randn(2, 6),)


def test_untraceable_names_module_and_line():
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(Branching()))
    x = torch.randn(2, 4)
    with assert_untouched(model), pytest.raises(UntraceableError) as caught:
        trace(model, x)
    message = str(caught.value)
    assert "1.0 (Branching)" in message and "if x.sum() > 0:" in message and "What to do" in message


class Packed(nn.Module):
    """What a quantised linear layer looks like: whole numbers, two of four bits in each."""

    def __init__(self, dtype, is_parameter):
        super().__init__()
        weight = torch.zeros(8, 2, dtype=dtype)
        if is_parameter:
            self.weight = nn.Parameter(weight, requires_grad=False)
        else:
            self.register_buffer("weight", weight)

    def forward(self, x):
        return x @ self.weight.to(x).repeat(1, 2).T


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.float8_e4m3fn])
def test_quantised_models_are_refused(dtype):
    model = nn.Sequential(OrderedDict(first=nn.Linear(4, 4), packed=Packed(dtype, True)))
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(NotAvailableError, match=rf"packed\.weight is quantised \({kind}\).*load the model in float"):
        trace(model, torch.randn(2, 4))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize_per_tensor:UserWarning")
def test_dynamically_quantised_models_are_refused():
    model = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 4)), {nn.Linear})
    with pytest.raises(NotAvailableError, match=r"0 is quantised \(packed\).*quantise the result"):
        trace(model, torch.randn(2, 4))


def test_a_mask_of_bytes_is_no_quantised_weight():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 2)
            self.mask = nn.Parameter(torch.ones(8, dtype=torch.uint8), requires_grad=False)

        def forward(self, x):
            return self.second(self.first(x) * self.mask)

    assert len(trace(Masked(), torch.randn(2, 4)).space) == 1


def test_buffers_of_whole_numbers_are_quantised_weights_where_the_config_says_so():
    model = nn.Sequential(OrderedDict(first=nn.Linear(4, 4), packed=Packed(torch.int32, False)))
    assert trace(model, torch.randn(2, 4)).cost().params > 0
    model.config = SimpleNamespace(quantization_config={"quant_method": "gptq"})
    with pytest.raises(NotAvailableError, match=r"packed\.weight is quantised \(int32\)"):
        trace(model, torch.randn(2, 4))
    model = nn.Sequential(nn.Linear(4, 4))
    model.config = SimpleNamespace(quantization_config={"quant_method": "gguf"})  # read into floats
    assert trace(model, torch.randn(2, 4)).cost().params == 20


def test_packed_sequences_are_refused_with_advice():
    def forward(m, x, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return m.fc(m.rnn(packed)[1][-1])

    model = Lambda(forward, rnn=nn.GRU(5, 16, batch_first=True), fc=nn.Linear(16, 3)).eval()
    with pytest.raises(UntraceableError, match=r"packed sequence.*padded sequences \[batch, length, features\]"):
        trace(model, (torch.randn(3, 6, 5), torch.tensor([6, 4, 2])))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_scripted_modules_are_refused_by_name():
    model = nn.Sequential(nn.Linear(4, 8), torch.jit.script(nn.ReLU()), nn.Linear(8, 2)).eval()
    with pytest.raises(UntraceableError, match=r"module 1 is compiled by torch.jit"):
        trace(model, torch.randn(2, 4))


def test_wrong_inputs_are_untraceable_with_the_reason():
    with pytest.raises(UntraceableError, match=r"mat1 and mat2|example inputs"):
        trace(nn.Sequential(nn.Linear(4, 4)), torch.randn(2, 5))


@pytest.mark.parametrize("function", [lambda x: torch.cdist(x, x) @ x, lambda x: x.renorm(2, 0, 1.0)])
def test_uncovered_operator_locks_and_is_listed(function):
    model, args = two_layers(function)
    with pytest.warns(UncoveredOpWarning, match="cdist|renorm"):
        network = trace(model, args)
    assert len(network.space) == 0
    (found,) = network.uncovered
    assert found.op in ("cdist", "renorm") and found.node.startswith(found.op) and found.module == ""
    reasons = {d.reason for d in network.space.locked if d.parameter == "a.weight" and d.dim == 0}
    assert len(reasons) == 1 and "operator without a rule" in reasons.pop()


def test_an_uncovered_operator_is_named_with_its_module():
    inner = Lambda(lambda m, x: m.fc(x).renorm(2, 0, 1.0), fc=nn.Linear(8, 8))
    model = nn.Sequential(nn.Linear(6, 8), inner, nn.Linear(8, 3)).eval()
    with pytest.warns(UncoveredOpWarning):
        network = trace(model, torch.randn(2, 6))
    assert network.uncovered[0].module == "1"
    assert [g.name for g in network.space] == ["0"], "what does not touch the operator stays prunable"


def test_an_uncovered_operator_on_nothing_tracked_is_no_news(recwarn):
    model, args = two_layers(torch.relu)
    wrapped = Lambda(lambda m, x: m.inner(x.renorm(2, 0, 1.0)), inner=model)
    assert trace(wrapped, args).uncovered == []
    assert not [w for w in recwarn if issubclass(w.category, UncoveredOpWarning)]


def test_a_dimension_that_is_normalised_or_ordered_stays():
    for function in (
        lambda x: x.cumsum(-1),
        lambda x: x.softmax(-1),
        lambda x: x.sort(-1).values,
        lambda x: x / x.abs().logsumexp(-1, keepdim=True),
    ):
        network = trace(*two_layers(function))
        assert len(network.space) == 0 and network.uncovered == []


def test_data_parallel_is_refused():
    with pytest.raises(MetapruneError, match=r"model\.module"):
        trace(nn.DataParallel(nn.Linear(4, 4)), torch.randn(2, 4))


def test_only_modules_are_traced():
    with pytest.raises(MetapruneError, match="function"):
        trace(lambda x: x, torch.randn(2, 4))


def test_compiled_model_is_its_original():
    made = toy("residual")
    network = trace(torch.compile(made.model, backend="eager"), made.args)
    assert network.model is made.model


@pytest.fixture(scope="module")
def residual():
    made = toy("residual")
    return trace(made.model, made.args), made.args


@pytest.mark.parametrize(
    "keep",
    [
        {"nowhere": (0,)},
        {"stem.0": ()},
        {"stem.0": (1, 0)},
        {"stem.0": (0, 0)},
        {"stem.0": (0, 8)},
        {"stem.0": (-1, 0)},
    ],
)
def test_wrong_plans(residual, keep):
    network, args = residual
    for use in (network.survivors, network.cost, lambda p: cut(network, p), lambda p: network.run(*args, plan=p)):
        with pytest.raises(PlanError):
            use(Plan(keep))


def test_wrong_name_suggests_the_right_one(residual):
    with pytest.raises(PlanError, match=r"Did you mean 'stem\.0'"):
        residual[0].cost({"stem.o": 3})


def test_other_input_structure_is_refused(residual):
    network, args = residual
    with pytest.raises(PlanError, match=r"was traced with .* but was called with"):
        network.run(*args, *args)


def test_cut_options_are_checked(residual):
    network, _ = residual
    with pytest.raises(ConfigError):
        cut(network, Plan(), form="fancy")
    for weights in ({"nothing": torch.ones(1)}, {"stem.0.weight": torch.ones(1)}):
        with pytest.raises(ConfigError):
            cut(network, Plan(), weights=weights)


def test_module_form_that_is_impossible_is_an_error():
    made = toy("multihead")
    network = trace(made.model, made.args)
    with assert_untouched(made.model), pytest.raises(VerificationError, match="form='graph'"):
        cut(network, random_plan(network.space, 0.5, 0), form="module")


def test_empty_plan_returns_an_equal_copy(residual):
    network, args = residual
    pruned = cut(network, Plan())
    assert pruned.shapes == {} and pruned.attributes == {} and pruned.form == "module"
    assert torch.equal(pruned.model(*args), network.model(*args))
    assert {id(p) for p in pruned.model.parameters()}.isdisjoint(id(p) for p in network.model.parameters())


def test_shapes_and_attributes_say_what_changed(residual):
    network, _ = residual
    pruned = cut(network, Plan({"a.0": (0, 5, 7)}))
    assert pruned.shapes["a.0.weight"] == ((12, 8, 3, 3), (3, 8, 3, 3))
    assert pruned.shapes["b.0.weight"] == ((8, 12, 3, 3), (8, 3, 3, 3))
    assert set(pruned.shapes) == {
        "a.0.weight",
        "b.0.weight",
        *(f"a.1.{n}" for n in ("weight", "bias", "running_mean", "running_var")),
    }
    assert pruned.attributes == {"a.0": {"out_channels": 3}, "a.1": {"num_features": 3}, "b.0": {"in_channels": 3}}


def test_free_outputs_may_change():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 10)).eval()
    x = torch.randn(2, 6)
    assert [g.width for g in trace(model, x).space] == [8]
    network = trace(model, x, free_outputs=True)
    assert [g.width for g in network.space] == [8, 10]
    for form in ("auto", "graph"):
        pruned = cut(network, Plan({"0": (0, 1, 2), "2": (1, 4)}), form=form)
        assert pruned.model(x).shape == (2, 2)


def test_free_outputs_of_a_network_that_has_parts_for_training():
    """Its graph of train mode has the same outputs: those that are free there are free here."""

    def forward(m, x):
        h = m.a(x)
        return {"features": h, "aux": m.b(h)} if m.training else {"features": h}

    model = Lambda(forward, a=nn.Linear(6, 8), b=nn.Linear(8, 3)).eval()
    network = trace(model, torch.randn(2, 6), free_outputs=["features"])
    assert [g.width for g in network.space] == [8]


class Registered(OrderedDict):
    """As the outputs of diffusers: PyTorch is told how to flatten it, but no keys."""

    def to_tuple(self):
        return tuple(self.values())


def of_values(values, names):
    return Registered(zip(names, values, strict=True))


pytree.register_pytree_node(Registered, lambda x: (list(x.values()), list(x)), of_values)


def test_outputs_of_a_class_that_is_registered_without_keys():
    def forward(m, x):
        return Registered(features=m.a(x), logits=m.b(m.a(x)))

    model = Lambda(forward, a=nn.Linear(6, 8), b=nn.Linear(8, 3)).eval()
    network = trace(model, torch.randn(2, 6), free_outputs=["features"])
    assert network.captured.output_names() == ["features", "logits"]
    pruned = cut(network, Plan({"a": (0, 1, 2)}))
    assert pruned.form == "module" and pruned.model(torch.randn(2, 6))["features"].shape == (2, 3)


def test_returned_weights_are_outputs_too():
    model = Lambda(lambda m, x: (m.b(m.a(x)), m.a.weight), a=nn.Linear(6, 8), b=nn.Linear(8, 3)).eval()
    assert len(trace(model, torch.randn(2, 6)).space) == 0


@pytest.mark.parametrize("nest", [lambda x: [x], lambda x: {"image": x}, lambda x: ({"a": [x]},)])
def test_nested_single_inputs(nest):
    def forward(m, value):
        while not isinstance(value, torch.Tensor):
            value = next(iter(value.values())) if isinstance(value, dict) else value[0]
        return m.b(m.a(value).relu())

    model = Lambda(forward, a=nn.Linear(6, 8), b=nn.Linear(8, 3)).eval()
    assert_cut_equals_mask(model, (nest(torch.randn(2, 6)),), seeds=(0,))


def test_nan_is_no_proof():
    """A mean over nothing is NaN in sliced and masked network alike: that must not pass as equal."""

    def forward(m, x):
        a, b = m.a(x).chunk(2, -1)
        return m.b(torch.cat([b, a], -1)) * a.mean(-1, keepdim=True)

    model = Lambda(forward, a=nn.Linear(6, 8), b=nn.Linear(8, 3)).eval()
    network = trace(model, torch.randn(2, 6))
    with pytest.raises(VerificationError):
        cut(network, Plan({network.space.groups[0].name: (5, 6)}))


def test_run_takes_other_tensors(residual):
    network, args = residual
    zeros = {n: torch.zeros_like(t) if n.startswith("head") else t for n, t in network.tensors.items()}
    assert not network.run(*args, tensors=zeros).any()


def test_groups_name_rows_of_their_members(residual):
    network, _ = residual
    stem = network.space["stem.0"]
    where = {(m.parameter, m.dim) for m in stem.members}
    assert {("stem.0.weight", 0), ("a.0.weight", 1), ("b.0.weight", 0), ("head.fc.weight", 1)} <= where
    assert all(np.array_equal(m.rows, np.arange(8)[:, None]) for m in stem.members)
    assert network.space.match(["a.1"]) == {network.space.index["a.0"]}


def test_at_widths_runs_costs_and_says_what_it_is(residual):
    network, args = residual
    plan = Plan({"a.0": (0, 5, 7)})
    at = network.at(plan)
    assert torch.equal(at.run(*args), network.run(*args, plan=plan))
    assert torch.equal(network.at(network.survivors(plan)).run(*args), at.run(*args))
    assert at.widths.tolist() == plan.widths(network.space).tolist()
    assert at.cost() == network.cost(plan) == network.at(network.survivors(plan)).cost()
    assert network.at().cost() == network.at(Plan()).cost() == network.cost()
    assert torch.equal(network.at().run(*args), network.model(*args))
    assert at.tensors["a.0.weight"].shape[0] == 3
    assert network.device == next(network.model.parameters()).device


def test_repr_says_how_large_a_network_is():
    network = trace(nn.Sequential(nn.Linear(400, 1000), nn.ReLU(), nn.Linear(1000, 100)), torch.zeros(1, 400))
    assert repr(network) == "Network(Sequential, 1 groups, 0.5M MACs, 0.50M params)"


def test_other_weights_and_a_latency_table_leave_the_network_as_it_is(residual):
    network, _ = residual
    timed = network.with_latency(lambda widths: widths.sum(axis=1).astype(float))
    assert network.cost().latency_ms is None and timed.cost().latency_ms == network.space.widths.sum()
    doubled = timed.with_tensors({n: 2 * t for n, t in timed.tensors.items()})
    assert doubled.cost(batch=4).latency_ms == timed.cost().latency_ms
    assert doubled.program is timed.program is network.program


@pytest.mark.parametrize("form", ["module", "graph"])
def test_other_weights_are_cut_as_the_models_own(form):
    """The result has the weights that were given, in parameters that train as the model's do."""
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    model[2].bias.requires_grad_(False)
    network = trace(model, torch.randn(2, 4))
    doubled = network.with_tensors({n: 2 * t for n, t in network.tensors.items()})
    pruned = cut(doubled, Plan({doubled.space[0].name: range(3)}), form=form).model
    assert torch.equal(pruned.get_parameter("0.weight"), 2 * model[0].weight[:3])
    assert [p.requires_grad for _, p in sorted(pruned.named_parameters())] == [True, True, False, True]


def test_groups_by_number():
    space = trace(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(2, 4)).space
    assert space[0] is space[-1] is space[space.groups[0].name]
    with pytest.raises(PlanError, match="no channel group 1: there are 1"):
        space[1]
